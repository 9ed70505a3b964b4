"Scores as tables, words and figures: what is drawn and written, against the tables."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.evaluation.scores import compare_scores
from balanceddpo.evaluation.spread import in_deviations
from balanceddpo.figures.scores import (
    beyond_zero,
    difference_table,
    plot_differences,
    plot_distributions,
    plot_seed_scores,
    say_differences,
)
from balanceddpo.figures.style import Look, save_figure
from balanceddpo.paper.beside import paper_deviations
from figure_checks import SCORERS, SETS, made_up_scores, texts_outside


def test_differences_as_table_and_words():
    found = compare_scores(made_up_scores(), [('BalancedDPO', 'base')], SCORERS)
    table = difference_table(found)
    cell = found[(found.prompt_set == 'hpd') & (found.scorer == 'clip')]
    assert table.shape == (3, 4)
    assert table.loc[('HPD', 'BalancedDPO minus base'), 'CLIP'] == cell.difference.item()
    rows = pd.DataFrame(
        {
            'scorer': ['hps', 'x'],
            'difference': [0.01234, -2e-18],
            'low': [0.001, -0.5],
            'high': [0.02, -1e-4],
        }
    )
    assert say_differences(rows) == 'HPS +0.012 [+0.001, +0.02], x +0 [-0.5, -0.0001]'
    assert beyond_zero(rows) == '1 of 2 above zero beyond the interval, 1 below'


def test_the_figure_of_differences_shows_the_numbers():
    scores = made_up_scores(('base', 'DiffusionDPO', 'BalancedDPO'))
    pairs = [('DiffusionDPO', 'base'), ('BalancedDPO', 'base'), ('BalancedDPO', 'DiffusionDPO')]
    found = pd.concat(
        [in_deviations(compare_scores(scores, pairs, SCORERS), scores), paper_deviations(pairs)]
    )
    fig = plot_differences(found, Look('A title'))
    assert texts_outside(fig) == []
    assert len(fig.axes) == 4
    for ax, name in zip(fig.axes, found.prompt_set.unique()):
        here = found[found.prompt_set == name]
        marks = [x for x in ax.lines if x.get_marker() in list('osD')]
        assert sorted(m.get_xdata()[0] for m in marks) == pytest.approx(sorted(here.difference))
        assert len({m.get_ydata()[0] for m in marks}) == len(here)
        assert all((m.get_markerfacecolor() == 'white') == (name == 'the paper') for m in marks)
        spans = [
            tuple(x.get_xdata())
            for x in ax.lines
            if x.get_linewidth() == 1.3 and x.get_marker() == 'None'
        ]
        if name == 'the paper':
            assert spans == []
        else:
            assert np.allclose(sorted(spans), sorted(zip(here.low, here.high)))


def test_the_distributions_are_those_of_the_scores():
    scores = made_up_scores(('base',))
    fig = plot_distributions(scores, SCORERS, Look('A title'))
    assert texts_outside(fig) == []
    assert len(fig.axes) == 4
    for ax, k in zip(fig.axes, SCORERS):
        x = scores[scores.prompt_set == 'hpd'][k].to_numpy(float)
        line = [v for v in ax.lines if v.get_ydata()[0] == pytest.approx(2.85)]
        ends = [tuple(v.get_xdata()) for v in line]
        assert ends[0] == (x.min(), x.max())
        assert ends[1] == pytest.approx((x.mean() - x.std(ddof=1), x.mean() + x.std(ddof=1)))
        assert ends[2] == pytest.approx((x.mean(),))
        heights = [2.75 - v for v in ax.patches[2].get_data().values]
        counts, _ = np.histogram(x, ax.patches[2].get_data().edges)
        assert counts.sum() == len(x)
        assert np.allclose(heights, 0.6 * counts / counts.max())


def test_every_seeds_score_is_drawn_in_its_line():
    scores = made_up_scores(sets=SETS[:1])
    prompts = {'3': 'the third prompt, which has a rather long text that goes on', '7': 'short'}
    fig = plot_seed_scores(scores, SCORERS, prompts, Look('A title'))
    assert texts_outside(fig) == []
    for ax, k in zip(fig.axes, SCORERS):
        for i, p in enumerate(prompts):
            dots = [
                v for v in ax.lines if v.get_marker() in list('os') and round(v.get_ydata()[0]) == i
            ]
            for dot, m in zip(dots, ('base', 'BalancedDPO')):
                assert np.array_equal(
                    dot.get_xdata(),
                    scores[(scores.prompt_id == p) & (scores.model == m)][k].astype(float),
                )


@pytest.fixture(params=['differences', 'distributions', 'seeds'])
def make(request):
    "A function that draws one kind of figure."
    scores = made_up_scores()
    found = in_deviations(compare_scores(scores, [('BalancedDPO', 'base')], SCORERS), scores)
    base, hpd = scores[scores.model == 'base'], scores[scores.prompt_set == 'hpd']
    return {
        'differences': lambda: plot_differences(found),
        'distributions': lambda: plot_distributions(base, SCORERS),
        'seeds': lambda: plot_seed_scores(hpd, SCORERS, {'0': 'p'}),
    }[request.param]


def test_figures_are_the_same_bytes(make, tmp_path):
    assert [p.read_bytes() for p in save_figure(make(), tmp_path / 'a')] == [
        p.read_bytes() for p in save_figure(make(), tmp_path / 'b')
    ]
