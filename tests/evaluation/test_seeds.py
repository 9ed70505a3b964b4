"Means and differences over training seeds, against scipy's tests and by simulation."

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from balanceddpo.evaluation.seeds import differences_over_seeds, over_seeds


def test_over_seeds_is_the_t_test():
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(0)
    for n in (2, 3, 8):
        x = rng.normal(55, 3, n)
        row, theirs = (
            over_seeds(pd.DataFrame({'model': 'a', 'rate': x}), ['model'], 'rate', null=50).iloc[0],
            ttest_1samp(x, 50),
        )
        ends = theirs.confidence_interval(0.95)
        assert (row.n, row.df) == (n, n - 1)
        assert row.p == pytest.approx(theirs.pvalue)
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high))
        assert row['mean'] == pytest.approx(x.mean())
        assert row.sd == pytest.approx(x.std(ddof=1))
        assert (row.survives > 0) == (row.p < 0.05) == (not row.low <= 50 <= row.high)
        if row.survives > 0:
            assert row.survives == pytest.approx(
                min(abs(row.low - 50), abs(row.high - 50)) / abs(row['mean'] - 50)
            )


def test_two_pooled_groups_are_students_test():
    "For two groups of equal size, the pooled variance is that of Student's two-sample test."
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 5))
    frame = pd.DataFrame({'model': ['x'] * 5 + ['y'] * 5, 'scorer': 'hps', 'rate': np.r_[x, y]})
    rows = over_seeds(frame, ['model', 'scorer'], 'rate', pool=['scorer'])
    error = (rows.high[0] - rows['mean'][0]) / ttest_quantile(8)  # s/sqrt(5)
    assert rows.df.tolist() == [8, 8]
    assert (x.mean() - y.mean()) / (error * math.sqrt(2)) == pytest.approx(
        ttest_ind(x, y).statistic
    )


def ttest_quantile(df):
    from scipy.stats import t

    return t.ppf(0.975, df)


def test_pools_are_separate_and_rows_keep_their_order():
    frame = pd.DataFrame(
        {
            'model': list('zzaazzaa'),
            'scorer': ['hps'] * 4 + ['clip'] * 4,
            'rate': [0, 2, 5, 5, 0, 20, 1, 1.0],
        }
    )
    rows = over_seeds(frame, ['model', 'scorer'], 'rate', pool=['scorer'])
    assert rows[['model', 'scorer']].values.tolist() == [
        ['z', 'hps'],
        ['a', 'hps'],
        ['z', 'clip'],
        ['a', 'clip'],
    ]
    half = (rows.high - rows.low) / 2
    assert half[0] == pytest.approx(half[1])
    assert half[2] == pytest.approx(10 * half[0])
    assert rows.sd[1] == 0


def test_a_difference_of_means_of_unequal_numbers_of_seeds():
    """Ten seeds against two: the standard error is s sqrt(1/10 + 1/2), with s pooled over both, 10
    degrees of freedom."""
    draw = np.random.default_rng(3)
    x, y = draw.normal(1, 1, 10), draw.normal(0, 1, 2)
    frame = pd.DataFrame({'model': ['a'] * 10 + ['b'] * 2, 'scorer': 'k', 'rate': [*x, *y]})
    (row,) = differences_over_seeds(frame, ['model', 'scorer'], 'rate', 'b').to_dict('records')
    theirs = ttest_ind(x, y)
    assert row['mean'] == pytest.approx(x.mean() - y.mean())
    assert row['p'] == pytest.approx(theirs.pvalue)
    assert row['df'] == 10
    assert (row['low'], row['high']) == pytest.approx(tuple(theirs.confidence_interval()))


def test_one_seed_has_no_interval_and_equal_seeds_no_doubt():
    one = over_seeds(pd.DataFrame({'m': ['a'], 'x': [3.0]}), ['m'], 'x').iloc[0]
    assert one['mean'] == 3
    assert all(np.isnan(one[c]) for c in ('sd', 'low', 'high', 'p', 'survives'))
    same = over_seeds(pd.DataFrame({'m': ['a', 'a', 'b', 'b'], 'x': [3.0, 3, 0, 0]}), ['m'], 'x')
    # on a grid of few prompts seeds can coincide
    assert same['mean'].tolist() == [3, 0]
    assert same[['low', 'high', 'p', 'survives']].isna().all(axis=None)


def test_differences_over_seeds_are_students_two_sample_tests():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 4))
    frame = pd.DataFrame({'model': ['a'] * 4 + ['b'] * 4, 'scorer': 'hps', 'rate': x.ravel()})
    (row,) = differences_over_seeds(frame, ['model', 'scorer'], 'rate', 'a').itertuples()
    theirs = ttest_ind(x[1], x[0])
    ends = theirs.confidence_interval(0.95)
    assert (row.model, row.df) == ('b', 6)
    assert row.p == pytest.approx(theirs.pvalue)
    assert (row.low, row.high) == pytest.approx((ends.low, ends.high))


def test_differences_that_share_a_model_do_not_alarm_more_often_than_they_say():
    """Ten models against one, three seeds, nothing true: 5 % of p-values below 5 %. Pooling the
    differences themselves would make it 7 %."""
    rng, below = np.random.default_rng(0), []
    for _ in range(400):
        frame = pd.DataFrame(
            {
                'model': np.repeat([f'm{i}' for i in range(11)], 3),
                'scorer': 'hps',
                'rate': rng.normal(size=33),
            }
        )
        below += (
            differences_over_seeds(frame, ['model', 'scorer'], 'rate', 'm0').p < 0.05
        ).tolist()
    assert 0.035 < np.mean(below) < 0.065
