"""What is written around all figures: titles and keys fit, and texts are as wide as is reckoned."""

import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from balanceddpo.figures.style import (
    COLUMN,
    PAGE,
    style_settings,
    text_size,
    title_lines,
    write_key,
    write_title,
)
from figure_checks import texts_outside


def page(width, height=1.0):
    # at fewer dots the letters are set to whole ones
    fig = Figure(figsize=(width, height), dpi=300)
    FigureCanvasAgg(fig)
    return fig


def extents(fig):
    return [t.get_window_extent() for t in fig.texts]


@pytest.mark.parametrize('width', [COLUMN, PAGE])
def test_a_title_fits_its_figure(width):
    text = 'a title that goes on and on about differences and their intervals ' * 2
    lines, fig = title_lines(text, width), page(width)
    assert ' '.join(lines) == text.strip()
    assert len(lines) > 1
    assert title_lines(text, width, 1) == [lines[0][:-1] + '…']
    with rc_context(style_settings()):
        write_title(fig, lines)
        boxes = extents(fig)
    assert texts_outside(fig) == []
    assert all(a.y0 > b.y0 and not a.overlaps(b) for a, b in zip(boxes, boxes[1:]))


def test_a_text_is_as_wide_as_it_is_drawn():
    fig = page(7.0)
    with rc_context(style_settings()):
        for i, size in enumerate((6.5, 7, 20)):
            fig.text(0, 0.2 * i, 'Normalized (z-score) $5', fontsize=size, parse_math=False)
        drawn = [box.width * 72 / fig.dpi for box in extents(fig)]
    assert drawn == pytest.approx(
        [text_size('Normalized (z-score) $5', size)[0] for size in (6.5, 7, 20)], rel=0.03
    )


def test_the_names_of_a_key_stand_apart_in_one_line():
    names = ['base', 'Normalized (z-score)', 'BalancedDPO minus DiffusionDPO', 'i']
    colors = ['C0', 'C1', 'C2']
    fig = page(7.0)
    with rc_context(style_settings()):
        write_key(fig, names, colors, 0.4)
        boxes = extents(fig)
    marks = [mark.get_xdata()[0] * fig.bbox.width for mark in fig.artists]
    assert [t.get_text() for t in fig.texts] == names
    assert texts_outside(fig) == []
    assert len({t.get_position()[1] for t in fig.texts}) == 1
    assert all(mark < box.x0 for mark, box in zip(marks, boxes))
    assert all(box.x1 < mark for box, mark in zip(boxes, marks[1:]))
    assert [t.get_color() for t in fig.texts] == [*colors, 'C0']
    assert [mark.get_marker() for mark in fig.artists] == list('osD^')
