"Bradley-Terry: against a general optimiser, identities, and cases worked by hand."

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import bootstrap_interval
from balanceddpo.evaluation.ranking import (
    bradley_terry,
    expected_rates,
    observed_minus_expected,
    prompt_points,
    rank_models,
    win_chance,
)
from balanceddpo.evaluation.win_rates import compare, score_table


def likeliest(points):
    "The same maximum by a general optimiser."
    from scipy.optimize import minimize

    def cost(theta):
        gap = theta[:, None] - theta[None, :]
        return (points * np.log1p(np.exp(-gap))).sum() + theta.sum() ** 2

    return minimize(cost, np.zeros(len(points)), method='BFGS', options={'gtol': 1e-9}).x


def random_points(rng, K, most=12):
    return rng.integers(0, 2 * most, (K, K)) / 2 * (1 - np.eye(K)) + 0.5 * (1 - np.eye(K))


def test_bradley_terry_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    for K in (2, 3, 6, 12):
        points = random_points(rng, K)
        assert bradley_terry(points) == pytest.approx(likeliest(points), abs=1e-5)


def test_bradley_terry_identities():
    rng = np.random.default_rng(1)
    points = random_points(rng, 5)
    theta = bradley_terry(points)
    assert theta.sum() == pytest.approx(0, abs=1e-9)
    assert bradley_terry(7 * points) == pytest.approx(theta)  # as many more of the same
    assert bradley_terry(points.T) == pytest.approx(-theta)  # losses for wins
    order = [3, 1, 4, 0, 2]
    assert bradley_terry(points[np.ix_(order, order)]) == pytest.approx(theta[order])
    assert bradley_terry(points + 3 * np.eye(5)) == pytest.approx(theta)  # nobody meets itself
    expected = expected_rates(theta)
    assert expected + expected.T == pytest.approx(np.ones((5, 5)))
    assert (expected * (points + points.T)).sum(1) - np.diag(
        expected * (points + points.T)
    ) == pytest.approx(points.sum(1))


def test_two_models_and_ties_are_log_odds():
    for a, b in ((3, 1), (60.5, 39.5), (1, 999)):
        theta = bradley_terry([[0, a], [b, 0]])
        assert theta[0] - theta[1] == pytest.approx(math.log(a / b))
        assert (
            win_chance(theta[0] - theta[1])
            == expected_rates(theta)[0, 1]
            == pytest.approx(a / (a + b))
        )
    # 2 wins, 1 loss, 4 ties
    half = bradley_terry([[0, 2 + 4 / 2], [1 + 4 / 2, 0]])
    assert half[0] - half[1] == pytest.approx(math.log(4 / 3))


def test_the_chance_of_a_win_is_the_logistic_function():
    from scipy.special import expit

    ahead = np.linspace(-40, 40, 81)
    assert win_chance(ahead) == pytest.approx(expit(ahead), rel=1e-12)


def test_a_stack_is_fitted_table_by_table():
    rng = np.random.default_rng(2)
    stack = np.stack([random_points(rng, 4) for _ in range(6)]).reshape(2, 3, 4, 4)
    fitted = bradley_terry(stack)
    for i, j in itertools.product(range(2), range(3)):
        assert fitted[i, j] == pytest.approx(bradley_terry(stack[i, j]), abs=1e-8)


def test_a_prior_is_a_number_of_ties():
    points = random_points(np.random.default_rng(3), 4)
    assert bradley_terry(points, prior=2) == pytest.approx(bradley_terry(points + 1 - np.eye(4)))
    assert np.abs(bradley_terry(points, prior=1e6)).max() < 1e-3


def test_no_finite_maximum_is_refused():
    for hopeless in (
        [[0, 4], [0, 0]],
        [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],
        np.zeros((3, 3)),
    ):
        with pytest.raises(InputError, match='prior'):
            bradley_terry(hopeless)
        assert np.isfinite(bradley_terry(hopeless, prior=0.5)).all()


def test_known_strengths_are_found_again():
    truth = np.array([-1.0, -0.2, 0.4, 0.8])
    rng = np.random.default_rng(4)
    n = 20_000
    wins = np.triu(rng.binomial(n, expected_rates(truth)), 1).astype(float)
    points = wins + np.tril(n - wins.T, -1)
    assert bradley_terry(points) == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize('protocol', ['best', 'mean', 'paired'])
def test_points_add_up_to_the_win_rates(protocol):
    rng = np.random.default_rng(5)
    names, scorers = ['a', 'b', 'c'], ['hps', 'clip']
    scores = pd.concat(
        [
            score_table(m, {k: rng.integers(0, 4, (7, 3)) for k in scorers}, prompt_set=s)
            for s in ('x', 'y')
            for m in names
        ]
    )
    points = prompt_points(scores, names, scorers, protocol)
    assert points.shape == (14, 3, 3)
    # two scorers
    assert points + points.transpose(0, 2, 1) == pytest.approx(
        np.broadcast_to(2 * (1 - np.eye(3)), points.shape)
    )
    rates = compare(scores, [('a', 'c')], scorers, protocol=protocol)
    assert points[:, 0, 2].sum() == pytest.approx(7 * rates.win_rate.sum())


def test_points_refuse_other_seeds():
    a, b = (
        score_table('a', {'hps': [[1.0], [2]]}),
        score_table('b', {'hps': [[1.0], [2]]}, seeds=[[5], [6]]),
    )
    with pytest.raises(InputError, match='seeds'):
        prompt_points(pd.concat([a, b]), ['a', 'b'], ['hps'])


def won(share, n=100):
    return np.array(
        [
            [[0, w], [1 - w, 0]]
            for w in np.r_[np.ones(round(share * n)), np.zeros(n - round(share * n))]
        ]
    )


def test_the_interval_of_two_models_is_that_of_their_win_rate():
    ranking = (
        rank_models(won(0.6), ['a', 'base'], anchor='base', prior=0, resamples=4000)
        .set_index('model')
        .loc['a']
    )
    assert ranking.expected == pytest.approx(0.6)
    assert ranking.strength == pytest.approx(math.log(1.5))
    assert (ranking.expected_low, ranking.expected_high) == pytest.approx(
        bootstrap_interval(np.r_[np.ones(60), np.zeros(40)]), abs=0.011
    )


def test_repeating_a_scorer_does_not_make_it_surer():
    once, four = (rank_models(k * won(0.6), ['a', 'base'], 'base', prior=0) for k in (1, 4))
    pd.testing.assert_frame_equal(once, four)


def test_ranks_and_anchor():
    rng = np.random.default_rng(6)
    truth = {'base': 0.0, 'good': 1.5, 'best': 3.0}
    scores = pd.concat(
        [score_table(m, {'hps': rng.normal(s, 1, (80, 1))}) for m, s in truth.items()]
    )
    names = list(truth)
    points = prompt_points(scores, names, ['hps'])
    ranking, free = rank_models(points, names, 'base'), rank_models(points, names)
    assert ranking.model.tolist() == ['best', 'good', 'base']
    assert ranking['rank'].tolist() == [1, 2, 3]
    assert (ranking.rank_low <= ranking.rank_high).all()
    assert np.diff(ranking.strength) == pytest.approx(np.diff(free.strength))
    assert free.strength.sum() == pytest.approx(0, abs=1e-6)
    pd.testing.assert_frame_equal(ranking, rank_models(points, names, 'base'))  # the seed decides
    tie = rank_models(np.full((10, 3, 3), 0.5) * (1 - np.eye(3)), ['a', 'b', 'c'])
    assert tie['rank'].tolist() == [1, 1, 1]
    assert tie.rank_high.tolist() == [1, 1, 1]


def test_what_one_strength_does_not_explain():
    chances = expected_rates([0.0, 1.0, 2.5])
    exact = (40 * chances * (1 - np.eye(3)))[None]
    found = observed_minus_expected(exact, ['a', 'b', 'c'], prior=0)
    assert found.difference.abs().max() < 1e-6
    # now a has 4 points of b too many; each model's expected points are still its points
    exact[0, 0, 1] += 4
    exact[0, 1, 0] -= 4
    found = observed_minus_expected(exact, ['a', 'b', 'c'], prior=0)
    off = dict(zip(found.model_a + found.model_b, found.difference))
    assert off['ab'] > 0.01
    assert off['ac'] == pytest.approx(-off['ab'])
    assert off['bc'] == pytest.approx(off['ab'])
    observed = dict(zip(found.model_a + found.model_b, found.observed))
    assert observed['ab'] == pytest.approx(chances[0, 1] + 0.1)
    assert observed['ac'] == pytest.approx(chances[0, 2])
    assert (found.observed - found.expected).tolist() == found.difference.tolist()


def test_what_is_furthest_off_comes_first():
    points = np.full((1, 4, 4), 10.0)
    points[0, 2, 3], points[0, 3, 2] = 2, 18
    points[0, 0, 1], points[0, 1, 0] = 13, 7
    found = observed_minus_expected(points, 'abcd')
    assert found.loc[0, ['model_a', 'model_b']].tolist() == ['c', 'd']
    assert found.difference[0] < 0
    assert found.difference.abs().is_monotonic_decreasing
