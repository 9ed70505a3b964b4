"""Calibrated rewards, frontiers, their pairs and targets: identities, brute force, worked numbers,
refusals."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.voting.groups import (
    LOGIT_SCALES,
    best_worst,
    calibrated_rewards,
    capo_labels,
    check_groups,
    complete_images,
    dominates,
    draw_pairs,
    frontier_pairs,
    frontiers,
    group_table,
    sum_labels,
    sum_reward,
    target_difference,
    target_weights,
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def make_scores(G=40, N=5, K=3, seed=0, missing=0.0, levels=None):
    """Scores that share half of their opinion, on wild scales; `levels` whole numbers for many
    equal ones; the share `missing` is NaN."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((G, N, 1)) + rng.standard_normal((G, N, K))
    if levels:
        x = np.round(np.clip(x, -2, 2) * levels / 4)
    x = x * 10.0 ** rng.integers(-2, 3, K)
    x[rng.random(x.shape) < missing] = np.nan
    return x


# which images take part


def test_an_image_takes_part_only_if_every_scorer_has_scored_it():
    x = make_scores(missing=0.2)
    x[0, 0, 0] = np.inf
    x[0, 1, 1] = -np.inf
    assert np.array_equal(
        complete_images(x),
        [[all(math.isfinite(s) for s in image) for image in group] for group in x],
    )


@pytest.mark.parametrize(
    'scores, said',
    [
        (np.ones((3, 1, 2)), 'one image'),
        (np.ones((3, 2)), 'shape'),
        (np.ones((0, 2, 2)), 'shape'),
        (np.full((3, 2, 2), np.nan), 'all are missing'),
    ],
)
def test_bad_scores_are_refused_in_one_line(scores, said):
    for f in (
        check_groups,
        complete_images,
        lambda x: calibrated_rewards(x, 1),
        frontiers,
        frontier_pairs,
        lambda x: capo_labels(x, range(len(x)), 1),
        lambda x: sum_labels(x, range(len(x)), 1) if np.ndim(x) == 3 else check_groups(x),
    ):
        with pytest.raises(InputError, match=said) as e:
            f(scores)
        assert '\n' not in str(e.value)


def test_no_group_with_two_complete_images_is_refused():
    with pytest.raises(InputError, match='all 2 scorers'):
        calibrated_rewards([[[1.0, np.nan], [np.nan, 2], [3, 4]]], 1)


# calibrated rewards


@pytest.mark.parametrize('missing', [0, 0.15])
def test_calibrated_rewards_against_the_definition(missing):
    x, scale = make_scores(missing=missing), np.array([0.5, 20, 0.1])
    found = calibrated_rewards(x, scale)
    for g, group in enumerate(x):
        here = [i for i in range(5) if np.isfinite(group[i]).all()]
        for i, k in itertools.product(range(5), range(3)):
            if i not in here or len(here) < 2:
                assert np.isnan(found[g, i, k])
                continue
            chances = [
                sigmoid(scale[k] * (group[i, k] - group[j, k]))
                if abs(scale[k] * (group[i, k] - group[j, k])) < 500
                else float(group[i, k] > group[j, k])
                for j in here
                if j != i
            ]
            assert found[g, i, k] == pytest.approx(sum(chances) / len(chances), abs=1e-12)


def test_the_mean_over_a_group_is_one_half_and_all_lie_between_0_and_1():
    for scale in (1e-3, 1.0, 100.0):
        r = calibrated_rewards(make_scores(missing=0.1), scale)
        mean = r[np.isfinite(r).any(axis=(1, 2))]
        np.testing.assert_allclose(np.nanmean(mean, axis=1), 0.5, rtol=0, atol=1e-15 * 10)
        assert np.nanmin(r) >= 0
        assert np.nanmax(r) <= 1


def test_two_images_get_sigmoid_of_the_difference():
    x = make_scores(N=2) / 100
    r = calibrated_rewards(x, 2.0)
    np.testing.assert_allclose(r[:, 0], 1 / (1 + np.exp(-2 * (x[:, 0] - x[:, 1]))), atol=1e-15)
    np.testing.assert_allclose(r.sum(axis=1), 1, atol=1e-15)


def test_a_shift_changes_nothing_and_a_scale_a_scorer_is_a_scale_of_its_scores():
    x = make_scores()
    scale = np.array([1.0, 7, 0.2])
    np.testing.assert_allclose(
        calibrated_rewards(x, scale), calibrated_rewards(x * scale + [3.0, -1, 9], 1), atol=1e-12
    )


def test_raw_cosines_all_get_one_half():
    x = 0.27 + 0.01 * np.random.default_rng(0).standard_normal((50, 8, 1))
    assert np.abs(calibrated_rewards(x, 1) - 0.5).max() < 0.02
    assert np.abs(calibrated_rewards(x, LOGIT_SCALES['hps']) - 0.5).max() > 0.3


def test_bad_scales_are_refused():
    for bad in ([1, 1], 0, -1, [1, 1, np.inf], np.nan):
        with pytest.raises(InputError, match='scales'):
            calibrated_rewards(make_scores(), bad)


# frontiers


def loop_dominates(a, b):
    return all(x >= y for x, y in zip(a, b)) and any(x > y for x, y in zip(a, b))


@pytest.mark.parametrize('missing, levels', [(0, None), (0.1, None), (0, 3), (0.1, 4)])
def test_domination_against_a_loop(missing, levels):
    x = make_scores(missing=missing, levels=levels)
    over, here = dominates(x), complete_images(x)
    for g, i, j in itertools.product(range(len(x)), range(5), range(5)):
        assert over[g, i, j] == (
            bool(here[g, i] and here[g, j]) and loop_dominates(x[g, i], x[g, j])
        )


@pytest.mark.parametrize('levels', [None, 3])
@pytest.mark.parametrize('K', [1, 2, 3])
def test_the_frontier_against_all_subsets(K, levels):
    """The upper frontier is the one subset whose images nobody dominates while each image outside
    is dominated by one inside."""
    x = make_scores(K=K, levels=levels)
    upper, _ = frontiers(x)
    for group, found in zip(x, upper):
        fits = [
            set(s)
            for r in range(1, 6)
            for s in itertools.combinations(range(5), r)
            if not any(loop_dominates(group[j], group[i]) for i in s for j in range(5))
            and all(
                any(loop_dominates(group[i], group[j]) for i in s) for j in set(range(5)) - set(s)
            )
        ]
        assert fits == [set(np.flatnonzero(found).tolist())]


@pytest.mark.parametrize('missing', [0, 0.1])
def test_the_lower_frontier_is_the_upper_one_of_the_negated_rewards(missing):
    x = make_scores(missing=missing, levels=5)
    upper, lower = frontiers(x)
    turned = frontiers(-x)
    assert np.array_equal(turned[0], lower)
    assert np.array_equal(turned[1], upper)
    assert not np.array_equal(upper, lower)


def test_equal_images_are_on_the_frontier_together():
    upper, lower = frontiers([[[1.0, 1], [1, 1], [0, 0]]])
    assert upper.tolist() == [[True, True, False]]
    assert lower.tolist() == [[False, False, True]]
    assert frontier_pairs(np.ones((1, 3, 2))).sum() == 0
    assert frontier_pairs(np.ones((1, 3, 2)), 'keep').sum() == 6


def test_a_monotone_change_of_a_scorer_leaves_the_frontiers():
    x = make_scores(missing=0.1)
    y = x.copy()
    y[..., 0] = np.arctan(x[..., 0])
    y[..., 2] = x[..., 2] ** 3 - 5
    for a, b in zip(frontiers(x), frontiers(y)):
        assert np.array_equal(a, b)
    spread = np.nanstd(x, axis=(0, 1))
    for a, b in zip(frontiers(x), frontiers(calibrated_rewards(x, 1 / spread))):
        assert np.array_equal(a & (complete_images(x).sum(1) > 1)[:, None], b)


def test_images_exchanged_exchange_the_results():
    x = make_scores(missing=0.1)
    p = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        calibrated_rewards(x[:, p], 0.1), calibrated_rewards(x, 0.1)[:, p], atol=1e-12
    )
    for a, b in zip(frontiers(x[:, p]), frontiers(x)):
        assert np.array_equal(a, b[:, p])
    for rule in ('drop', 'keep'):
        assert np.array_equal(frontier_pairs(x[:, p], rule), frontier_pairs(x, rule)[:, p][:, :, p])
    full = make_scores(K=1)[..., 0]
    assert np.array_equal(p[best_worst(full[:, p])], best_worst(full))


# pairs


def test_dropping_leaves_a_pair_exactly_where_an_image_dominates_another():
    """Every image that stays above dominates one, every image that stays below is dominated, and
    the two sets are empty together."""
    x = make_scores(G=300, N=4, K=4, missing=0.02)
    over, pairs = dominates(x), frontier_pairs(x)
    assert np.array_equal(pairs.any(axis=(1, 2)), over.any(axis=(1, 2)))
    assert 0 < pairs.any(axis=(1, 2)).mean() < 1
    assert not (pairs.any(axis=2) & ~over.any(axis=2)).any()
    assert not (pairs.any(axis=1) & ~over.any(axis=1)).any()


def test_keeping_removes_only_the_pair_of_an_image_with_itself():
    x = make_scores(levels=4)
    upper, lower = frontiers(x)
    pairs = frontier_pairs(x, 'keep')
    assert pairs.sum() == (upper.sum(1) * lower.sum(1) - (upper & lower).sum(1)).sum()
    assert not np.diagonal(pairs, axis1=1, axis2=2).any()
    # the pairs of 'drop' are among them
    assert (pairs & frontier_pairs(x)).sum() == frontier_pairs(x).sum()
    with pytest.raises(InputError, match="'drop' or 'keep'"):
        frontier_pairs(x, 'both')


def test_one_scorer_has_the_best_against_the_worst():
    x = make_scores(K=1, N=6, missing=0.1)
    expected = [np.argwhere(p)[0] if p.any() else (-1, -1) for p in frontier_pairs(x)]
    assert np.array_equal(best_worst(x[..., 0]), expected)
    assert frontier_pairs(x).sum(axis=(1, 2)).max() == 1
    for group, (i, j) in zip(x[..., 0], best_worst(x[..., 0])):
        assert i < 0 or (group[i], group[j]) == (np.nanmax(group), np.nanmin(group))


def test_of_equal_images_the_earlier_is_best_and_the_later_is_worst():
    assert best_worst(
        [[1, 5, 5, 1], [2, 2, 2, 2], [np.nan, 3, np.nan, np.nan], [np.nan, 3, 4, 4]]
    ).tolist() == [[1, 3], [-1, -1], [-1, -1], [2, 1]]


def test_draws_are_allowed_even_and_a_function_of_seed_step_and_id():
    x = make_scores(G=30, N=6, K=2)
    allowed, ids = frontier_pairs(x), [f'p{g}' for g in range(30)]
    drawn = draw_pairs(allowed, ids, 1, 2)
    assert all(allowed[g, i, j] for g, (i, j) in enumerate(drawn) if i >= 0)
    assert np.array_equal(drawn[:, 0] >= 0, allowed.any(axis=(1, 2)))
    assert np.array_equal(draw_pairs(allowed[::-1], ids[::-1], 1, 2)[::-1], drawn)
    assert np.array_equal(draw_pairs(allowed[7:9], ids[7:9], 1, 2), drawn[7:9])
    assert not np.array_equal(draw_pairs(allowed, ids, 1, 3), drawn)
    assert not np.array_equal(draw_pairs(allowed, ids, 2, 2), drawn)
    four = np.zeros((1, 3, 3), bool)
    four[0, [0, 0, 1, 1], [1, 2, 2, 0]] = True
    counts = pd.Series(
        [tuple(draw_pairs(four, ['g'], 0, t)[0]) for t in range(4000)]
    ).value_counts()
    assert len(counts) == 4
    assert np.abs(counts - 1000).max() < 4 * math.sqrt(4000 * 0.25 * 0.75)
    with pytest.raises(InputError, match='ids'):
        draw_pairs(allowed, ids[1:], 0, 0)


# targets and tables


def test_the_weights_hold_the_signed_target():
    d = np.array([1, 0.3, 0, -0.3, -1, np.nan])
    w = target_weights(d)
    assert w.dtype == np.float32
    assert (w >= 0).all()
    assert w[5].tolist() == [0, 0]
    np.testing.assert_allclose((w[:, 0] - w[:, 1])[:5], d[:5], atol=1e-7)
    np.testing.assert_allclose(w[:5].sum(axis=1), 1, atol=1e-7)
    with pytest.raises(InputError, match='target'):
        target_weights([1.5])


def test_the_table_has_the_documented_columns_and_leaves_out_what_has_no_pair():
    t = group_table([7, 'b'], [[0, 1], [-1, -1]], [[0.75, 0.25], [1, 0]])
    assert t.dtypes.astype(str).to_dict() | {'group_id': ''} == {
        'group_id': '',
        'i': 'int64',
        'j': 'int64',
        'w0': 'float32',
        'w1': 'float32',
    }
    assert t.values.tolist() == [['7', 0, 1, 0.75, 0.25], ['b', -1, -1, 0, 0]]
    with pytest.raises(InputError, match='each a group'):
        group_table(['a'], [[0, 1], [0, 1]], [[1, 0], [1, 0]])


def test_capo_labels_by_the_definition():
    x = make_scores(missing=0.05)
    ids = [f'g{g}' for g in range(len(x))]
    r = calibrated_rewards(x, 0.1)
    t = capo_labels(x, ids, 0.1, seed=4, step=9)
    for row, rewards, pairs in zip(t.itertuples(), r, frontier_pairs(x)):
        if row.i < 0:
            assert not pairs.any()
            assert row.w0 == row.w1 == 0
            continue
        assert pairs[row.i, row.j]
        assert row.w0 - row.w1 == pytest.approx((rewards[row.i] - rewards[row.j]).mean(), abs=1e-6)


def test_a_row_depends_on_its_group_seed_and_step_only():
    x = make_scores(N=8)
    ids = [f'g{g}' for g in range(len(x))]
    t = capo_labels(x, ids, 1.0, step=5)
    pd.testing.assert_frame_equal(
        capo_labels(x[[11, 3]], ['g11', 'g3'], 1.0, step=5), t.iloc[[11, 3]].reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(capo_labels(x, ids, 1.0, step=5), t)
    assert not capo_labels(x, ids, 1.0, step=6).equals(t)


def test_target_one_is_a_hard_label_and_ipo():
    x = make_scores()
    t = capo_labels(x, range(len(x)), 1.0, target='one')
    calibrated = capo_labels(x, range(len(x)), 1.0)
    assert np.array_equal(t[['i', 'j']], calibrated[['i', 'j']])
    assert np.array_equal(t.w0, (t.i >= 0))
    assert not t.w1.any()
    with pytest.raises(InputError, match='unknown target'):
        capo_labels(x, range(len(x)), 1.0, target='two')


def test_a_conflicting_pair_is_dropped_or_kept_with_its_sign():
    x = np.array([[[1.0, 0], [0, 3]]])
    d = (sigmoid(1) - sigmoid(-1) + sigmoid(-3) - sigmoid(3)) / 2
    assert capo_labels(x, ['a'], 1.0).i.tolist() == [-1]
    t = pd.concat([capo_labels(x, ['a'], 1.0, step=s, duplicates='keep') for s in range(30)])
    assert set(t.i) == {0, 1}
    assert np.allclose(t.w0 - t.w1, np.where(t.i == 0, d, -d), atol=1e-6)


def test_sum_is_capo_of_one_reward():
    x = make_scores(N=6, missing=0.05)
    scale = [2.0, 0.5, 0.01]
    reward = sum_reward(x, scale, [1, 1, 2])
    np.testing.assert_allclose(reward, np.where(complete_images(x), x @ [2, 0.5, 0.02], np.nan))
    by_sum = sum_labels(x, range(len(x)), scale, [1, 1, 2])
    by_capo = capo_labels(reward[..., None], range(len(x)), 1.0)
    pd.testing.assert_frame_equal(by_sum, by_capo)


def test_a_target_is_the_mean_over_scorers_of_the_difference():
    r = np.array([[[0.9, 0.2], [0.1, 0.6]], [[0.5, 0.5], [0.5, 0.5]]])
    assert np.allclose(
        target_difference(r, np.array([[0, 1], [-1, -1]])),
        [(0.8 - 0.4) / 2, np.nan],
        equal_nan=True,
    )
