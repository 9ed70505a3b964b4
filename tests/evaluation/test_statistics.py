"""Statistics of many comparisons: against scipy, closed testing by brute force, a general
optimiser, and cases worked by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, ttest_ind

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.scores import compare_scores
from balanceddpo.evaluation.statistics import (
    bradley_terry,
    differences_over_seeds,
    expected_rates,
    holm,
    in_deviations,
    over_seeds,
    prompt_points,
    rank_models,
    rates_by_quantile,
    seed_spread,
    sign_test,
    vote_dependence,
    win_chance,
    with_p_values,
)
from balanceddpo.evaluation.win_rates import bootstrap_interval, compare, score_table, wilson
from figure_checks import SCORERS, SETS, made_up_scores

# --- the sign test and its correction


def test_sign_test_counts_coins():
    "Against all 2^n sequences of a fair coin: the share at least as one-sided."
    for n in range(1, 9):
        heads = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        for k in range(n + 1):
            as_far = sum(abs(h - n / 2) >= abs(k - n / 2) for h in heads) / 2**n
            assert sign_test(k, n - k) == pytest.approx(as_far), (k, n)


def test_sign_test_is_symmetric_and_takes_arrays():
    wins, losses = np.array([3, 0, 60]), np.array([9, 0, 40])
    p = sign_test(wins, losses)
    assert p.shape == (3,)
    assert p == pytest.approx(sign_test(losses, wins))
    assert p[1] == 1
    assert isinstance(sign_test(3, 9), float)


def closed_testing(p):
    """Holm's definition behind the definition: a claim stands if every set of claims that holds it
    is rejected by Bonferroni; the corrected p is the worst set's."""
    sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r)]
    return [
        min(1, max(len(s) * min(p[j] for j in s) for s in sets if i in s)) for i in range(len(p))
    ]


def test_holm_is_closed_testing():
    rng = np.random.default_rng(0)
    for m in (1, 2, 5, 7):
        for _ in range(5):
            p = rng.random(m) ** 3
            p[: m // 3] = p[0]  # some equal ones
            assert holm(p) == pytest.approx(closed_testing(p))


def test_holm_keeps_the_order_of_its_input_and_leaves_nan():
    p = np.array([0.2, np.nan, 0.001, 0.04])
    shuffled = [3, 1, 0, 2]
    assert holm(p)[shuffled] == pytest.approx(holm(p[shuffled]), nan_ok=True)
    assert np.isnan(holm(p)[1])
    assert holm(p)[2] == pytest.approx(0.003)
    assert holm([]).tolist() == []
    with pytest.raises(InputError):
        holm([0.1, 1.1])


def test_holm_bounds_the_chance_of_any_false_claim():
    """Twenty true nulls, independent: alone, one falls below .05 in 64 of 100 cases; corrected, in
    at most 5."""
    p = np.random.default_rng(0).random((4000, 20))
    assert (p < 0.05).any(1).mean() == pytest.approx(1 - 0.95**20, abs=0.03)
    assert np.mean([(holm(row) < 0.05).any() for row in p]) <= 0.05 + 3 * math.sqrt(
        0.05 * 0.95 / 4000
    )


def models(**scores):
    return pd.concat(
        [score_table(name, {'hps': np.array(x, float)[:, None]}) for name, x in scores.items()]
    )


def test_p_values_of_a_table_leave_ties_out():
    rates = with_p_values(
        compare(models(a=[1, 1, 1, 1, 1, 1, 2], b=[0, 0, 0, 0, 0, 9, 2]), [('a', 'b')], ['hps'])
    )
    assert rates.p.item() == pytest.approx(2 * (1 + 6) / 2**6)  # 5 wins, 1 loss, 1 tie
    assert rates.p_holm.item() == rates.p.item()


# --- training seeds


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


# --- Bradley-Terry


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


# --- votes and rates


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


# --- how far images spread


def test_seed_spread_is_what_pandas_says():
    scores = made_up_scores(sets=SETS[:1])
    a, b = (scores[scores.model == m] for m in ('BalancedDPO', 'base'))
    found = seed_spread(a, b, SCORERS).set_index('scorer')
    x, y = (t.groupby('prompt_id')[list(SCORERS)].std() for t in (a, b))
    assert np.allclose(found.spread_a, x.mean(), rtol=1e-6)
    assert np.allclose(found.difference, (x - y).mean(), atol=1e-6)
    for k in SCORERS:
        theirs = bootstrap(
            ((x - y)[k].to_numpy(),), np.mean, method='percentile', n_resamples=9999, rng=1
        ).confidence_interval
        assert np.allclose([found.low[k], found.high[k]], theirs, atol=0.02)


def test_differences_in_deviations_have_the_unit_of_their_own_set_and_scorer():
    scores = made_up_scores()
    scores.loc[scores.prompt_set == 'hpd', 'clip'] *= 10
    raw = compare_scores(scores, [('BalancedDPO', 'base')], SCORERS)
    units = in_deviations(raw, scores)
    for r, u in zip(raw.itertuples(), units.itertuples()):
        sd = (
            scores[(scores.model == 'base') & (scores.prompt_set == r.prompt_set)][r.scorer]
            .astype(float)
            .std()
        )
        assert np.allclose(
            [u.difference * sd, u.low * sd, u.high * sd], [r.difference, r.low, r.high]
        )
    with pytest.raises(InputError, match="'other'"):
        in_deviations(raw, scores, 'other')
