"""Elections of several images: brute force over orders, known cycles, independent fits, the plain
majority on pairs, refusals."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.voting.elections import (
    KEMENY_LIMIT,
    RANK_LABELS,
    RANK_RULES,
    borda_points,
    condorcet,
    condorcet_ends,
    condorcet_report,
    copeland_points,
    ends_by_points,
    has_cycle,
    kemeny_ends,
    kemeny_order,
    kemeny_orders,
    majorities,
    pairwise_votes,
    plackett_luce,
    rank_labels,
    scored_images,
    take_pairs,
    votes_on,
)
from balanceddpo.voting.labels import confidence_weights, margin_weights, shared_weights
from balanceddpo.voting.votes import majority, votes


def make_scores(G=60, N=5, K=4, seed=0, missing=0.0, shared=0.3, decimals=None):
    rng = np.random.default_rng(seed)
    x = np.sqrt(shared) * rng.standard_normal((G, N, 1)) + np.sqrt(
        1 - shared
    ) * rng.standard_normal((G, N, K))
    if decimals is not None:
        x = x.round(decimals)
    x[rng.random(x.shape) < missing] = np.nan
    return x


# rock, paper, scissors: A > B > C, B > C > A, C > A > B
CIRCLE = np.array([[[3.0, 1, 2], [2, 3, 1], [1, 2, 3]]])
# Condorcet chooses A, Borda B
SPLIT = np.array([[[3.0, 3, 3, 1, 1], [2, 2, 2, 3, 3], [1, 1, 1, 2, 2]]])

# votes and majorities


@pytest.mark.parametrize('weights', [None, [1, 2, 0.5, 3]])
def test_pairwise_votes_are_the_votes_of_every_pair(weights):
    x = make_scores(missing=0.1, decimals=0)
    n = pairwise_votes(x, weights)
    w = np.ones(4) if weights is None else weights
    for i, j in itertools.combinations(range(5), 2):
        v = votes(x[:, [i, j]])
        np.testing.assert_allclose(n[:, i, j], (v == 1) @ w)
        np.testing.assert_allclose(n[:, j, i], (v == -1) @ w)
        assert np.array_equal(majorities(n)[:, i, j], majority(v, weights))
    assert not np.diagonal(n, axis1=1, axis2=2).any()


def test_the_circle_of_three():
    n = pairwise_votes(CIRCLE)
    b = majorities(n)
    assert b[0].tolist() == [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]
    assert has_cycle(b).tolist() == [True]
    assert condorcet(b, scored_images(CIRCLE)).tolist() == [[-1, -1]]
    assert copeland_points(CIRCLE).tolist() == borda_points(CIRCLE).tolist() == [[0, 0, 0]]
    assert np.allclose(plackett_luce(CIRCLE), 0, atol=1e-8)
    assert kemeny_order(n[0]) == ([0, 1, 2], 5)
    for rule in RANK_RULES:
        assert rank_labels(CIRCLE, ['c'], rule).iloc[0, 1:].tolist() == [-1, -1, 0, 0]


def test_a_circle_below_a_winner_is_a_cycle_with_a_winner():
    x = np.concatenate([CIRCLE, np.full((1, 1, 3), 9.0)], axis=1)  # image D is everybody's first
    assert condorcet_report(x) == dict(
        groups=1, winner=1, loser=0, both=0, cycle=1, no_winner_cycle=0, no_winner_tie=0
    )
    assert condorcet(majorities(pairwise_votes(x)), scored_images(x)).tolist() == [[3, -1]]
    assert kemeny_orders(x)[0, 0] == 3


def test_a_circle_of_four_is_found():
    b = np.zeros((1, 4, 4), np.int8)
    b[0, [0, 1, 2, 3], [1, 2, 3, 0]] = 1
    b -= b.swapaxes(1, 2)
    assert has_cycle(b).tolist() == [True]
    b[0, 3, 0] = b[0, 0, 3] = 0
    assert has_cycle(b).tolist() == [False]


def test_one_in_eighteen_elections_of_three_by_three_has_no_winner():
    every = np.array(
        [
            np.transpose(p)
            for p in itertools.product(list(itertools.permutations([1.0, 2, 3])), repeat=3)
        ]
    )
    assert condorcet_report(every) == dict(
        groups=216, winner=204, loser=204, both=204, cycle=12, no_winner_cycle=12, no_winner_tie=0
    )


def test_condorcet_against_a_loop():
    x = make_scores(G=200, missing=0.1)
    beats, here = majorities(pairwise_votes(x)), scored_images(x)
    for b, mask, (winner, loser) in zip(beats, here, condorcet(beats, here)):
        images = np.flatnonzero(mask)
        wins = [i for i in images if len(images) > 1 and all(b[i, j] > 0 for j in images if j != i)]
        losses = [
            i for i in images if len(images) > 1 and all(b[j, i] > 0 for j in images if j != i)
        ]
        assert wins == ([winner] if winner >= 0 else [])
        assert losses == ([loser] if loser >= 0 else [])


def test_a_missing_image_neither_wins_nor_prevents_a_winner():
    x = np.array([[[3.0], [np.nan], [1]], [[np.nan], [np.nan], [1]]])
    assert condorcet(majorities(pairwise_votes(x)), scored_images(x)).tolist() == [[0, 2], [-1, -1]]
    assert condorcet_report(x)['groups'] == 1
    assert np.isnan(borda_points(x)[0, 1])
    assert np.isnan(plackett_luce(x)[0, 1])
    assert kemeny_orders(x).tolist() == [[0, 2, -1], [2, -1, -1]]
    for rule in RANK_RULES:
        assert rank_labels(x, 'ab', rule).i.tolist() == [0, -1]


# points


def test_borda_is_the_classical_count_for_complete_ballots():
    # one point for every image below
    x = make_scores()
    classical = (np.argsort(np.argsort(x, axis=1), axis=1)).sum(axis=2)
    assert np.array_equal(borda_points(x), 2 * classical - 4 * 4)
    assert np.allclose(
        borda_points(make_scores(missing=0.2)).sum(
            axis=1, where=~np.isnan(borda_points(make_scores(missing=0.2)))
        ),
        0,
    )


def test_condorcet_and_borda_can_disagree():
    assert borda_points(SPLIT).tolist() == [[2, 4, -6]]
    assert copeland_points(SPLIT).tolist() == [[2, 0, -2]]
    assert condorcet_ends(SPLIT).tolist() == [[0, 2]]
    assert kemeny_ends(SPLIT).tolist() == [[0, 2]]
    assert ends_by_points(borda_points(SPLIT)).tolist() == [[1, 2]]
    assert plackett_luce(SPLIT).argmax() == 1


def test_copeland_puts_a_condorcet_winner_first_and_a_loser_last():
    x = make_scores(G=300)
    ends = condorcet(majorities(pairwise_votes(x)), scored_images(x))
    points = copeland_points(x)
    for (winner, loser), p in zip(ends, points):
        assert winner < 0 or (p[winner] == 4 and p.argmax() == winner)
        assert loser < 0 or (p[loser] == -4 and p.argmin() == loser)


def test_ends_by_points_break_ties_by_place_and_leave_out_equals():
    assert ends_by_points(
        np.array(
            [
                [1, 2, 2, 1],
                [3, 3, 3, 3],
                [np.nan, 1, 2, np.nan],
                [np.nan] * 4,
                [0.1 + 0.2, 0.3, 0.3, 0.3],
            ]
        )
    ).tolist() == [[1, 3], [-1, -1], [2, 1], [-1, -1], [-1, -1]]


# Kemeny


def agreed(order, n):
    return sum(n[i, j] for i, j in itertools.combinations(order, 2))


@pytest.mark.parametrize(
    'N, weights', [(2, None), (3, None), (4, None), (5, None), (6, [1, 2, 0.5, 0.3])]
)
def test_kemeny_against_all_orders(N, weights):
    x = make_scores(G=25, N=N, seed=N, missing=0.05)
    for n in pairwise_votes(x, weights):
        order, total = kemeny_order(n)
        every = list(itertools.permutations(range(N)))
        best = max(agreed(o, n) for o in every)
        assert total == pytest.approx(best)
        assert agreed(order, n) == pytest.approx(best)
        # the first of the equally good
        assert tuple(order) == min(o for o in every if agreed(o, n) > best - 1e-9)


def test_kemeny_ends_are_left_out_exactly_when_an_equally_good_order_turns_them_round():
    groups = [make_scores(G=30, N=N, K=K, shared=0) for N, K in ((5, 4), (4, 2), (3, 3))]
    seen = set()
    for n, order, (i, j) in (
        row for x in groups for row in zip(pairwise_votes(x), kemeny_orders(x), kemeny_ends(x))
    ):
        every = list(itertools.permutations(range(len(n))))
        best = max(agreed(o, n) for o in every)
        good = [o for o in every if agreed(o, n) == best]
        first, last = order[0], order[-1]
        turned = any(o.index(last) < o.index(first) for o in good)
        seen.add(turned)
        assert tuple(order) in good
        assert (i, j) == ((-1, -1) if turned else (first, last))
    assert seen == {True, False}


def test_of_equally_good_orders_the_one_closest_to_borda_is_taken():
    x = make_scores(G=60, N=4)
    for n, order, points in zip(pairwise_votes(x), kemeny_orders(x), borda_points(x)):
        place = np.argsort(np.argsort(-points, kind='stable'), kind='stable')
        every = list(itertools.permutations(range(4)))
        best = max(agreed(o, n) for o in every)
        assert tuple(order) == min(
            (o for o in every if agreed(o, n) == best), key=lambda o: [place[i] for i in o]
        )


def test_a_condorcet_winner_is_kemenys_first_and_a_loser_its_last():
    x = make_scores(G=200, missing=0.03)
    ends = condorcet(majorities(pairwise_votes(x)), scored_images(x))
    orders = kemeny_orders(x)
    assert (ends >= 0).any(axis=0).all()
    for (winner, loser), order in zip(ends, orders):
        assert winner < 0 or order[0] == winner
        assert loser < 0 or order[order >= 0][-1] == loser


def test_kemeny_refuses_above_its_limit_and_works_at_it():
    x = np.arange(KEMENY_LIMIT, dtype=float)[None, :, None]
    assert kemeny_orders(x)[0].tolist() == list(range(KEMENY_LIMIT))[::-1]
    with pytest.raises(InputError, match=f'limited to {KEMENY_LIMIT} images'):
        kemeny_orders(np.random.default_rng(0).random((1, KEMENY_LIMIT + 1, 2)))


# Plackett-Luce


def pl_loss(theta, scores, prior, weights):
    """Minus the log likelihood of the ballots and the prior's ties, one stage at a time; equal
    scores in the order of the images."""
    total = 0.0
    for k, w in enumerate(weights):
        order = sorted(
            (i for i in range(len(scores)) if math.isfinite(scores[i, k])),
            key=lambda i: -scores[i, k],
        )
        for s in range(len(order) - 1):
            total -= w * (theta[order[s]] - math.log(sum(math.exp(theta[i]) for i in order[s:])))
    for i, j in itertools.permutations(range(len(scores)), 2):
        total -= prior / 2 * (theta[i] - math.log(math.exp(theta[i]) + math.exp(theta[j])))
    return total


@pytest.mark.parametrize(
    'prior, missing, weights', [(1.0, 0, None), (0.1, 0, [1, 2, 0.5, 1]), (1.0, 0.15, None)]
)
def test_plackett_luce_against_a_general_optimiser(prior, missing, weights):
    from scipy.optimize import minimize

    x = make_scores(G=8, N=4, missing=missing, decimals=1)
    x = x[scored_images(x).all(axis=1)]
    w = weights or [1] * 4

    def centred_loss(theta, *args):
        return pl_loss(theta - theta.mean(), *args)

    for scores, theta in zip(x, plackett_luce(x, weights, prior)):
        best = minimize(
            centred_loss,
            np.zeros(4),
            args=(scores, prior, w),
            method='BFGS',
            options={'gtol': 1e-8},
        )
        np.testing.assert_allclose(theta, best.x - best.x.mean(), atol=2e-5)
        assert abs(theta.sum()) < 1e-12


def test_plackett_luce_against_a_grid():
    x = make_scores(G=1, N=3, seed=5)
    theta = plackett_luce(x)[0]
    grid = np.arange(-1.5, 1.51, 0.05)
    best = min(
        ((a, b, -a - b) for a in theta[0] + grid for b in theta[1] + grid),
        key=lambda t: pl_loss(t, x[0], 1.0, [1] * 4),
    )
    np.testing.assert_allclose(best, theta, atol=1e-9)


def test_plackett_luce_of_two_images_is_the_log_odds_with_a_tie():
    x = make_scores(N=2, K=5)
    n = pairwise_votes(x)
    theta = plackett_luce(x, prior=0.4)
    np.testing.assert_allclose(
        theta[:, 0] - theta[:, 1], np.log((n[:, 0, 1] + 0.2) / (n[:, 1, 0] + 0.2)), atol=1e-7
    )


def test_plackett_luce_recovers_known_strengths():
    known = np.array([1.0, 0.3, 0, -0.4, -0.9])
    rng = np.random.default_rng(0)
    draws = known[:, None] + rng.gumbel(size=(5, 5000))  # Gumbel noise makes Plackett-Luce rankings
    np.testing.assert_allclose(plackett_luce(draws[None])[0], known, atol=0.06)


# all rules


def test_images_exchanged_exchange_the_results():
    x, p = make_scores(missing=0.05), np.array([3, 0, 4, 1, 2])
    for points in (copeland_points, borda_points):
        assert np.array_equal(points(x[:, p]), points(x)[:, p], equal_nan=True)
    np.testing.assert_allclose(plackett_luce(x[:, p]), plackett_luce(x)[:, p], atol=1e-7)
    a, b = condorcet_ends(x[:, p]), condorcet_ends(x)
    assert np.array_equal(np.where(a < 0, -1, p[a]), b)
    for n, m in zip(pairwise_votes(x), pairwise_votes(x[:, p])):
        assert kemeny_order(n)[1] == kemeny_order(m)[1]
    tied = kemeny_ends(x)[:, 0] < 0
    single = [g for g in range(len(x)) if not tied[g] and len(set(borda_points(x)[g])) == 5]
    orders, there = kemeny_orders(x[:, p]), kemeny_orders(x)
    assert len(single) > 5
    for g in single:
        assert p[orders[g]].tolist() == there[g].tolist()


def test_a_monotone_change_of_a_scorer_changes_nothing():
    x = make_scores(missing=0.05)
    y = x.copy()
    y[..., 0] = np.exp(x[..., 0])
    y[..., 3] = 1000 * x[..., 3] ** 3 - 7
    for rule in RANK_RULES:
        pd.testing.assert_frame_equal(
            rank_labels(x, range(60), rule, 'soft'), rank_labels(y, range(60), rule, 'soft')
        )
    for f in (borda_points, copeland_points, kemeny_orders, plackett_luce):
        assert np.array_equal(f(x), f(y), equal_nan=True)
    assert condorcet_report(x) == condorcet_report(y)


@pytest.mark.parametrize('weights', [None, (1.0, 2.0, 0.5, 1.0)])
@pytest.mark.parametrize('rule', list(RANK_RULES))
def test_on_pairs_every_rule_is_the_plain_majority(rule, weights):
    x = make_scores(G=400, N=2, missing=0.1, decimals=1)
    x[:40, 1, :2] = x[:40, 0, :2]
    v = votes(x)
    t = rank_labels(x, range(400), rule, weights=weights)
    assert np.array_equal(np.select([t.i == 0, t.i == 1], [1, -1], 0), majority(v, weights))
    assert set(np.unique(majority(v, weights))) == {-1, 0, 1}
    assert np.array_equal(t[['w0', 'w1']], np.stack([t.i >= 0, np.zeros(400)], axis=1))
    soft = rank_labels(x, range(400), rule, 'soft', weights=weights)
    w = shared_weights(v, weights)[np.arange(400)[:, None], np.stack([t.i, t.j], axis=1)]
    np.testing.assert_allclose(
        soft[['w0', 'w1']], np.where(t.i.to_numpy()[:, None] >= 0, w, 0), atol=1e-7
    )


@pytest.mark.parametrize('rule', list(RANK_RULES))
def test_unanimous_scorers_decide_every_rule(rule):
    x = np.random.default_rng(0).random((20, 6, 1)).repeat(3, axis=2)
    t = rank_labels(x, range(20), rule, 'soft')
    assert np.array_equal(t.i, x[..., 0].argmax(axis=1))
    assert np.array_equal(t.j, x[..., 0].argmin(axis=1))
    assert (t.w0 == 1).all()
    assert (t.w1 == 0).all()


@pytest.mark.parametrize('rule', list(RANK_RULES))
@pytest.mark.parametrize(
    'scores, said',
    [
        (np.ones((2, 1, 3)), 'one image'),
        (np.full((2, 3, 3), np.nan), 'all are missing'),
        ([[[1.0, np.nan, np.nan], [np.nan, 1, np.nan]]], 'no scorer'),
        (np.ones((2, 2)), 'shape'),
    ],
)
def test_every_rule_refuses_in_one_line(rule, scores, said):
    with pytest.raises(InputError, match=said) as e:
        rank_labels(scores, range(len(scores)), rule)
    assert '\n' not in str(e.value)


def test_unknown_rules_labels_and_settings_are_refused():
    x = make_scores()
    with pytest.raises(InputError, match='unknown rule'):
        rank_labels(x, range(60), 'approval')
    with pytest.raises(InputError, match='unknown label'):
        rank_labels(x, range(60), 'borda', 'firm')
    with pytest.raises(InputError, match='prior'):
        plackett_luce(x, prior=0)


# labels


@pytest.mark.parametrize('label', list(RANK_LABELS))
def test_labels_by_the_weights_of_their_pair(label):
    x = make_scores(G=80, missing=0.02)
    t = rank_labels(x, range(80), 'borda', label)
    pairs = t[['i', 'j']].to_numpy()
    used = t.i >= 0
    y = take_pairs(x, pairs)
    expected = {
        'hard': np.tile([1.0, 0], (80, 1)),
        'soft': shared_weights(votes(y)),
        'margin': margin_weights(y, np.nanstd(x, axis=(0, 1))),
        'confidence': confidence_weights(votes(y)),
    }[label]
    np.testing.assert_allclose(
        t[['w0', 'w1']], np.where(used.to_numpy()[:, None], expected, 0), atol=1e-6
    )
    assert (t[['w0', 'w1']] >= 0).all(axis=None)
    assert (t.w0 + t.w1 <= 1 + 1e-6).all()


def test_equal_scores_vote_for_the_earlier_image_of_the_group():
    x = np.array([[[1.0, 5, 5], [2, 5, 6]]])
    assert votes_on(x, np.array([[1, 0]])).tolist() == [[1, -1, 1]]
    assert votes_on(x, np.array([[0, 1]])).tolist() == [[-1, 1, -1]]


@pytest.mark.parametrize('label', list(RANK_LABELS))
def test_groups_that_are_all_tied_are_left_out_and_not_refused(label):
    assert rank_labels(CIRCLE, ['c'], 'borda', label).iloc[0].tolist() == ['c', -1, -1, 0, 0]


def test_the_same_scores_give_the_same_labels():
    x = make_scores(missing=0.1)
    for rule, label in itertools.product(RANK_RULES, RANK_LABELS):
        pd.testing.assert_frame_equal(
            rank_labels(x, range(60), rule, label), rank_labels(x.copy(), range(60), rule, label)
        )
