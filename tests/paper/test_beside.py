"The paper's numbers beside ours: joined by name, in the same units, and left out where missing."

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import wilson
from balanceddpo.evaluation.scores import score_summary
from balanceddpo.figures.scores import mean_table, spread_table
from balanceddpo.paper.beside import (
    beside_paper,
    beside_table,
    paper_deviations,
    paper_means,
    paper_spread,
)
from balanceddpo.paper.numbers import PAPER
from figure_checks import SCORERS, SETS, made_up_rates, made_up_scores


def test_beside_paper_joins_by_name():
    rates = made_up_rates()
    both = beside_paper(rates, 'table1', {'base': 'SD1.5'})
    assert len(both) == 36
    assert set(both['model_b']) == {'base', 'DiffusionDPO'}  # our names stay
    cell = both[
        (both.model_a == 'BalancedDPO')
        & (both.model_b == 'base')
        & (both.prompt_set == 'hpd')
        & (both.scorer == 'clip')
    ].iloc[0]
    assert cell.paper == 72.67
    assert cell.difference == cell.ours - 72.67
    assert (cell.paper_low, cell.paper_high) == pytest.approx(
        [100 * v for v in wilson(109.005, 150)]
    )
    assert len(beside_paper(rates, PAPER['table2'], {'base': 'SDXL'})) == 36
    assert len(beside_paper(rates, 'table1')) == 12
    with pytest.raises(InputError, match='table9'):
        beside_paper(rates, 'table9')


def test_a_wide_table_keeps_the_order_of_rows_and_scorers():
    pairs = [('PickScore', 'base'), ('HPS', 'base'), ('HPS', 'DiffusionDPO')]
    rates = made_up_rates(pairs, ['pickapic'])
    both = beside_paper(rates, 'table3', {'base': 'SD1.5'})
    wide = beside_table(both, ('model_b', 'model_a'), ('paper', 'ours', 'difference'))
    assert list(wide.index) == [(b, a) for a, b in pairs]
    assert list(wide.columns[:4]) == [
        ('paper', k) for k in ('HPS', 'CLIP', 'PickScore', 'Aesthetic')
    ]
    assert wide.loc[('base', 'PickScore'), ('paper', 'PickScore')] == 43.77
    assert wide.loc[('base', 'HPS'), ('ours', 'HPS')] == 100 * rates.win_rate[4]
    over_base = both[both.model_b == 'base']
    assert list(beside_table(over_base).index) == ['PickScore', 'HPS']
    assert list(beside_table(over_base).columns.levels[0]) == ['ours', 'paper']


def test_the_papers_differences_in_its_deviations():
    "HPS .0022/.0130, .0037/.0130, .0015/.0130; Aesthetic -.0020/.1049, .0174/.1049, .0194/.1049."
    found = paper_deviations(
        [('DiffusionDPO', 'base'), ('BalancedDPO', 'base'), ('BalancedDPO', 'DiffusionDPO')]
    ).set_index(['scorer'])
    assert found.loc['hps', 'difference'].round(3).tolist() == [0.169, 0.285, 0.115]
    assert found.loc['aesthetic', 'difference'].round(3).tolist() == [-0.019, 0.166, 0.185]
    assert found.low.isna().all()
    assert set(found.prompt_set) == {'the paper'}


def test_tables_hold_ours_and_the_papers():
    scores = made_up_scores(('base', 'DiffusionDPO', 'BalancedDPO'))
    summary = score_summary(scores, SCORERS)
    five = mean_table(summary, paper_means())
    six = spread_table(score_summary(scores[scores.model == 'base'], SCORERS), paper_spread())
    assert five.shape == (3 * 3 + 3, 8)
    assert five.loc[('the paper', 'BalancedDPO'), ('Aesthetic', 'mean')] == 4.5034
    assert five.loc[('the paper', 'SD1.5'), ('CLIP', 's.d.')] == 0.0461
    assert np.isnan(five.loc[('the paper', 'DiffusionDPO'), ('CLIP', 's.d.')])
    own = scores[(scores.model == 'DiffusionDPO') & (scores.prompt_set == 'hpd')]['clip'].astype(
        float
    )
    assert np.allclose(five.loc[('HPD', 'DiffusionDPO'), 'CLIP'], [own.mean(), own.std()])
    assert list(five.index.get_level_values(0).unique()) == [
        'Pick-a-Pic',
        'PartiPrompts',
        'HPD',
        'the paper',
    ]
    assert six.shape == (4 * 4, 6)
    assert six.loc[('Aesthetic', 'SD1.5, the paper')].round(2).tolist() == [
        4.49,
        4.10,
        4.79,
        0.10,
        -3.71,
        2.88,
    ]
    assert np.allclose(six['mean'] + six['min, in s.d.'] * six['s.d.'], six['min'])


def test_a_scorer_the_paper_lacks_has_no_paper_row():
    summary = score_summary(
        made_up_scores(sets=SETS[:1]).rename(columns={'clip': 'recognised'}), ('hps', 'recognised')
    )
    assert len(spread_table(summary[summary.model == 'base'], paper_spread())) == 3
    assert mean_table(summary, paper_means()).shape == (2 + 3, 4)
