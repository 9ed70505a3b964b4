"What is left of differences over training seeds, against scipy's tests."

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from balanceddpo.evaluation.seed_survival import (
    count_survivors,
    difference_grid,
    differences_both_ways,
    rates_over_seeds,
    seed_and_prompt_spread,
)
from balanceddpo.evaluation.seeds import over_seeds

KEYS = ['model_a', 'scorer']


@pytest.fixture
def runs():
    "Four models, two scorers, four seeds: each model is further ahead than the one before."
    rng = np.random.default_rng(0)
    rows = [
        {'model_a': m, 'scorer': k, 'seed': s, 'n': 25, 'win_rate': 0.5 + i / 10}
        for i, m in enumerate(['plain', 'a', 'b', 'c'])
        for k in ('hps', 'clip')
        for s in range(4)
    ]
    table = pd.DataFrame(rows)
    return table.assign(win_rate=table.win_rate + rng.normal(0, 0.03, len(table)))


def test_a_rate_is_tested_against_one_half_and_ends_where_a_rate_does(runs):
    found = rates_over_seeds(runs, KEYS).set_index(KEYS)
    values = runs[(runs.model_a == 'b') & (runs.scorer == 'clip')].win_rate
    assert found.p['b', 'clip'] == pytest.approx(ttest_1samp(values, 0.5).pvalue)
    wild = runs.assign(win_rate=np.tile([0.0, 0.1, 0.9, 1.0], 8))
    cut, whole = rates_over_seeds(wild, KEYS), over_seeds(wild, KEYS, 'win_rate', null=0.5)
    assert (whole.low < 0).all()
    assert (whole.high > 1).all()
    assert set(cut.low) == {0}
    assert set(cut.high) == {1}
    pooled = rates_over_seeds(runs, KEYS, pool=['scorer'])
    assert set(pooled.df) == {12}


def test_two_spreads_stand_side_by_side_in_points(runs):
    found = seed_and_prompt_spread(runs.assign(win_rate=0.2))
    assert found['standard error from the prompts'].tolist() == pytest.approx([8, 8])
    assert found['sd over seeds'].tolist() == pytest.approx([0, 0])
    sd = runs.groupby(KEYS).win_rate.std().groupby('scorer').mean()
    found = seed_and_prompt_spread(runs)
    assert found.index.tolist() == ['hps', 'clip']
    assert found['sd over seeds']['clip'] == pytest.approx(100 * sd['clip'])


def test_differences_are_of_one_seed_and_corrected_over_all(runs):
    apart = differences_both_ways(runs, 'win_rate', against='plain')
    assert sorted(zip(apart.model_a, apart.scorer)) == [
        (m, k) for m in 'abc' for k in ('clip', 'hps')
    ]
    at = runs.pivot(index='seed', columns=KEYS, values='win_rate')
    for row in apart.itertuples():
        paired = at[row.model_a, row.scorer] - at['plain', row.scorer]
        assert row.mean == pytest.approx(paired.mean())
        assert row.p == pytest.approx(ttest_1samp(paired, 0).pvalue)
        assert row.sd_pooled == pytest.approx(at[row.model_a, row.scorer].std())
    assert apart.p_holm.min() == pytest.approx(6 * apart.p.min())
    assert apart.p_holm_pooled.min() == pytest.approx(6 * apart.p_pooled.min())


def made(**columns):
    "Differences of two models by two scorers, with the given p-values."
    given = {'p': [0.01, 0.2, 0.03, 0.04], 'p_holm': [0.04, 0.2, 0.09, 0.09]}
    given |= {'p_pooled': [0.001, 0.04, 0.2, np.nan], 'p_holm_pooled': [0.004, 0.12, 0.4, np.nan]}
    names = {'model_a': ['a', 'a', 'b', 'b'], 'scorer': ['hps', 'clip', 'hps', 'clip']}
    return pd.DataFrame(names | {'mean': [3.14, -0.02, 1.0, 0.0]} | given | columns)


def test_survivors_are_counted_in_four_ways():
    assert count_survivors(made()).values.tolist() == [[3, 1], [2, 1]]
    assert count_survivors(made(), level=0.15).values.tolist() == [[3, 3], [2, 2]]


def test_a_grid_has_the_pooled_kinds_and_no_minus_zero():
    values, kinds = difference_grid(made(), ['b', 'a'], ['clip', 'hps'])
    assert values.values.tolist() == [[0.0, 1.0], [0.0, 3.1]]
    assert not np.signbit(values.loc['a', 'clip'])
    assert kinds.values.tolist() == [['no', 'no'], ['alone', 'holds']]
