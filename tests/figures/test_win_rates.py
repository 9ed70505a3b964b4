"""The figure of win rates: the numbers of the table, nothing outside the page, the same bytes in
any process, and no traces in the session."""

import os
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.figures.style import (
    COLUMN,
    PAGE,
    Interval,
    Look,
    figure_style,
    style_settings,
)
from balanceddpo.figures.win_rates import plot_win_rates
from balanceddpo.paper.beside import beside_paper
from figure_checks import PAIRS, SETS, made_up_rates, texts_outside


def test_win_rates_of_several_protocols_do_not_share_a_figure():
    both = pd.concat([made_up_rates(), made_up_rates().assign(protocol='mean', win_rate=0.5)])
    with pytest.raises(InputError, match='choose one protocol'):
        plot_win_rates(both)


@pytest.mark.parametrize('width', [COLUMN, PAGE])
@pytest.mark.parametrize(
    'pairs,sets',
    [
        (PAIRS, SETS),
        (PAIRS[2:], SETS),
        (PAIRS, SETS[:1]),
        (PAIRS[:1], ('hpd',)),
    ],
)
def test_everything_lies_on_the_page(width, pairs, sets):
    rates = made_up_rates(pairs, sets)
    rates.loc[0, ['win_rate', 'low', 'high']] = 1, 0.97, 1
    rates.loc[1, ['win_rate', 'low', 'high']] = 0, 0, 0.03
    fig = plot_win_rates(
        rates,
        beside_paper(rates, 'table1', {'base': 'SD1.5'}),
        Look('A title that is too long for a single line of a column, $so', width=width),
    )
    assert texts_outside(fig) == []
    assert fig.get_figwidth() == width
    assert len(fig.axes) == len(sets)
    for a in fig.axes:
        for b in fig.axes:
            assert a is b or not a.get_window_extent().overlaps(b.get_window_extent())


def test_the_figure_shows_the_numbers():
    rates = made_up_rates()
    fig = plot_win_rates(rates, beside_paper(rates, 'table1', {'base': 'SD1.5'}))
    for ax, name in zip(fig.axes, SETS):
        here = rates[rates.prompt_set == name]
        filled = [
            x.get_xdata()[0]
            for x in ax.lines
            if x.get_marker() in 'osD' and x.get_markeredgewidth() == 0
        ]
        hollow = [x.get_xdata()[0] for x in ax.lines if x.get_markerfacecolor() == 'white']
        assert sorted(filled) == pytest.approx(sorted(100 * here.win_rate))
        assert len(hollow) == 12
        spans = sorted(
            tuple(x.get_xdata())
            for x in ax.lines
            if x.get_linewidth() == 1.3 and len(x.get_xdata()) == 2
        )
        assert np.allclose(spans, sorted(zip(100 * here.low, 100 * here.high)))
        numbers = {(t.get_text(), t.get_fontweight()) for t in ax.texts}
        assert {
            (f'{100 * r.win_rate:.0f}', 'bold' if r.low > 0.5 or r.high < 0.5 else 'normal')
            for r in here.itertuples()
        } <= numbers
        assert [t.get_text() for t in ax.get_yticklabels()] == [
            'HPS',
            'CLIP',
            'PickScore',
            'Aesthetic',
        ]


def test_figures_are_the_same_bytes_in_any_process(tmp_path):
    program = """
import sys; sys.path.insert(0, sys.argv[1])
from figure_checks import made_up_rates
from balanceddpo.figures.style import Look, save_figure
from balanceddpo.figures.win_rates import plot_win_rates
from balanceddpo.paper.beside import beside_paper
rates = made_up_rates()
fig = plot_win_rates(rates, beside_paper(rates, 'table1', {'base': 'SD1.5'}), Look('title'))
if sys.argv[3] == 'drawn': fig.canvas.draw()
save_figure(fig, sys.argv[2], pdf=True)
import matplotlib.pyplot
assert matplotlib.pyplot.get_fignums() == []  # nothing that pyplot knows of, or would show
"""
    here, hashes = os.path.dirname(os.path.dirname(__file__)), set()
    for seed, how in ((1, 'plain'), (2, 'drawn')):
        env = os.environ | {
            'PYTHONHASHSEED': str(seed),
            'MPLBACKEND': ('svg', 'tkagg')[seed - 1],
            'TZ': f'UTC+{seed}',
        }
        subprocess.run(
            [sys.executable, '-c', program, here, str(tmp_path / how), how], check=True, env=env
        )
        hashes.add(((tmp_path / f'{how}.pdf').read_bytes(), (tmp_path / f'{how}.png').read_bytes()))
    assert len(hashes) == 1
    pdf, _ = hashes.pop()
    assert b'/FontFile2' in pdf
    assert b'/Type3' not in pdf
    assert b'CreationDate' not in pdf
    box = [float(v) for v in re.search(rb'/MediaBox \[ ?([\d. ]+)\]', pdf)[1].split()]
    assert box[2] == pytest.approx(72 * COLUMN)  # printed at its own width


def test_plots_leave_the_session_alone(monkeypatch):
    before = dict(matplotlib.rcParams)
    plot_win_rates(made_up_rates())
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        figure_style()
        blue = matplotlib.rcParams['axes.prop_cycle'].by_key()['color'][0]
        # colour-blind palette
        assert matplotlib.rcParams['pdf.fonttype'] == 42
        assert matplotlib.colors.to_hex(blue) == '#0173b2'
    monkeypatch.setitem(sys.modules, 'seaborn', None)
    with pytest.raises(InputError, match='pip install'):
        style_settings()


def test_low_and_high_choose_the_interval():
    rates = made_up_rates(PAIRS[:1], ('hpd',)).assign(boot_low=0.51, boot_high=0.52)
    bootstrapped = Interval('win_rate', 'boot_low', 'boot_high')
    spans = [
        tuple(x.get_xdata())
        for x in plot_win_rates(rates, interval=bootstrapped).axes[0].lines
        if x.get_linewidth() == 1.3 and len(x.get_xdata()) == 2
    ]
    assert np.allclose(spans, [(51, 52)] * 4)
