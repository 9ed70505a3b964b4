"Wilson's interval and the bootstrap, against scipy and against slow, plain implementations."

import math

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import bootstrap_interval, rate_interval, wilson

# --- Wilson's interval


@pytest.mark.parametrize('level', [0.8, 0.95, 0.99])
def test_wilson_is_scipys(level):
    from scipy.stats import binomtest

    for n in (1, 2, 7, 100, 297, 1129):
        for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
            theirs = binomtest(k, n).proportion_ci(level, method='wilson')
            assert wilson(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12), (
                k,
                n,
            )


def test_wilson_inverts_the_score_test():
    """Each end is the share whose z score against the observed one is exactly z; also for the
    half-integers of split ties."""
    z = 1.959963984540054
    for k, n in ((0.5, 10), (3.5, 9), (150.5, 297), (40, 60.4)):
        for end in wilson(k, n):
            assert abs(k / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z, rel=1e-9)


def test_wilson_edges():
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1
    assert wilson(0, 0) == (0, 1)
    for k, n in ((0, 3), (3, 3), (1.5, 3), (1e-9, 3)):
        low, high = wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
    a, b = wilson(12, 40), wilson(28, 40)
    assert a == pytest.approx((1 - b[1], 1 - b[0]))
    for wrong in ((4, 3), (-1, 3), (1, -1)):
        with pytest.raises(InputError):
            wilson(*wrong)


def test_split_ties_keep_the_coverage():
    """With 0, 20 and 60 % ties the interval holds the true value at least about 95 times in 100,
    and more often the more ties there are."""
    rng, n, held = np.random.default_rng(0), 120, []
    for tie in (0.0, 0.2, 0.6):
        win = 0.9 * (1 - tie) - 0.3 * (1 - tie)
        truth = win + tie / 2
        draws = rng.multinomial(n, [win, tie, 1 - win - tie], size=4000)
        ends = [wilson(w + t / 2, n) for w, t, _ in draws]
        held.append(np.mean([low <= truth <= high for low, high in ends]))
    assert held[0] > 0.94
    assert held[0] < 0.96
    assert held[2] > held[1] > held[0] - 0.005
    assert held[2] > 0.98


def test_variance_of_split_points_is_smaller_than_the_formula_assumes():
    for w, t in ((0.5, 0.2), (0.3, 0.6), (0.7, 0)):
        points, share = np.array([1, 0.5, 0]), np.array([w, t, 1 - w - t])
        p = points @ share
        assert points**2 @ share - p**2 == pytest.approx(p * (1 - p) - t / 4)


# --- bootstrap


def slow_bootstrap(points, out_of, resamples, seed):
    "The definition: draw prompts by number, sum, divide."
    rng = np.random.default_rng(seed)
    at = rng.integers(0, len(points), (resamples, len(points)))
    return np.quantile(points[at].sum(1) / out_of[at].sum(1), [0.025, 0.975])


def test_bootstrap_is_the_plain_one():
    rng = np.random.default_rng(1)
    out_of = rng.integers(1, 6, 200).astype(float)
    points = rng.binomial(out_of.astype(int), 0.6).astype(float)
    assert bootstrap_interval(points, out_of, resamples=20000) == pytest.approx(
        slow_bootstrap(points, out_of, 20000, 5), abs=0.004
    )


def test_bootstrap_of_a_mean_is_scipys():
    from scipy.stats import bootstrap

    x = np.random.default_rng(2).gamma(2, size=150)
    theirs = bootstrap(
        (x,), np.mean, method='percentile', n_resamples=20000, rng=np.random.default_rng(3)
    ).confidence_interval
    assert bootstrap_interval(x, resamples=20000) == pytest.approx(
        (theirs.low, theirs.high), abs=0.02
    )


@pytest.mark.parametrize('wins,n', [(30, 100), (200, 297), (5, 12)])
def test_bootstrap_of_wins_is_binomial(wins, n):
    from scipy.stats import binom

    exact = binom.ppf([0.025, 0.975], n, wins / n) / n
    assert bootstrap_interval(np.repeat([1.0, 0.0], [wins, n - wins])) == pytest.approx(
        exact, abs=1.001 / n
    )


def test_bootstrap_keeps_prompts_whole():
    """Five equal comparisons of each prompt carry no more information than one: the interval must
    not shrink."""
    one = np.repeat([1.0, 0.0], [60, 40])
    five = bootstrap_interval(5 * one, np.full(100, 5.0))
    assert five == pytest.approx(bootstrap_interval(one))
    assert five[1] - five[0] > 0.17


def test_bootstrap_is_seeded_and_ignores_order():
    x = np.random.default_rng(4).random(90)
    assert bootstrap_interval(x) == bootstrap_interval(x[::-1]) == bootstrap_interval(x, seed=0)
    assert bootstrap_interval(x) != bootstrap_interval(x, seed=1)


def test_bootstrap_leaves_out_resamples_without_comparisons():
    # a win and a dropped tie: a resample of two ties has no rate
    low, high = bootstrap_interval([1.0, 0.0], [1.0, 0.0])
    assert (low, high) == (1, 1)
    assert bootstrap_interval([0.0, 0.0], [0.0, 0.0]) == (0, 1)


def test_a_rate_without_any_doubt_in_its_resamples_has_wilsons_interval():
    for won in (0.0, 1.0):
        points, each = np.full(30, 3 * won), np.full(30, 3.0)
        assert rate_interval(points, each, each=3, level=0.9) == wilson(30 * won, 30, 0.9)
    mixed = np.repeat([3.0, 0.0], [20, 10])
    assert rate_interval(mixed, np.full(30, 3.0), each=3, seed=4) == bootstrap_interval(
        mixed, np.full(30, 3.0), seed=4
    )
