"""Votes, majority, ties and the baselines' labels: identities, independent implementations, awkward
tables."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.voting.groups import calibrated_rewards
from balanceddpo.voting.labels import (
    LABELLERS,
    SMPO_LIMITS,
    LabelConfig,
    agreement,
    break_ties,
    cohen_kappa,
    confidence_votes,
    confidence_weights,
    drawn_scorer,
    equal_scores,
    hard_weights,
    label_pairs,
    label_weights,
    majority,
    margin_weights,
    read_labels,
    score_margin,
    score_units,
    shared_weights,
    smoothed_weights,
    tie_probability,
    tie_report,
    vote_splits,
    votes,
    write_labels,
)

METHODS = [
    LabelConfig(m)
    for m in ('majority', 'human', 'random', 'sum_scores', 'sum_losses', 'zscore', 'minmax')
] + [LabelConfig('single', scorer='b')]


def make_scores(n=400, K=4, seed=0, missing=0.05):
    "Correlated scores on wildly different scales, some missing."
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, 2, 1)) + rng.standard_normal((n, 2, K))) * 10.0 ** rng.integers(
        -3, 3, K
    ) + rng.uniform(-5, 5, K)
    x[rng.random(x.shape) < missing] = np.nan
    return x.astype(np.float32)


def make_table(scores, label_0=None, names='abcdefgh'):
    n, _, K = scores.shape
    table = pd.DataFrame(
        {
            'pair_id': np.repeat([f'pair{i}' for i in range(n)], 2),
            'slot': np.tile([0, 1], n),
            'image_id': 'x',
            'prompt_id': 'y',
        }
    )
    if label_0 is not None:
        table['label_0'] = np.repeat(label_0, 2)
    return pd.concat([table, pd.DataFrame(scores.reshape(-1, K), columns=list(names[:K]))], axis=1)


def make_labels_0(n, seed=1):
    return np.random.default_rng(seed).choice([0.0, 0.5, 1.0, np.nan], n)


def loop_votes(scores):
    "Eq. 6 one pair and one scorer at a time."
    out = np.zeros((len(scores), scores.shape[2]), int)
    for i, pair in enumerate(scores):
        for k in range(scores.shape[2]):
            a, b = float(pair[0, k]), float(pair[1, k])
            if math.isfinite(a) and math.isfinite(b):
                out[i, k] = 1 if a >= b else -1
    return out


# votes and majority


@pytest.mark.parametrize('K', [1, 2, 3, 4, 5, 8])
def test_votes_and_majority_against_a_loop(K):
    x = make_scores(K=K, seed=K)
    x[:20, 1] = x[:20, 0]  # planted equal scores
    v = votes(x)
    assert v.dtype == np.int8
    assert np.array_equal(v, loop_votes(x))
    expected = [(sum(row) > 0) - (sum(row) < 0) for row in loop_votes(x).tolist()]
    assert majority(v).tolist() == expected


def test_missing_scores_never_vote():
    for bad in (np.nan, np.inf, -np.inf):
        for slot in (0, 1):
            x = np.ones((1, 2, 3))
            x[0, slot, 1] = bad
            assert votes(x).tolist() == [[1, 0, 1]]


def test_swapping_the_pair_reverses_every_vote_but_those_of_equal_scores():
    x = make_scores()
    x[:10, 1, 2] = x[:10, 0, 2]
    there, back = votes(x), votes(x[:, ::-1])
    equal = np.isfinite(x).all(1) & (x[:, 0] == x[:, 1])
    assert equal[:10, 2].any()
    assert np.array_equal(there[~equal], -back[~equal])
    assert (there[equal] == 1).all()
    assert (back[equal] == 1).all()


def test_votes_do_not_depend_on_a_scorers_scale():
    x = make_scores()
    assert np.array_equal(
        votes(x), votes(x.astype(float) * [1e-3, 7.0, 1e4, 2.0] + [5.0, -1.0, 0.0, 100.0])
    )


def test_weights():
    v = np.array(list(itertools.product([-1, 0, 1], repeat=3)))
    assert np.array_equal(majority(v), majority(v, [2.5, 2.5, 2.5]))
    assert np.array_equal(majority(v, [1, 0, 0]), v[:, 0])
    # .1 + .2 - .3 is not 0 in floating point
    assert (
        majority([[1, 1, -1], [1, 1, -1]], [0.1, 0.2, 0.3]).tolist()
        == majority([[1, -1, -1]], [7e9, 3e9, 4e9]).tolist() * 2
        == [0, 0]
    )
    assert shared_weights([[1, 1, -1], [-1, 0, 1]], [1, 2, 5]).tolist() == [
        [0.375, 0.625],
        [0.625, 0.125],
    ]
    # the first has a veto
    assert np.array_equal(
        majority(v, [3, 1, 1]), np.where(v[:, 0], v[:, 0], np.sign(v[:, 1:].sum(1)))
    )
    for bad in ([1, 1], [1, 1, -1], [0, 0, 0], [1, 1, np.nan]):
        with pytest.raises(InputError, match='weights'):
            majority(v, bad)


def test_wrong_shapes_are_refused():
    for shape in ((4, 3), (4, 3, 2), (2,)):
        with pytest.raises(InputError, match='shape'):
            votes(np.zeros(shape))


# ties


@pytest.mark.parametrize('K', [1, 2, 3, 4, 5, 6])
def test_tie_probability_by_enumeration(K):
    every = np.array(list(itertools.product([1, -1], repeat=K)))
    assert tie_probability(K) == np.mean(majority(every) == 0)
    p = 0.7
    chance = np.where(every > 0, p, 1 - p).prod(1)
    assert tie_probability(K, p) == pytest.approx(chance[majority(every) == 0].sum())
    splits = vote_splits(every)
    assert splits.share.tolist() == pytest.approx(splits.independent.tolist())
    assert splits.n.sum() == 2**K


def test_tie_rules_touch_only_ties():
    s = np.array([1, -1, 0, 0, 0])
    human = np.array([-1, 1, 1, -1, 0])
    margins = np.array([-3.0, 3.0, 0.1, -0.1, np.nan])
    assert break_ties(s, 'drop').tolist() == [1, -1, 0, 0, 0]
    assert break_ties(s, 'first').tolist() == [1, -1, 1, 1, 1]
    assert (
        break_ties(s, 'human', human).tolist()
        == break_ties(s, 'margin', margins=margins).tolist()
        == [1, -1, 1, -1, 0]
    )
    with pytest.raises(InputError, match='unknown tie rule'):
        break_ties(s, 'coin')
    with pytest.raises(InputError, match='human labels'):
        break_ties(s, 'human')


def test_a_pair_without_votes_stays_undecided_under_every_rule_and_is_counted():
    x = make_scores(missing=0)
    x[7] = np.nan
    x[8, 0] = np.nan
    table = make_table(x, np.ones(len(x)))
    for rule in ('drop', 'human', 'first', 'margin'):
        labels = label_pairs(table, LabelConfig(ties=rule))
        assert labels.s[[7, 8]].tolist() == [0, 0]
        assert not labels.loc[[7, 8], ['w0', 'w1']].to_numpy().any()
        report = tie_report(labels)
        assert report['no_vote'] == 2
        assert report['left_out'] == 2 + (report['ties'] if rule == 'drop' else 0)
        assert report['ties'] == (np.abs(loop_votes(x).sum(1)) == 0).sum() - 2 > 0


def test_a_scorer_of_weight_zero_cannot_make_a_tie():
    x = np.zeros((1, 2, 2))
    x[0, 0, 0] = np.nan  # only scorer b votes, and it weighs nothing
    assert label_pairs(make_table(x), LabelConfig(ties='first', weights=(1.0, 0.0))).s.tolist() == [
        0
    ]


# labels


@pytest.mark.parametrize('config', METHODS, ids=lambda c: c.method)
def test_swapping_the_pairs_swaps_the_labels(config):
    x = make_scores()
    label_0 = make_labels_0(len(x))
    a = label_pairs(make_table(x, label_0), config)
    b = label_pairs(make_table(x[:, ::-1], 1 - label_0), config)
    assert np.array_equal(a.s, -b.s)
    assert np.array_equal(a[['w0', 'w1']], b[['w1', 'w0']])
    np.testing.assert_allclose(a.margin, -b.margin, rtol=1e-6)
    for step in (0, 5):
        assert np.array_equal(
            label_weights(a, config, step), label_weights(b, config, step)[:, ::-1]
        )


@pytest.mark.parametrize('config', METHODS, ids=lambda c: c.method)
def test_labels_do_not_depend_on_the_order_of_rows(config):
    x = make_scores()
    table = make_table(x, make_labels_0(len(x)))
    a = label_pairs(table, config).set_index('pair_id')
    b = label_pairs(table.sample(frac=1, random_state=0), config).set_index('pair_id')
    pd.testing.assert_frame_equal(a, b.loc[a.index], rtol=1e-6)


@pytest.mark.parametrize(
    'method,unit', [('sum_scores', lambda c: 1.0), ('zscore', np.std), ('minmax', np.ptp)]
)
def test_sums_of_scores_against_normalising_each_score(method, unit):
    "Normalise every score, add, compare: shifts must cancel."
    x = make_scores(missing=0).astype(float)
    z = np.empty_like(x)
    for k in range(x.shape[2]):
        z[..., k] = (x[..., k] - x[..., k].min()) / unit(x[..., k])
    total = z.sum(-1)
    assert label_pairs(make_table(x.astype(np.float32)), LabelConfig(method)).s.tolist() == [
        1 if a >= b else -1 for a, b in total
    ]


def test_a_shift_or_a_new_scale_moves_the_plain_sum_but_not_the_normalised_ones():
    x = make_scores(missing=0)
    y = x.astype(float) * [1, 1, 1e6, 1]
    for m in ('zscore', 'minmax', 'majority'):
        assert np.array_equal(*(label_pairs(make_table(t), LabelConfig(m)).s for t in (x, y)))
    assert np.array_equal(
        label_pairs(make_table(y), LabelConfig('sum_scores')).s,
        label_pairs(make_table(y), LabelConfig('single', scorer='c')).s,
    )


def test_missing_scores_are_left_out_of_sums():
    x = np.array([[[1.0, np.nan], [0.0, 5.0]], [[np.nan, 1.0], [2.0, 3.0]], [[np.nan] * 2] * 2])
    assert score_margin(x, np.ones(2))[:2].tolist() == [1.0, -2.0]
    assert np.isnan(score_margin(x, np.ones(2))[2])
    assert label_pairs(make_table(x), LabelConfig('sum_scores')).s.tolist() == [1, -1, 0]
    assert score_units(x, 'minmax').tolist() == [2.0, 4.0]
    assert (
        score_units(np.full((3, 2, 2), np.nan), 'zscore').tolist()
        == score_units(np.ones((3, 2, 2)), 'zscore').tolist()
        == [1, 1]
    )


def test_human_labels():
    x = make_scores(4, missing=0)
    table = make_table(x, [1.0, 0.0, 0.5, None])
    labels = label_pairs(table, LabelConfig('human'))
    assert labels.s.tolist() == [1, -1, 0, 0]
    assert labels[['w0', 'w1']].to_numpy().tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
        [0, 0],
    ]
    # a tie is broken, a missing label is not
    assert label_pairs(table, LabelConfig('human', ties='first')).s.tolist() == [1, -1, 1, 0]
    with pytest.raises(InputError, match='label_0'):
        label_pairs(make_table(x), LabelConfig('human'))
    with pytest.raises(InputError, match='label_0'):
        label_pairs(make_table(x, [1, 2, 0, 0]), LabelConfig('human'))


def test_sum_losses_is_the_share_of_votes_and_random_its_mean():
    x = make_scores()
    table = make_table(x)
    v = loop_votes(x)
    labels = label_pairs(table, LabelConfig('sum_losses'))
    np.testing.assert_allclose(
        labels[['w0', 'w1']], np.stack([(v == 1).mean(1), (v == -1).mean(1)], 1)
    )
    weights = (1.0, 2.0, 3.0, 4.0)
    config = LabelConfig('random', weights=weights, seed=3)
    labels = label_pairs(table, config)
    draws = np.bincount([drawn_scorer(config, 4, t) for t in range(5000)], minlength=4)
    assert ((draws / 5000 - np.array(weights) / 10) ** 2).max() < 0.02**2
    for t in range(20):  # one scorer a step, for all pairs
        k = drawn_scorer(config, 4, t)
        assert np.array_equal(label_weights(labels, config, t), hard_weights(v[:, k]))
        # a batch of them
        assert np.array_equal(label_weights(labels.iloc[5:9], config, t), hard_weights(v[5:9, k]))
    assert [drawn_scorer(config, 4, t) for t in range(50)] != [
        drawn_scorer(LabelConfig('random', weights=weights, seed=4), 4, t) for t in range(50)
    ]


def test_one_scorer_makes_all_methods_one():
    x = make_scores(K=1, missing=0)
    x[:5, 1] = x[:5, 0]
    expected = votes(x)[:, 0].tolist()
    for m in ('majority', 'random', 'sum_scores', 'sum_losses', 'zscore', 'minmax'):
        assert label_pairs(make_table(x), LabelConfig(m)).s.tolist() == expected
    assert label_pairs(make_table(x), LabelConfig('single', scorer='a')).s.tolist() == expected


def test_a_subset_of_scorers_votes_alone():
    x = make_scores()
    some = LabelConfig(scorers=('d', 'a', 'b'))
    labels = label_pairs(make_table(x), some)
    assert [c for c in labels if c.startswith('vote_')] == ['vote_d', 'vote_a', 'vote_b']
    assert np.array_equal(labels.s, majority(votes(x[..., [3, 0, 1]])))


def test_the_label_table_has_the_documented_columns_and_types():
    labels = label_pairs(make_table(make_scores()))
    assert labels.dtypes.astype(str).to_dict() | {'pair_id': ''} == {
        'pair_id': '',
        **{f'vote_{k}': 'int8' for k in 'abcd'},
        'human': 'int8',
        's': 'int8',
        'w0': 'float32',
        'w1': 'float32',
        'margin': 'float32',
    }
    assert set(LABELLERS) == {
        'human',
        'single',
        'random',
        'sum_scores',
        'sum_losses',
        'zscore',
        'minmax',
        'majority',
        'margin',
        'confidence',
        'smoothed',
    }


@pytest.mark.parametrize(
    'spoil,match',
    [
        (lambda t: t.drop(index=3), "'pair1' has 0 rows for slot 1"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "'pair0' has 2 rows for slot 0"),
        (lambda t: t.assign(slot=2), 'slot'),
        (lambda t: t.assign(slot=0.5), 'slot'),
        (lambda t: t.drop(columns='pair_id'), "no column 'pair_id'"),
        (lambda t: t.assign(pair_id=None), 'pair_id'),
        (lambda t: t[['pair_id', 'slot']], 'needs scorers, and there are none'),
    ],
    ids=['missing', 'doubled', 'slot2', 'half', 'no column', 'no id', 'no scorer'],
)
def test_bad_tables_are_refused_by_name(spoil, match):
    with pytest.raises(InputError, match=match):
        label_pairs(spoil(make_table(make_scores(10))))


def test_bad_settings_are_refused():
    table = make_table(make_scores(10))
    with pytest.raises(InputError, match='method single needs a scorer'):
        LabelConfig('single')
    with pytest.raises(InputError, match='majority takes no scorer'):
        LabelConfig('majority', scorer='a')
    with pytest.raises(InputError, match='method smoothed needs a scorer'):
        LabelConfig('smoothed')
    with pytest.raises(InputError, match='limits'):
        LabelConfig(limits=(0.0, 1.0))
    with pytest.raises(InputError, match="no scorer is called 'z': there are a, b, c, d"):
        label_pairs(table, LabelConfig('single', scorer='z'))
    with pytest.raises(InputError, match='given are made by other code'):
        label_pairs(table, LabelConfig('given'))
    with pytest.raises(InputError, match='at least three scorers, not a, b'):
        label_pairs(table, LabelConfig('confidence', scorers=('a', 'b')))
    with pytest.raises(InputError, match="no scorer 'z'"):
        label_pairs(table, LabelConfig(scorers=('a', 'z')))
    with pytest.raises(InputError, match='weights'):
        label_pairs(table, LabelConfig(weights=(1.0, 2.0)))


# votes that count less than one


def close_scores(n=60, missing=0.0, seed=0):
    "Scores of four scorers in one unit, some missing."
    rng = np.random.default_rng(seed)
    x = 0.55 * rng.standard_normal((n, 2, 1)) + 0.84 * rng.standard_normal((n, 2, 4))
    x[rng.random(x.shape) < missing] = np.nan
    return x


def test_margin_votes_by_hand_and_swapped():
    x = np.array(
        [
            [[math.log(3), 0], [0, 2 * math.log(3)]],
            [[1, np.nan], [1, 5]],
            [[np.nan, 1], [2, np.nan]],
        ]
    )
    # 3/4 and 1/4; one silent; nobody
    np.testing.assert_allclose(
        margin_weights(x, [1, 2]), [[0.5, 0.5], [0.25, 0.25], [0, 0]], atol=1e-7
    )
    np.testing.assert_allclose(
        margin_weights(x, [1, 1]),
        [[(0.75 + 0.1) / 2, (0.25 + 0.9) / 2], [0.25, 0.25], [0, 0]],
        atol=1e-7,
    )
    y = close_scores(missing=0.1)
    np.testing.assert_allclose(margin_weights(y[:, ::-1]), margin_weights(y)[:, ::-1], atol=1e-7)


def test_margin_votes_are_capos_target_and_become_the_soft_majority():
    x = close_scores() * [1, 10, 0.1, 5]
    units = x.std(axis=(0, 1))
    w = margin_weights(x, temperature=0.7)
    r = calibrated_rewards(x, 1 / (0.7 * units))
    np.testing.assert_allclose(w[:, 0] - w[:, 1], (r[:, 0] - r[:, 1]).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(
        margin_weights(x, temperature=1e-9, weights=[1, 2, 3, 4]),
        shared_weights(votes(x), [1, 2, 3, 4]),
        atol=1e-7,
    )
    # whatever the scale
    np.testing.assert_allclose(margin_weights(x * [3, 0.1, 7, 2] + 5), margin_weights(x), atol=1e-6)


def test_confidence_votes_are_a_fixed_point_of_the_two_formulas():
    v = votes(close_scores(200, missing=0.1))
    p, a = confidence_votes(v, prior=(3.0, 2.0))
    for k in range(4):
        right = sum(p[n] if v[n, k] > 0 else 1 - p[n] for n in range(200) if v[n, k])
        assert a[k] == pytest.approx((3 + right) / (5 + (v[:, k] != 0).sum()), abs=1e-7)
    for n in range(200):
        odds = math.prod((a[k] / (1 - a[k])) ** int(v[n, k]) for k in range(4))
        assert p[n] == pytest.approx(odds / (1 + odds), abs=1e-7)
    assert a.min() > 0
    assert a.max() < 1
    assert (p[~v.any(axis=1)] == 0.5).all()


def test_one_unanimous_pair_is_one_equation():
    """All three have the same accuracy a = (2 + p)/4, with p = a^3/(a^3 + (1 - a)^3): solved by
    halving."""
    p, a = confidence_votes([[1, 1, 1]])
    low, high = 0.5, 1.0
    f = lambda a: (2 + a**3 / (a**3 + (1 - a) ** 3)) / 4 - a
    low = 0.6
    for _ in range(60):
        low, high = ((low + high) / 2, high) if f((low + high) / 2) > 0 else (low, (low + high) / 2)
    assert a.tolist() == pytest.approx([low] * 3, abs=1e-7)
    assert p[0] == pytest.approx(4 * low - 2, abs=1e-7)


def test_a_scorer_that_is_often_alone_counts_less():
    p, a = confidence_votes([[1, 1, 1], [1, 1, -1], [-1, -1, 1], [1, 0, -1]])
    # pair 2 is pair 1 the other way round; pair 3 goes with the better voter
    assert min(a[:2]) > 0.8 > 0.5 > a[2]
    assert p[1] > p[3] > 0.5
    assert p[2] == pytest.approx(1 - p[1], abs=1e-8)


def test_confidence_votes_maximise_the_penalised_likelihood():
    from scipy.optimize import minimize

    rng = np.random.default_rng(1)
    truth = rng.choice([-1, 1], 300)
    v = np.where(rng.random((300, 4)) < [0.9, 0.8, 0.7, 0.6], truth[:, None], -truth[:, None])
    v[rng.random(v.shape) < 0.1] = 0

    def loss(z):
        a = 1 / (1 + np.exp(-z))
        chance = lambda s: np.where(s * v > 0, a, np.where(s * v < 0, 1 - a, 1)).prod(axis=1) / 2
        return -(np.log(chance(1) + chance(-1)).sum() + (2 * np.log(a) + np.log(1 - a)).sum())

    best = minimize(loss, np.full(4, 1.0), method='BFGS', options={'gtol': 1e-7})
    np.testing.assert_allclose(confidence_votes(v)[1], 1 / (1 + np.exp(-best.x)), atol=1e-4)


def test_confidence_votes_find_known_accuracies_and_beat_the_majority():
    rng = np.random.default_rng(0)
    known = np.array([0.85, 0.8, 0.7, 0.55, 0.3])
    truth = rng.choice([-1, 1], 5000)
    v = np.where(rng.random((5000, 5)) < known, truth[:, None], -truth[:, None])
    p, a = confidence_votes(v)
    np.testing.assert_allclose(a, known, atol=0.03)  # even the one that is mostly wrong
    assert ((p > 0.5) == (truth > 0)).mean() > (majority(v) == truth).mean() + 0.03
    # and it knows how sure it is
    assert ((p > 0.5) == (truth > 0)).mean() == pytest.approx(np.maximum(p, 1 - p).mean(), abs=0.02)


def test_confidence_votes_swap_with_the_pairs_and_do_not_depend_on_their_order():
    v = votes(close_scores(150, missing=0.1))
    p, a = confidence_votes(v)
    flip = np.random.default_rng(0).choice([-1, 1], 150)
    q, b = confidence_votes(v * flip[:, None])
    np.testing.assert_allclose(q, np.where(flip > 0, p, 1 - p), atol=1e-7)
    np.testing.assert_allclose(a, b, atol=1e-7)
    order = np.random.default_rng(1).permutation(150)
    np.testing.assert_allclose(confidence_votes(v[order])[0], p[order], atol=1e-7)
    w = confidence_weights(v)
    np.testing.assert_allclose(w.sum(axis=1), v.any(axis=1), atol=1e-6)


def test_equally_good_scorers_make_the_majority():
    v = np.array(list(itertools.product([1, -1], repeat=3)) * 20)
    v = np.concatenate([v, np.ones((200, 3), int), -np.ones((200, 3), int)])
    p, a = confidence_votes(v)
    assert np.ptp(a) < 1e-7
    assert np.array_equal(np.sign(p - 0.5), majority(v))


def test_soft_votes_refuse_what_makes_no_sense():
    with pytest.raises(InputError, match='temperature'):
        margin_weights(close_scores(), temperature=0)
    with pytest.raises(InputError, match='confident'):
        confidence_votes(np.zeros((3, 4)))
    for bad in (np.ones((4, 2)), np.ones(4)):
        with pytest.raises(InputError, match='three scorers'):
            confidence_votes(bad)
    with pytest.raises(InputError, match='prior'):
        confidence_votes(np.ones((4, 3)), prior=(1, 2))
    for scores, limits, said in (
        ([[0.2, 0.2]], None, 'no range'),
        ([[np.nan, np.nan]], None, 'all are missing'),
        ([[20.0, 21]], SMPO_LIMITS, 'another unit'),
    ):
        with pytest.raises(InputError, match=said):
            smoothed_weights(scores, limits)


def test_a_smoothed_preference_is_the_softmax_of_normalised_scores():
    pick = np.random.default_rng(0).normal(0.21, 0.01, (50, 2))
    z = np.exp((pick - pick.min()) / np.ptp(pick))
    w = smoothed_weights(pick)
    np.testing.assert_allclose(w, z / z.sum(axis=1, keepdims=True), atol=1e-6)
    target = w[:, 0] - w[:, 1]
    assert np.abs(target).max() <= math.tanh(0.5) + 1e-6
    assert np.array_equal(target > 0, pick[:, 0] > pick[:, 1])
    assert smoothed_weights([[0.2, 0.3], [0.2, np.nan]])[1].tolist() == [0, 0]


def test_the_two_variants_of_smpo_differ_in_their_limits_only():
    pick = np.array([[0.22, 0.20], [0.18, 0.21]])
    paper, code = smoothed_weights(pick), smoothed_weights(pick, SMPO_LIMITS)
    assert (code[:, 0] - code[:, 1]).tolist() == pytest.approx(
        [math.tanh(0.02 / 0.1665801846455721 / 2), math.tanh(-0.03 / 0.1665801846455721 / 2)],
        abs=1e-6,
    )
    assert (paper[:, 0] - paper[:, 1]).tolist() == pytest.approx(
        [math.tanh(0.25), math.tanh(-0.375)], abs=1e-6
    )
    np.testing.assert_allclose(
        smoothed_weights(100 * pick, 100 * np.array(SMPO_LIMITS)), code, atol=1e-6
    )


def test_soft_labels_of_a_table_are_the_functions_of_its_scores(tmp_path):
    x = make_scores()
    table = make_table(x)
    v = loop_votes(x)
    for config, expected in (
        (
            LabelConfig('margin', weights=(1.0, 2.0, 3.0, 4.0)),
            margin_weights(x, weights=[1, 2, 3, 4]),
        ),
        (LabelConfig('confidence'), confidence_weights(v)),
        (LabelConfig('smoothed', scorer='c'), smoothed_weights(x[:, :, 2])),
        (
            LabelConfig('smoothed', scorer='c', limits=(-9e9, 9e9)),
            smoothed_weights(x[:, :, 2], (-9e9, 9e9)),
        ),
    ):
        labels = label_pairs(table, config)
        np.testing.assert_allclose(labels[['w0', 'w1']], expected, atol=1e-7)
        assert np.array_equal(labels.s, np.sign(labels.w0 - labels.w1))
        write_labels(tmp_path / 'labels.parquet', labels, config)
        assert read_labels(tmp_path / 'labels.parquet')[1] == config


# agreement


def test_kappa_against_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    x = make_scores(seed=5)
    v = votes(x)
    a = agreement(v)
    assert len(a) == 6
    for row in a.itertuples():
        both = (v[:, row.a] != 0) & (v[:, row.b] != 0)
        p, q = v[both, row.a], v[both, row.b]
        assert row.n == both.sum() < len(v)
        assert row.agreement == pytest.approx((p == q).mean())
        assert row.kappa == pytest.approx(cohen_kappa_score(p, q))
        assert 0 < row.kappa < 1


def test_kappa_at_its_ends():
    a = np.array([1, 1, -1, -1])
    assert cohen_kappa(a, a) == 1
    assert cohen_kappa(a, -a) == -1
    assert cohen_kappa(a, [1, -1, 1, -1]) == 0
    assert np.isnan(cohen_kappa([], []))
    assert np.isnan(cohen_kappa([1, 1], [1, 1]))


def test_mean_agreement_is_fixed_by_the_splits():
    "With all four voting: 6, 3 or 2 of the 6 pairs of scorers agree on a 4-0, 3-1 or 2-2 split."
    v = votes(make_scores(missing=0))
    share = vote_splits(v).set_index('split').share
    assert agreement(v).agreement.mean() == pytest.approx(
        share['4-0'] + share['3-1'] / 2 + share['2-2'] / 3
    )


def test_agreement_of_a_labels_table_names_its_voters():
    x = make_scores()
    a = agreement(label_pairs(make_table(x, make_labels_0(len(x)))))
    assert set(a.a) | set(a.b) == {'a', 'b', 'c', 'd', 'human', 'consensus'}
    assert len(a) == 15
    a = agreement(label_pairs(make_table(x)))
    assert 'human' not in set(a.a) | set(a.b)


def test_half_precision_ties_are_seen():
    rng = np.random.default_rng(0)
    x = 0.27 + 0.02 * rng.standard_normal((20000, 2, 1))
    full, half = (
        equal_scores(make_table(x.astype(t).astype(np.float32)))['a']
        for t in (np.float32, np.float16)
    )
    assert full < 1e-4 < 2e-3 < half


# files


def test_labels_survive_the_disk_with_their_settings(tmp_path):
    config = LabelConfig(
        'random', ties='margin', weights=(1.0, 2.0, 1.0, 0.5), seed=9, scorers=('a', 'b', 'c', 'd')
    )
    labels = label_pairs(make_table(make_scores(), make_labels_0(400)), config)
    path = write_labels(tmp_path / 'labels.parquet', labels, config)
    back, how = read_labels(path)
    pd.testing.assert_frame_equal(back, labels)
    assert how == config
    assert np.array_equal(label_weights(back, how, 17), label_weights(labels, config, 17))
    assert [p.name for p in tmp_path.iterdir()] == ['labels.parquet']


def test_files_that_are_no_labels_are_refused(tmp_path):
    make_table(make_scores(5)).to_parquet(tmp_path / 'scores.parquet')
    (tmp_path / 'text.parquet').write_text('hello')
    for name, says in (
        ('scores', 'is not a table of labels'),
        ('text', 'is not a table of labels'),
        ('absent', 'no such file of labels'),
    ):
        with pytest.raises(InputError, match=f'{name}.parquet:? {says}'):
            read_labels(tmp_path / f'{name}.parquet')


def test_ties_for_annotators_need_annotators():
    table = pd.DataFrame(
        {
            'pair_id': ['p', 'p', 'q', 'q'],
            'slot': [0, 1, 0, 1],
            'a': [1.0, 0, 1, 0],
            'b': [0.0, 1, 1, 0],
        }
    )
    for nobody in (table, table.assign(label_0=np.nan)):
        with pytest.raises(InputError, match="'human' needs human labels"):
            label_pairs(nobody, LabelConfig('majority', ties='human'))
        assert label_pairs(nobody, LabelConfig('majority', ties='drop')).s.tolist() == [0, 1]
    assert label_pairs(
        table.assign(label_0=[0.0, 0, np.nan, np.nan]), LabelConfig('majority', ties='human')
    ).s.tolist() == [-1, 1]
