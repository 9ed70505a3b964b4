"Figures of intervals and verdicts: what is drawn where, read back from the figure."

import io

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from balanceddpo.core.errors import InputError
from balanceddpo.figures.intervals import SHADES, Marks, plot_grid, plot_intervals
from balanceddpo.figures.style import Interval, Look

FRAME = pd.DataFrame(
    {
        'model': ['hps', 'b', 'c'],
        'rate': [0.7, 0.5, 0.2],
        'low': [0.6, 0.4, 0.1],
        'high': [0.8, 0.6, 0.3],
        'coin': [0.5, 0.4, 0.3],
    }
)


def draw(title='', **marks):
    return plot_intervals(
        FRAME, 'model', Interval('rate', 'low', 'high'), Look(title), Marks(**marks), 100
    )


def test_intervals_end_where_they_should():
    (ax,) = draw().axes
    ends = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert ends == [pytest.approx((60, 80)), pytest.approx((40, 60)), pytest.approx((10, 30))]
    # names as they are written, the first on top
    assert [t.get_text() for t in ax.get_yticklabels()] == ['HPS', 'b', 'c']
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_bold_is_what_excludes_the_level():
    weights = [t.get_weight() for t in draw(level=50).axes[0].texts]
    assert weights == ['bold', 'normal', 'bold']
    assert {t.get_weight() for t in draw().axes[0].texts} == {'normal'}


def test_dots_and_hollow_markers():
    dots = pd.DataFrame({'model': ['b', 'b', 'c', 'hps'], 'rate': [0.45, 0.55, 0.2, 0.7]})
    (ax,) = draw(dots=dots, hollow='coin', note='hollow: a coin').axes
    bars = [sorted(round(s[0][0], 6) for s in lines.get_segments()) for lines in ax.collections]
    assert bars == [[70], [45, 55], [20]]
    hollow = [
        line.get_xdata()[0]
        for line in ax.lines
        if to_hex(line.get_markerfacecolor()) == '#ffffff' and line.get_marker() == 'o'
    ]
    assert hollow == pytest.approx([50, 40, 30])
    assert [t.get_text() for t in ax.figure.texts] == ['hollow: a coin']


def grid(kinds):
    return plot_grid(
        pd.DataFrame(
            [[1.4, -2.6], [0, 30]],
            pd.MultiIndex.from_tuples([('I', 'x'), ('II', 'y')]),
            ['hps', 'clip'],
        ),
        pd.DataFrame(kinds, columns=['hps', 'clip']),
        {'yes': 'holds', 'no': 'does not'},
    )


def test_cells_have_the_shade_of_their_kind():
    fig = grid([['yes', 'no'], ['no', 'yes']])
    first, second = fig.axes[:2]
    assert [to_hex(p.get_facecolor()) for p in (*first.patches, *second.patches)] == [
        SHADES[0][0],
        SHADES[1][0],
        SHADES[1][0],
        SHADES[0][0],
    ]
    assert [t.get_text() for t in (*first.texts, *second.texts)] == ['+1', '-3', '+0', '+30']
    said = [t.get_text() for t in fig.texts]
    assert {'HPS', 'CLIP', 'I', 'II', 'x', 'y', 'holds', 'does not'} <= set(said)
    with pytest.raises(InputError, match="'perhaps'"):
        grid([['yes', 'perhaps'], ['no', 'yes']])


def test_the_same_figure_has_the_same_bytes():
    def png(fig):
        fig.savefig(buffer := io.BytesIO(), format='png', metadata={'Software': None})
        return buffer.getvalue()

    assert png(draw(level=50, title='twice')) == png(draw(level=50, title='twice'))
    assert png(grid([['yes', 'no'], ['no', 'yes']])) == png(grid([['yes', 'no'], ['no', 'yes']]))
