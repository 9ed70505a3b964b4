"""Corrupted labels and scores: values by hand, identities, a higher rate hits a superset, and a
training key that sees the content of a labels table."""

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.voting.label_noise import (
    exchange_scores,
    flip_labels,
    label_changes,
    pair_draws,
    replace_scorer,
)
from balanceddpo.voting.labels import (
    LabelConfig,
    label_pairs,
    label_weights,
    read_ballot,
    score_margin,
    score_units,
)

SCORERS = ('hps', 'clip', 'pickscore')


def scores(n=300, seed=0):
    "A table of scores of three scorers with human labels, its rows in no order."
    draw = np.random.default_rng(seed)
    label = draw.choice([1.0, 0.0, 0.5], n)
    rows = [(f'p{i}', slot, np.float32(label[i])) for i in range(n) for slot in (0, 1)]
    table = pd.DataFrame(rows, columns=['pair_id', 'slot', 'label_0']).join(
        pd.DataFrame(draw.standard_normal((2 * n, 3)).astype('float32'), columns=list(SCORERS))
    )
    return table.sample(frac=1, random_state=1).reset_index(drop=True)


def by_pair(table, column):
    return table.sort_values(['pair_id', 'slot'])[column].to_numpy().reshape(-1, 2)


# --- the draws


def test_draws_are_uniform_and_independent_of_order_seed_and_stream():
    from scipy.stats import kstest

    ids = [f'p{i}' for i in range(5000)]
    u = pair_draws(ids)
    assert kstest(u, 'uniform').pvalue > 1e-3
    assert (pair_draws(ids[::-1])[::-1] == u).all()
    for other in (pair_draws(ids, seed=1), pair_draws(ids, stream='x')):
        assert abs(np.corrcoef(u, other)[0, 1]) < 4 / 5000**0.5


# --- labels


def test_a_turned_pair_by_hand():
    one = pd.DataFrame(
        {
            'pair_id': ['a'],
            'vote_hps': np.int8([1]),
            'vote_clip': np.int8([-1]),
            'human': np.int8([-1]),
            's': np.int8([1]),
            'w0': np.float32([0.75]),
            'w1': np.float32([0.25]),
            'margin': np.float32([0.5]),
        }
    )
    turned = flip_labels(one, 1.0)
    assert turned.iloc[0].to_dict() == {
        'pair_id': 'a',
        'vote_hps': -1,
        'vote_clip': 1,
        'human': 1,
        's': -1,
        'w0': 0.25,
        'w1': 0.75,
        'margin': -0.5,
    }
    assert (turned.dtypes == one.dtypes).all()
    assert one.s[0] == 1  # the given table stays as it is
    pd.testing.assert_frame_equal(flip_labels(one, 0.0), one)


@pytest.mark.parametrize('method', ['majority', 'human', 'sum_losses', 'zscore', 'sum_logits'])
def test_turning_is_exchanging_the_images_before_labelling(method):
    table, config = scores(), LabelConfig(method)
    hit = set(
        np.array([f'p{i}' for i in range(300)])[
            pair_draws([f'p{i}' for i in range(300)], 3, 'labels') < 0.4
        ]
    )
    mirrored = table.assign(
        slot=np.where(table.pair_id.isin(hit), 1 - table.slot, table.slot),
        label_0=np.where(table.pair_id.isin(hit), 1 - table.label_0, table.label_0),
    )
    turned, theirs = (
        flip_labels(label_pairs(table, config), 0.4, seed=3),
        label_pairs(mirrored, config),
    )
    for c in ('s', 'w0', 'w1', 'human', 'vote_hps'):
        assert (turned[c] == theirs[c]).all(), c
    assert np.allclose(turned.margin, theirs.margin, atol=1e-6)


def test_a_higher_rate_turns_a_superset_of_about_the_right_size():
    labels = label_pairs(scores(3000))
    decided = (labels.s != 0).to_numpy()
    turned = [
        ((flip_labels(labels, r).s != labels.s).to_numpy() & decided) for r in (0.1, 0.2, 0.4)
    ]
    assert not (turned[0] & ~turned[1]).any()
    assert not (turned[1] & ~turned[2]).any()
    for r, t in zip((0.1, 0.2, 0.4), turned):
        assert abs(t.sum() / decided.sum() - r) < 4 * (r * (1 - r) / decided.sum()) ** 0.5


def test_method_random_is_turned_too():
    "Its weights come from the votes at each step, not from w0 and w1."
    labels, config = label_pairs(scores(), LabelConfig('random')), LabelConfig('random')
    turned = flip_labels(labels, 1.0)
    for step in range(5):
        assert (
            label_weights(turned, config, step) == label_weights(labels, config, step)[:, ::-1]
        ).all()


# --- scorers


def test_exchanging_touches_one_scorer_and_keeps_its_scores():
    table = scores()
    noisy = exchange_scores(table, 'clip', 0.3, seed=2)
    before, after = by_pair(table, 'clip'), by_pair(noisy, 'clip')
    same, swapped = (before == after).all(1), (before == after[:, ::-1]).all(1)
    assert (same ^ swapped).all()
    assert abs(swapped.mean() - 0.3) < 4 * (0.3 * 0.7 / 300) ** 0.5
    rest = [c for c in table if c != 'clip']
    pd.testing.assert_frame_equal(noisy[rest], table[rest])
    assert score_units(read_ballot(noisy).scores, 'zscore') == pytest.approx(
        score_units(read_ballot(table).scores, 'zscore')
    )


def test_scorers_are_hit_in_different_pairs():
    table = scores(2000)
    ids = table.pair_id.unique()
    a, b = (pair_draws(ids, 0, f'scorer {k}') < 0.5 for k in ('hps', 'clip'))
    assert abs((a == b).mean() - 0.5) < 4 * 0.5 / 2000**0.5


def test_a_negative_scorer_is_the_same_as_one_exchanged_everywhere():
    table = scores()
    negative, exchanged = (
        replace_scorer(table, 'hps', 'negative'),
        exchange_scores(table, 'hps', 1.0),
    )
    for method in ('majority', 'sum_losses', 'zscore', 'sum_logits'):
        a, b = (label_pairs(t, LabelConfig(method)) for t in (negative, exchanged))
        assert (a.s == b.s).all()
        assert (a.w0 == b.w0).all()
    margins = [
        score_margin(read_ballot(t).scores[:, :, :1], [1.0]) for t in (negative, exchanged, table)
    ]
    assert np.allclose(margins[0], margins[1])
    assert np.allclose(margins[0], -margins[2])


def test_one_scorer_of_four_ties_a_majority_and_never_turns_it():
    draw = np.random.default_rng(5)
    table = scores(400).assign(aesthetic=draw.standard_normal(800).astype('float32'))
    for by in ('coin', 'negative'):
        changes = label_changes(label_pairs(table), label_pairs(replace_scorer(table, 'hps', by)))
        assert changes['turned'] == 0 < changes['lost'] < 1
    three = table.drop(columns='aesthetic')  # an odd number has no ties to protect it
    assert (
        label_changes(label_pairs(three), label_pairs(replace_scorer(three, 'hps', 'negative')))[
            'turned'
        ]
        > 0
    )


def test_a_coin_knows_nothing_of_the_scorer_it_replaces():
    table = scores(3000)
    labels, noisy = label_pairs(table), label_pairs(replace_scorer(table, 'hps', 'coin'))
    assert abs((labels.vote_hps == noisy.vote_hps).mean() - 0.5) < 4 * 0.5 / 3000**0.5
    assert (labels.vote_clip == noisy.vote_clip).all()


# --- what it did


def test_label_changes_by_hand():
    before, after = (
        pd.DataFrame({'pair_id': list('abcdef'), 's': s})
        for s in ([1, 1, -1, -1, 1, 0], [1, -1, 1, -1, 0, 1])
    )
    assert label_changes(before, after) == {
        'decided': 5,
        'kept': 0.4,
        'turned': 0.4,
        'lost': pytest.approx(0.2),
        'wrong': 0.5,
    }
    with pytest.raises(InputError, match='same pairs'):
        label_changes(before, after.iloc[::-1])


def test_refusals():
    labels, table = label_pairs(scores(4)), scores(4)
    for rate in (-0.1, 1.1, float('nan')):
        with pytest.raises(InputError, match='rate'):
            flip_labels(labels, rate)
        with pytest.raises(InputError, match='rate'):
            exchange_scores(table, 'hps', rate)
    with pytest.raises(InputError, match="no scorer 'imagereward'"):
        replace_scorer(table, 'imagereward', 'coin')
    with pytest.raises(InputError, match="'dice'"):
        replace_scorer(table, 'hps', 'dice')
    with pytest.raises(InputError, match='scored once'):
        exchange_scores(table.iloc[:-1], 'hps', 0.5)


def test_the_key_of_a_training_run_sees_the_content_of_the_labels():
    """Two tables that differ in one flipped pair are two models; the same content under another
    name is one."""
    from dataclasses import replace

    from balanceddpo.models.weights import merged_weights
    from balanceddpo.paper import experiments, scales

    world = replace(scales.SMOKE, n_pairs=12)
    labels = experiments.labels_of(world, LabelConfig())
    mine = experiments.align_labels(world, 'BalancedDPO', labels, 'mine')
    assert experiments.align(world, 'BalancedDPO', 'plain').folder == mine.folder
    one = labels.copy()
    i = int(np.flatnonzero(one.s)[0])
    one.loc[i, ['w0', 'w1']] = labels.loc[i, ['w1', 'w0']].to_numpy()
    other = experiments.align_labels(world, 'BalancedDPO', one, 'mine')
    assert other.folder != mine.folder
    keeping = dict(checkpoint_every=2, keep_checkpoints=9)
    kept = experiments.align_labels(world, 'BalancedDPO', labels, 'mine', **keeping)
    assert kept.folder != mine.folder
    assert len(list((experiments.run_folder(kept) / 'checkpoints').glob('step-*'))) == 2
    assert len(experiments.training_log(kept)) == 4
    weights = [merged_weights(m.folder) for m in (mine, kept)]
    # how often it is kept changes nothing
    assert all((weights[0][n] == p).all() for n, p in weights[1].items())
    assert (
        experiments.distance_from_base(world, experiments.base_model(world))
        == 0
        < experiments.distance_from_base(world, mine)
    )
    with pytest.raises(InputError, match='not trained here'):
        experiments.run_folder(experiments.base_model(world))
