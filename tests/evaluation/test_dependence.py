"How the votes of a pair depend on each other, and rates along a quantity."

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.dependence import rates_by_quantile, vote_dependence
from balanceddpo.evaluation.intervals import wilson


def test_dependence_is_the_mean_correlation():
    """Each pair could have been shown the other way round: with both ways counted, numpy's
    correlations have the mean that is reported."""
    rng = np.random.default_rng(0)
    common = rng.choice([-1, 1], (500, 1))
    votes = np.where(rng.random((500, 4)) < 0.6, common, rng.choice([-1, 1], (500, 4)))
    found, r = vote_dependence(votes), np.corrcoef(np.r_[votes, -votes].T)[np.triu_indices(4, 1)]
    # .6 squared
    assert found['correlation'] == pytest.approx(r.mean())
    assert found['correlation_low'] < 0.36 < found['correlation_high']
    assert found['voters'] == pytest.approx(4 / (1 + 3 * r.mean()))
    assert found['voters_low'] < found['voters'] < found['voters_high']
    assert found['p'] < 1e-6


def test_independent_voters_are_as_many_as_they_are():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(200):
        p.append(vote_dependence(rng.choice([-1, 1], (120, 4)), resamples=10)['p'])
    # no more is rejected than should be
    assert np.mean(np.array(p) < 0.05) < 0.12
    assert 0.3 < np.mean(p) < 0.7
    assert vote_dependence(rng.choice([-1, 1], (5000, 3)))['voters'] == pytest.approx(3, abs=0.15)


def test_dependence_by_hand_with_three_voters_and_an_abstention():
    """3-0, 3-0, 2-1, 2-1 of three voters; independent: 1/4 and 3/4. chi-square (2-1)^2/1 +
    (2-3)^2/3."""
    found = vote_dependence([[1, 1, 1], [-1, -1, -1], [1, -1, 1], [-1, -1, 1], [0, 1, 1]])
    assert found['n'] == 4
    assert found['chi2'] == pytest.approx(4 / 3)
    assert found['df'] == 1
    assert found['voters'] == pytest.approx(9 / 5)
    with pytest.raises(InputError):
        vote_dependence([[0, 1], [1, 0]])


def test_quantiles_share_out_every_pair():
    rng = np.random.default_rng(2)
    x = rng.random(103)
    hits = rng.random(103) < x
    parts = rates_by_quantile(x, hits, 5)
    assert parts.n.sum() == 103
    assert parts.n.max() - parts.n.min() <= 1
    assert parts.hits.sum() == hits.sum()
    assert (parts.x_high[:-1].to_numpy() <= parts.x_low[1:].to_numpy()).all()
    assert parts.rate.iloc[0] < 0.3 < parts.rate.iloc[-1]
    third = parts.iloc[2]
    inside = (x >= third.x_low) & (x <= third.x_high)
    assert third.rate == pytest.approx(hits[inside].mean())
    assert (third.low, third.high) == wilson(third.hits, third.n)
    with pytest.raises(InputError):
        rates_by_quantile([1.0, np.nan], [True, False], 2)
