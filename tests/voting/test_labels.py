"""Labels of every method: identities, independent implementations, awkward tables, files."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.seals import write_sealed
from balanceddpo.voting.agreement import tie_report
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.groups import calibrated_rewards
from balanceddpo.voting.labels import (
    LABELLERS,
    SMPO_LIMITS,
    confidence_votes,
    confidence_weights,
    drawn_scorer,
    hard_weights,
    label_pairs,
    label_weights,
    margin_weights,
    read_labels,
    shared_weights,
    smoothed_weights,
    with_units,
    write_labels,
)
from balanceddpo.voting.votes import majority, score_margin, score_units, votes
from made_scores import loop_votes, make_labels_0, make_scores, make_table

METHODS = [
    LabelConfig(m)
    for m in ('majority', 'human', 'random', 'sum_logits', 'sum_losses', 'zscore', 'minmax')
] + [LabelConfig('single', scorer='b')]

# ties


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
    'method,unit', [('sum_logits', lambda c: 1.0), ('zscore', np.std), ('minmax', np.ptp)]
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
        label_pairs(make_table(y), LabelConfig('sum_logits')).s,
        label_pairs(make_table(y), LabelConfig('single', scorer='c')).s,
    )


def test_a_sum_of_scores_is_in_published_units():
    "A cosine that is given as a logit of scale 100 is the same cosine to the sum."
    x = make_scores(missing=0).astype(float)
    scales = np.array([1.0, 1.0, 100.0, 1.0])
    units = dict(zip('abcd', scales))
    logits = make_table((x * scales).astype(np.float32))
    told = with_units(LabelConfig('sum_scores'), units)
    assert told.units == (1.0, 1.0, 100.0, 1.0)
    plain = label_pairs(make_table(x.astype(np.float32)), LabelConfig('sum_logits'))
    assert np.array_equal(label_pairs(logits, told).s, plain.s)
    dominated = label_pairs(logits, LabelConfig('sum_logits')).s
    assert (dominated != plain.s).mean() > 0.02  # the cases can tell
    # a part of the scorers, in another order
    some = with_units(LabelConfig('sum_scores', scorers=('c', 'a')), units)
    assert some.units == (100.0, 1.0)


def test_units_that_are_not_known_are_not_guessed():
    table = make_table(make_scores(6, missing=0))
    with pytest.raises(InputError, match='published units'):
        label_pairs(table, LabelConfig('sum_scores'))
    with pytest.raises(InputError, match="unit of scorer 'd' is not known"):
        with_units(LabelConfig('sum_scores', scorers=('a', 'd')), {'a': 1.0})
    for units in ((1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (1.0, 1.0, np.nan, 1.0)):
        with pytest.raises(InputError, match='above 0 for each of 4 scorers'):
            label_pairs(table, LabelConfig('sum_scores', units=units))
    given = LabelConfig('sum_scores', units=(1.0, 2.0, 3.0, 4.0))
    assert with_units(given, dict.fromkeys('abcd', 1.0)) == given
    assert with_units(LabelConfig('zscore'), {}) == LabelConfig('zscore')


def test_missing_scores_are_left_out_of_sums():
    x = np.array([[[1.0, np.nan], [0.0, 5.0]], [[np.nan, 1.0], [2.0, 3.0]], [[np.nan] * 2] * 2])
    assert score_margin(x, np.ones(2))[:2].tolist() == [1.0, -2.0]
    assert np.isnan(score_margin(x, np.ones(2))[2])
    assert label_pairs(make_table(x), LabelConfig('sum_logits')).s.tolist() == [1, -1, 0]
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
    for m in ('majority', 'random', 'sum_logits', 'sum_losses', 'zscore', 'minmax'):
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
        'sum_logits',
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
    with pytest.raises(InputError, match="no scorer is called 'z': use a, b, c, d"):
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

    def excess(a):
        return (2 + a**3 / (a**3 + (1 - a) ** 3)) / 4 - a

    low, high = 0.6, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
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

    def chance(s, a):
        "Of the votes of each pair, with image 0 better (s = 1) or image 1."
        right, wrong = s * v > 0, s * v < 0
        return np.select([right, wrong], [a, 1 - a], 1).prod(axis=1) / 2

    def loss(z):
        a = 1 / (1 + np.exp(-z))
        prior = (2 * np.log(a) + np.log(1 - a)).sum()
        return -(np.log(chance(1, a) + chance(-1, a)).sum() + prior)

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


@pytest.mark.parametrize('missing', [30, 100])
def test_a_scorer_that_often_does_not_vote_is_told(missing):
    x = make_scores(100, missing=0)
    x[:missing, 0, 1] = np.nan  # no such pair has both of its scores
    with pytest.warns(UserWarning, match=f"'b' does not vote on {missing}.0 % of the pairs"):
        label_pairs(make_table(x))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        label_pairs(make_table(x), LabelConfig('single', scorer='a'))


def test_coins_are_as_many_as_voted():
    "Two voters of three tie in half of all pairs if they toss coins, three in none."
    x = make_scores(100, 3, missing=0)
    assert tie_report(label_pairs(make_table(x)))['independent_tie_rate'] == 0
    x[:, 0, 2] = np.where(np.arange(100) < 60, np.nan, x[:, 0, 2])
    with pytest.warns(UserWarning, match='60.0 %'):
        labels = label_pairs(make_table(x))
    assert tie_report(labels)['independent_tie_rate'] == pytest.approx(0.6 * 0.5)


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
    scores = make_table(make_scores(5))
    scores.to_parquet(tmp_path / 'unsealed.parquet')
    write_sealed(tmp_path / 'scores.parquet', pa.Table.from_pandas(scores))
    (tmp_path / 'text.parquet').write_text('hello')
    for name, says in (
        ('scores', 'is not a table of labels'),
        ('unsealed', 'has no seal'),
        ('text', 'has no seal'),
        ('absent', 'no such file of labels'),
    ):
        with pytest.raises(InputError, match=f'{name}.parquet:? {says}'):
            read_labels(tmp_path / f'{name}.parquet')


def test_no_flipped_bit_of_labels_is_read(tmp_path):
    "Each byte once: without the seal 344 of 4,000 such files trained on other labels."
    labels = label_pairs(make_table(make_scores(60)), LabelConfig())
    path = write_labels(tmp_path / 'labels.parquet', labels, LabelConfig())
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        with pytest.raises(InputError, match='labels.parquet'):
            read_labels(path)
