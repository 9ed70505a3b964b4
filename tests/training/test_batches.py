"""Batches: every epoch visits every pair once, and what a pair gets depends on seed, step and pair
alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import draw_view, make_pair
from balanceddpo.models.config import EncodeConfig
from balanceddpo.models.encoding import encode_pairs, mirrored_moments
from balanceddpo.models.families import load_family
from balanceddpo.training.batches import draw_mirrors, micro_batch, plan, weights_of
from balanceddpo.training.loop import start
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs
from made_pairs import encoded as encoded_picture
from short_runs import SIZE, N, assert_equal_runs, begin, go, score_rows, settings


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


# --- what a visit sees: orientation, the text of a dropped caption, sizes


def again_with(inputs, root, **options):
    "The pairs of `inputs` encoded once more, with more asked for; wide pictures, cut at random."
    wide = [
        make_pair(f'{p} {i}', [wide_picture(2 * i), wide_picture(2 * i + 1)], 1.0)
        for i, p in enumerate(inputs.encoded.pair_ids)
    ]
    config = EncodeConfig(model='x', resolution=SIZE, storage='fp32', crop='random', **options)
    encoded = encode_pairs(
        wide, load_family(inputs.base, device='cpu'), config, root, progress=False
    )
    labels = inputs.labels.assign(pair_id=encoded.pair_ids)
    return SimpleNamespace(**vars(inputs) | dict(encoded=encoded, labels=labels))


def wide_picture(i):
    noise = np.random.default_rng(i).integers(0, 256, (SIZE, 2 * SIZE, 3), 'uint8')
    return encoded_picture(Image.fromarray(noise))


def clean_of(run, places):
    "x_0 [n, 2, c, h, w] of a micro-batch: what is left when the noise is taken off again."
    batch = micro_batch(run, places)
    a = run.family.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    return ((batch.noisy - (1 - a).sqrt() * batch.target) / a.sqrt()).unflatten(0, (-1, 2))


@pytest.mark.parametrize('mirror', ['each', 'pair'])
def test_half_of_the_visits_see_the_mirrored_image(made, tmp_path, mirror):
    inputs = again_with(made(), tmp_path / 'e', mirrored=True)
    options = dict(mirror=mirror, sample_latents=False, batch_size=8)
    run, places = begin(inputs, tmp_path / 'run', **options), np.arange(8)
    scale = run.family.vae_config['scaling_factor']
    straight = inputs.encoded.moments(run.rows[:8])[:, :, :4] * scale
    other = mirrored_moments(inputs.encoded, run.rows[:8])[:, :, :4] * scale
    names = [inputs.encoded.pair_ids[r] for r in run.rows[:8]]
    kinds = set()
    for run.step in range(6):
        drawn = draw_mirrors(run.config.seed, run.step, names, mirror)
        expected = torch.where(drawn[..., None, None, None], other, straight)
        torch.testing.assert_close(clean_of(run, places), expected, rtol=1e-3, atol=1e-3)
        kinds |= {tuple(row) for row in drawn.tolist()}
        # the batch around a pair changes nothing
        assert torch.equal(draw_mirrors(run.config.seed, run.step, names[3:4], mirror), drawn[3:4])
    assert len(kinds) == (4 if mirror == 'each' else 2)


def test_mirroring_draws_no_other_noise_timesteps_or_captions(made, tmp_path):
    inputs = again_with(made('sdxl'), tmp_path / 'e', mirrored=True)
    plain, mirrored = (
        micro_batch(begin(inputs, tmp_path / m, mirror=m, empty_prompt_rate=0.5), np.arange(8))
        for m in ('no', 'each')
    )
    assert torch.equal(plain.target, mirrored.target)
    assert torch.equal(plain.timesteps, mirrored.timesteps)
    for name, v in plain.conditioning.items():
        assert torch.equal(v, mirrored.conditioning[name])
    assert not torch.equal(plain.noisy, mirrored.noisy)


def test_a_dropped_caption_is_the_encoded_empty_text_where_the_run_says_so(made, tmp_path):
    inputs = again_with(made('sdxl'), tmp_path / 'e', empty_text=True)
    run = begin(inputs, tmp_path / 'run', empty_prompt='encoded', empty_prompt_rate=1.0)
    text = run.family.__class__.encode_prompts(load_family(inputs.base, device='cpu'), [''])
    for name, v in micro_batch(run, np.arange(4)).conditioning.items():
        torch.testing.assert_close(v, text[name].expand_as(v))
        assert v.any()
    own = begin(inputs, tmp_path / 'own', empty_prompt_rate=1.0)
    assert not any(v.any() for v in micro_batch(own, np.arange(4)).conditioning.values())


def test_sdxl_is_told_the_pictures_size_and_the_random_cut(made, tmp_path):
    inputs = again_with(made('sdxl'), tmp_path / 'e', sizes=True, mirrored=True)
    run = begin(inputs, tmp_path / 'run', time_ids='picture', mirror='each')
    told = micro_batch(run, np.arange(8)).conditioning['time_ids'].unflatten(0, (-1, 2))
    names = [inputs.encoded.pair_ids[r] for r in run.rows[:8]]
    mirrors = draw_mirrors(run.config.seed, run.step, names, 'each')
    assert (told[..., :2] == torch.tensor([SIZE, 2 * SIZE])).all()
    assert (told[..., 4:] == SIZE).all()
    assert (told[..., 2] == 0).all()
    for name, pair, row in zip(names, told, mirrors):
        u = draw_view(name, 0, 'random')[0]
        left = [round((1 - u if m else u) * SIZE) for m in row.tolist()]
        assert pair[:, 3].tolist() == left
    square = micro_batch(begin(inputs, tmp_path / 'square'), np.arange(8)).conditioning
    assert 'time_ids' not in square


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(mirror='each'), "mirror is 'each', .* encode --mirrored.* set mirror to 'no'"),
        (dict(empty_prompt='encoded'), "--empty-text.* set empty_prompt to 'own'"),
        (dict(time_ids='picture'), "--sizes.* set time_ids to 'square'"),
    ],
)
def test_pairs_encoded_without_what_a_run_needs_are_refused(made, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        begin(made('sdxl'), tmp_path, **changes)


def test_a_model_that_is_told_no_sizes_is_refused(made, tmp_path):
    inputs = again_with(made(), tmp_path / 'e', sizes=True)
    with pytest.raises(InputError, match="sd15 is told no sizes .* set time_ids to 'square'"):
        begin(inputs, tmp_path / 'run', time_ids='picture')


def test_a_run_is_trained_at_the_timesteps_that_it_names_and_the_last_is_pure_noise(made, tmp_path):
    inputs, four = made(), (249, 499, 749, 999)
    run = begin(inputs, tmp_path / 'run', timesteps=four, zero_terminal_snr=True, batch_size=8)
    seen = set()
    for run.step in range(6):
        batch = micro_batch(run, np.arange(8))
        seen |= {*batch.timesteps.tolist()}
        last = batch.timesteps == 999
        assert torch.equal(batch.noisy[last], batch.target[last])
        assert not torch.equal(batch.noisy[~last], batch.target[~last])
    assert seen == {*four}
    plain = micro_batch(begin(inputs, tmp_path / 'plain', timesteps=(999,)), np.arange(8))
    assert not torch.equal(plain.noisy, plain.target)
    go(inputs, tmp_path / 'trained', max_steps=2, timesteps=four, zero_terminal_snr=True)
    with pytest.raises(InputError, match='timesteps has 1000, and the last of sd15 is 999'):
        begin(inputs, tmp_path / 'beyond', timesteps=(499, 1000))
    with pytest.raises(InputError, match='inpo gets its noise by DDIM inversion .* pure noise'):
        begin(inputs, tmp_path / 'inpo', method='inpo', zero_terminal_snr=True)


def test_a_run_that_mirrors_goes_on_to_the_same_bits(made, tmp_path):
    inputs = again_with(made('sdxl'), tmp_path / 'e', mirrored=True, sizes=True, empty_text=True)
    seen = dict(mirror='each', empty_prompt='encoded', time_ids='picture')
    go(inputs, tmp_path / 'a', max_steps=3, **seen)
    go(inputs, tmp_path / 'b', max_steps=1, **seen)
    torch.manual_seed(99)
    go(inputs, tmp_path / 'b', max_steps=3, **seen)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(InputError, match=r'training\.mirror'):
        go(inputs, tmp_path / 'b', max_steps=4, **seen | dict(mirror='pair'))
