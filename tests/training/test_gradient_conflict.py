"""Gradients under several labels: identities, a linear model by hand, and the training loop's own
gradients as the independent implementation."""

import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import make_pair
from balanceddpo.losses.diffusion_dpo import diffusion_dpo_loss
from balanceddpo.models.config import EncodeConfig
from balanceddpo.models.encoding import encode_pairs
from balanceddpo.models.families import load_family
from balanceddpo.training.checkpoints import checkpoints, newest_checkpoint
from balanceddpo.training.gradient_conflict import (
    CONSENSUS,
    SUM,
    batch_gradients,
    cosines,
    matrix_at_step,
    measure_through_training,
    norm_report,
    open_probe,
    place_at,
    source_gradients,
    source_weights,
    vote_cosine,
)
from balanceddpo.training.loop import micro_step, start, train
from balanceddpo.training.run import LabelledPairs, trained_state
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs
from short_runs import settings
from tiny_models import tiny_folder

SIZE, N = 32, 8


def table(votes):
    return pd.DataFrame({f'vote_{k}': np.int8(v) for k, v in votes.items()})


def linear(labels, seed=0, at=0.0):
    """Gradients of a linear model of 5 parameters, its logits 0 where `at` is 0; and what they come
    from."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(len(labels), 5, generator=g)
    theta = (at * torch.randn(5, generator=g)).requires_grad_(True)
    return source_gradients(a @ theta, [theta], source_weights(labels)), a, theta


# --- identities on a linear model


def test_equal_votes_have_cosine_one_at_any_weights():
    for at in (0.0, 2.0):
        g, *_ = linear(table({'x': [1, -1, 1], 'y': [1, -1, 1]}), at=at)
        assert cosines(g).to_numpy() == pytest.approx(np.ones((4, 4)))


def test_opposite_votes_have_cosine_minus_one_where_policy_and_reference_are_equal():
    labels = table({'x': [1, -1, 1], 'y': [-1, 1, -1]})
    g, *_ = linear(labels)
    assert cosines(g).loc['x', 'y'] == pytest.approx(-1)
    assert g[SUM].abs().max() == 0
    assert g[CONSENSUS].abs().max() == 0
    assert math.isnan(cosines(g).loc[SUM, 'x'])
    away, *_ = linear(labels, at=2.0)
    # the factors sigma(x) and sigma(-x) differ there
    assert cosines(away).loc['x', 'y'] > -0.999
    assert away[SUM].norm() > 0


@pytest.mark.parametrize('at', [0.0, 1.5])
def test_each_source_is_the_gradient_of_its_loss(at):
    """Against autograd on the loss itself, a fresh graph a source; and the mean of the scorers is
    the summed loss of Eq. 10."""
    draw = np.random.default_rng(1)
    labels = table({k: draw.choice([-1, 1, 0], 40, p=[0.45, 0.45, 0.1]) for k in 'abcd'})
    g, a, theta = linear(labels, at=at)
    for k, w in source_weights(labels).items():
        loss = diffusion_dpo_loss(a @ theta, *torch.tensor(w).unbind(1)).sum()
        assert torch.allclose(g[k], torch.autograd.grad(loss, theta)[0], rtol=1e-4, atol=1e-5), k
    assert torch.allclose(g[SUM], (g['a'] + g['b'] + g['c'] + g['d']) / 4)
    assert list(g) == ['a', 'b', 'c', 'd', SUM, CONSENSUS]


def test_one_side_of_each_pair_is_never_pulled_both_ways_at_the_reference():
    """The mean vote and its sign: the factor of the sum and that of the consensus have one sign on
    every pair, and a tie has none."""
    draw = np.random.default_rng(2)
    w = source_weights(table({k: draw.choice([-1, 1], 200) for k in 'abcd'}))
    mean, sign = (w[k][:, 0] - w[k][:, 1] for k in (SUM, CONSENSUS))
    assert (np.sign(mean) == sign).all()
    assert set(np.abs(mean)) == {0, 0.5, 1}


# --- norms by hand


def test_norms_by_hand():
    """Logits x_n = a_n . theta at theta = 0, a = (3, 0), (0, 4): every factor is -1/2 times the
    vote.
    Scorer x votes 1, 1: -(3, 4)/2, norm 2.5. Scorer y votes 1, -1: -(3, -4)/2, norm 2.5. Scorer
    z votes 1, 1. Mean vote 1, 1/3: -(3, 4/3)/2."""
    labels = table({'x': [1, 1], 'y': [1, -1], 'z': [1, 1]})
    theta = torch.zeros(2, requires_grad=True)
    g = source_gradients(
        torch.tensor([[3.0, 0.0], [0.0, 4.0]]) @ theta, [theta], source_weights(labels)
    )
    report = norm_report(g, labels)
    assert g['y'].tolist() == [-1.5, 2.0]
    assert (report['single'], report['consensus']) == (2.5, 2.5)
    assert report['sum'] == pytest.approx(math.hypot(3, 4 / 3) / 2)
    assert report['sum_share'] == pytest.approx(math.hypot(3, 4 / 3) / 5)
    assert report['sum_orthogonal'] == pytest.approx(math.sqrt((1 + 1 / 9) / 2))
    assert report['consensus_orthogonal'] == 1
    assert report['sum_consensus'] == pytest.approx((9 + 16 / 3) / (math.hypot(3, 4 / 3) * 5))
    assert cosines(g).loc['x', 'y'] == pytest.approx((9 - 16) / 25)


def test_two_equal_scorers_lose_nothing_and_two_opposite_ones_everything():
    for y, share in (([1, -1], 1), ([-1, 1], 0)):
        labels = table({'x': [1, -1], 'y': y})
        g, *_ = linear(labels)
        report = norm_report(g, labels)
        assert report['sum_share'] == pytest.approx(share)
        assert report['consensus_share'] == pytest.approx(share)
        assert report['sum_orthogonal'] == pytest.approx(share)


def test_cosines_between_batches_by_hand():
    first, second = (
        {'x': torch.tensor(x), 'y': torch.tensor(y)}
        for x, y in (([1.0, 0.0], [0.0, 1.0]), ([1.0, 1.0], [-2.0, 0.0]))
    )
    c = cosines(first, second)
    assert c.loc['x', 'x'] == pytest.approx(2**-0.5)
    assert c.loc['y', 'y'] == 0
    assert c.loc['x', 'y'] == c.loc['y', 'x'] == pytest.approx((-1 + 2**-0.5) / 2)


def test_vote_cosine_is_twice_the_agreement_minus_one():
    draw = np.random.default_rng(3)
    labels = table({k: draw.choice([-1, 1], 101) for k in 'ab'})
    assert vote_cosine(labels).loc['a', 'b'] == pytest.approx(
        2 * (labels.vote_a == labels.vote_b).mean() - 1
    )


# --- on a diffusion model


def picture(i):
    buffer = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    ).save(buffer, 'PNG')
    return buffer.getvalue()


def scores_of_four(pair_ids):
    """Scores by four scorers: b agrees with a, c is its opposite, d is random; the first pair is
    unanimous."""
    draw = np.random.default_rng(0)
    a, d = (draw.choice([-1.0, 1.0], N) for _ in range(2))
    c = -a
    c[0] = d[0] = a[0]
    scores = (
        np.stack([np.stack([a, a, c, d], 1), np.zeros((N, 4))], 1).reshape(-1, 4).astype('float32')
    )
    rows = pd.DataFrame(
        [(p, slot) for p in pair_ids for slot in (0, 1)], columns=['pair_id', 'slot']
    )
    return rows.join(pd.DataFrame(scores, columns=list('abcd')))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The settings of a run of a tiny pipeline, encoded pairs, and their scores by four scorers."
    root = tmp_path_factory.mktemp('conflict')
    base = tiny_folder(root / 'base')
    pairs = [
        make_pair(('a red cat', 'two dogs')[i % 2], (picture(2 * i), picture(2 * i + 1)), 1.0)
        for i in range(N)
    ]
    encoded = encode_pairs(
        pairs,
        load_family(base, device='cpu'),
        EncodeConfig(model=str(base), resolution=SIZE, storage='fp32'),
        root / 'encoded',
        progress=False,
    )
    own = dict(max_steps=4, micro_batch_size=3, checkpoint_every=2, keep_checkpoints=9)
    config = settings(SimpleNamespace(base=base), resolution=SIZE, refresh_every=3, **own)
    return config, encoded, scores_of_four(encoded.pair_ids)


def loops_own_gradient(config, pairs, ids, like, out):
    "The gradient that the training loop accumulates for the pairs `ids`, at the weights of `like`."
    run = start(config, pairs, out)
    with torch.no_grad():
        for name, p in trained_state(run).items():
            p.copy_(trained_state(like)[name])
        run.reference.load_state_dict(like.reference.state_dict())
    have = {run.encoded.pair_ids[r]: i for i, r in enumerate(run.rows)}
    micro_step(run, np.array([have[i] for i in ids if i in have]))
    return torch.cat([p.grad.flatten() for p in run.parameters]) * config.batch_size / len(ids)


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_a_probe_has_the_gradients_of_the_training_loop(made, tmp_path, mode):
    config, encoded, scores = made
    config = replace(config, mode=mode)
    majority = LabelledPairs(encoded, label_pairs(scores), LabelConfig())
    out = train(config, majority, tmp_path / 'run', progress=False)
    points = checkpoints(out.parent / 'checkpoints')
    assert [p.step for p in points] == [2, 4]
    probe = open_probe(config, encoded, label_pairs(scores))
    assert len(probe.rows) == N  # ties too
    place_at(probe, points[1])
    places = np.array([5, 0, 3, 6, 1])
    ids = [encoded.pair_ids[probe.rows[p]] for p in places]
    g = batch_gradients(probe, places)
    for name, label_config in {
        'a': LabelConfig('single', scorer='a'),
        'd': LabelConfig('single', scorer='d'),
        SUM: LabelConfig('sum_losses'),
        CONSENSUS: LabelConfig(),
    }.items():
        pairs = LabelledPairs(encoded, label_pairs(scores, label_config), label_config)
        theirs = loops_own_gradient(config, pairs, ids, probe, tmp_path / name)
        # fp32, added in another order
        assert theirs.norm() > 0 and (g[name] - theirs).norm() < 3e-5 * theirs.norm(), (
            name,
            float((g[name] - theirs).norm() / theirs.norm()),
        )
    assert cosines(g).loc['a', 'b'] == pytest.approx(1, abs=1e-5)


def test_at_the_start_opposite_scorers_cancel_and_the_report_says_so(made, tmp_path):
    config, encoded, scores = made
    probe = open_probe(config, encoded, label_pairs(scores))
    opposite = np.flatnonzero((probe.labels.vote_a == -probe.labels.vote_c).to_numpy())
    g = batch_gradients(probe, opposite)
    assert cosines(g).loc['a', 'c'] == pytest.approx(-1, abs=1e-5)
    found, norms = measure_through_training(probe, [], 4, seed=1)
    assert found.step.eq(0).all()
    assert len(found) == 6 * 7 / 2
    assert norms.step.tolist() == [0]
    same = matrix_at_step(found, 0, 'same')
    assert np.allclose(np.diag(same), 1)
    assert np.allclose(same, same.T, equal_nan=True)
    assert (
        found.query("a == 'a' and b == 'b'").same.item()
        == pytest.approx(1, abs=1e-5)
        == found.query("a == 'a' and b == 'b'").votes.item()
    )
    assert 0 <= norms.sum_share.item() <= 1 + 1e-6
    with pytest.raises(InputError, match='need 20'):
        measure_through_training(probe, [], 10)


def test_a_checkpoint_of_another_model_is_refused(made, tmp_path):
    config, encoded, scores = made
    pairs = LabelledPairs(encoded, label_pairs(scores), LabelConfig())
    out = train(replace(config, mode='lora'), pairs, tmp_path / 'run', progress=False)
    with pytest.raises(InputError, match='belongs to another model'):
        place_at(
            open_probe(config, encoded, label_pairs(scores)),
            checkpoints(out.parent / 'checkpoints')[0],
        )


def test_a_probe_that_has_been_placed_does_not_pass_for_the_start(made, tmp_path):
    config, encoded, scores = made
    labels = label_pairs(scores)
    pairs = LabelledPairs(encoded, labels, LabelConfig())
    train(replace(config, max_steps=2), pairs, tmp_path / 'run', progress=False)
    probe = open_probe(config, encoded, labels)
    place_at(probe, newest_checkpoint(tmp_path / 'run' / 'checkpoints'))
    with pytest.raises(InputError, match='open a new one'):
        measure_through_training(probe, (), 2)
