"""Batches: every epoch visits every pair once, and what a pair gets depends on seed, step and pair
alone."""

import numpy as np
import pytest
import torch

from balanceddpo.training.batches import micro_batch, plan, weights_of
from balanceddpo.training.loop import start
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs
from short_runs import N, begin, score_rows, settings


def test_both_images_of_a_pair_share_noise_timestep_and_caption(made, tmp_path):
    run = begin(made('sdxl'), tmp_path, batch_size=8, empty_prompt_rate=0.5)
    batch = micro_batch(run, np.arange(8))
    a = run.family.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    assert torch.equal(batch.target[0::2], batch.target[1::2])
    assert torch.equal(batch.timesteps[0::2], batch.timesteps[1::2])
    x0 = (batch.noisy - (1 - a).sqrt() * batch.target) / a.sqrt()
    assert not torch.allclose(x0[0::2], x0[1::2])  # the images themselves differ
    for v in batch.conditioning.values():
        assert torch.equal(v[0::2], v[1::2])
    empty = (batch.conditioning['pooled'][::2] == run.encoded.empty_conditioning['pooled']).all(1)
    assert 0 < empty.sum() < 8
    assert torch.equal(
        empty,
        (
            batch.conditioning['prompt_embeds'][::2]
            == run.encoded.empty_conditioning['prompt_embeds']
        )
        .flatten(1)
        .all(1),
    )


def test_the_latents_are_sampled_afresh_or_are_the_mean(made, tmp_path):
    inputs = made()
    run = begin(inputs, tmp_path / 'a')
    mean = begin(inputs, tmp_path / 'b', sample_latents=False)
    x0 = {}
    for name, r in (('sampled', run), ('mean', mean)):
        for r.step in (0, 1):
            b = micro_batch(r, np.arange(4))
            a = r.family.alphas_cumprod[b.timesteps].view(-1, 1, 1, 1)
            x0[name, r.step] = (b.noisy - (1 - a).sqrt() * b.target) / a.sqrt()
    expected = (
        inputs.encoded.moments(run.rows[:4])[:, :, :4].flatten(0, 1)
        * run.family.vae_config['scaling_factor']
    )
    for step in (0, 1):
        torch.testing.assert_close(x0['mean', step], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(x0['sampled', 0], x0['sampled', 1], atol=1e-2)


def test_the_random_method_asks_another_scorer_at_each_step(made, tmp_path):
    inputs = made()
    config = LabelConfig('random')
    labels = label_pairs(score_rows(inputs.encoded.pair_ids), config)
    run = start(settings(inputs), LabelledPairs(inputs.encoded, labels, config), tmp_path)
    weights = []
    for run.step in range(12):
        weights.append(weights_of(run, np.arange(len(run.rows))))
    assert all((w.sum(1) == 1).all() for w in weights)
    assert 1 < len({tuple(w[:, 0].tolist()) for w in weights}) <= 4
    # the pair with 2:2 votes counts here
    assert run.counts == {
        'encoded': N + 2,
        'without a label': 0,
        'undecided': 1,
        'trained on': N + 1,
    }


@pytest.mark.parametrize('n,batch', [(10, 4), (7, 7), (3, 8), (11, 2)])
def test_every_epoch_visits_every_pair_once(n, batch):
    visits = np.concatenate([plan(n, batch, 0, step) for step in range(4 * n)])
    epochs = visits[: len(visits) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    assert len({tuple(e) for e in epochs}) > 1
    assert not np.array_equal(
        visits, np.concatenate([plan(n, batch, 1, step) for step in range(4 * n)])
    )


def test_noise_by_inversion_belongs_to_the_image_and_the_pair_alone(made, tmp_path):
    run = begin(made(), tmp_path, method='smpo', batch_size=8, sample_latents=False)
    whole = micro_batch(run, np.arange(4))
    plain = begin(made(), tmp_path / 'plain', batch_size=8, sample_latents=False)
    a = run.family.alphas_cumprod[whole.timesteps].view(-1, 1, 1, 1)
    before = micro_batch(plain, np.arange(4))
    x0 = (before.noisy - (1 - a).sqrt() * before.target) / a.sqrt()
    # the target is the noise that is in it
    torch.testing.assert_close(
        a.sqrt() * x0 + (1 - a).sqrt() * whole.target, whole.noisy, rtol=1e-3, atol=1e-3
    )
    assert torch.equal(whole.timesteps, before.timesteps)
    assert not torch.allclose(whole.target[0], whole.target[1])
    alone = [micro_batch(run, np.arange(i, i + 1)) for i in range(4)]
    torch.testing.assert_close(
        torch.cat([b.noisy for b in alone]), whole.noisy, rtol=1e-4, atol=1e-4
    )
