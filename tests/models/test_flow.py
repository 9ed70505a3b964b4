"""SD3, SD3.5 and FLUX against the library's own pipelines, scheduler and LoRA loading, and flow DPO
against a loop written by hand; tiny random models."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from balanceddpo import cli
from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import PromptSet
from balanceddpo.losses.diffusion_dpo import draw_noise, draw_timesteps, draw_uniform
from balanceddpo.losses.methods import LOSSES
from balanceddpo.models.encoding import EncodeConfig
from balanceddpo.models.families import (
    load_family,
    lora_targets,
    native_latents,
    pack,
    part_digests,
    pipeline_index,
    plain_pipeline,
    save_pipeline,
    unpack,
)
from balanceddpo.models.sampling import SampleConfig, image_seed, sample
from balanceddpo.paper.experiments import Model, merged_weights
from balanceddpo.training import loop as training
from balanceddpo.training.loop import micro_batch, plan, run_inputs
from short_runs import LN2, begin, go, metrics, settings
from short_runs import SIZE as SMALL
from tiny_models import FLOW_KINDS, SIZE, tiny_folder

PROMPTS = [
    'a red cat',
    'two dogs!',
    '',
    'a prompt with far more characters than the sixteen tokens there are ' * 9,
]
FLUX_KINDS = ('flux', 'schnell')
# of 64 pixels: 16 tokens
SHIFT = {'sd3': 3.0, 'sd35': 3.0, 'flux': np.exp(0.5 + 0.65 * (16 - 256) / 3840), 'schnell': 1.0}


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('flows')
    return {kind: tiny_folder(root / kind, kind) for kind in FLOW_KINDS}


def plain(folder):
    from diffusers import DiffusionPipeline

    # the library wants it said that T5 is left out
    absent = {
        k: None
        for k, spec in pipeline_index(folder).items()
        if spec == [None, None] and k.endswith('_3')
    }
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise_of(n=2, seed=0, size=SIZE):
    return torch.randn(n, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))


def guidance_of(kind, scale):
    "What a user of the plain pipeline writes for guidance by `scale`."
    return (
        dict(true_cfg_scale=scale, negative_prompt='')
        if kind == 'schnell'
        else dict(guidance_scale=scale)
    )


# --- the parts


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_the_folder_says_what_it_is(folders, kind):
    family = load_family(folders[kind], device='cpu')
    assert (family.name, family.prediction, family.n_train_timesteps) == (
        'flux' if kind in FLUX_KINDS else 'sd3',
        'flow',
        1000,
    )
    assert family.latent_shape(128) == (16, 16, 16)
    assert (
        family.default_size
        == (1024 if kind in FLUX_KINDS else SIZE)
        == 8 * native_latents(folders[kind])
    )
    assert ('text_encoder_3' in family.parts) == (kind == 'sd3')
    assert not family.model.training


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_images_and_latents_are_the_librarys(folders, kind):
    family, pipe = load_family(folders[kind], device='cpu'), plain(folders[kind])
    images = torch.randint(
        0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        gaussian = pipe.vae.encode(
            pipe.image_processor.preprocess(images.float() / 255)
        ).latent_dist
    torch.testing.assert_close(
        family.latents(family.encode_images(images)),
        (gaussian.mean - 0.06) * 1.5,
        rtol=1e-5,
        atol=1e-6,
    )
    x0 = noise_of()
    with torch.no_grad():
        pixels = pipe.vae.decode(x0 / 1.5 + 0.06).sample
    assert (
        family.decode(x0).float() - pipe.image_processor.postprocess(pixels, output_type='pt') * 255
    ).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_prompts_are_encoded_as_the_pipeline_does(folders, kind):
    pipe, family = plain(folders[kind]), load_family(folders[kind], device='cpu')
    ours, empty = family.encode_prompts(PROMPTS), family.empty_conditioning()
    if kind in FLUX_KINDS:
        embeds, pooled, ids = pipe.encode_prompt(prompt=PROMPTS, device='cpu')
        no_embeds, no_pooled, _ = pipe.encode_prompt(prompt=[''], device='cpu')
        assert embeds.shape == (4, 512, 48)
        assert not ids.any()  # as `predict` has them
    else:
        embeds, no_embeds, pooled, no_pooled = pipe.encode_prompt(
            PROMPTS, None, None, device='cpu', do_classifier_free_guidance=True
        )
    for name, theirs, nothing in (
        ('prompt_embeds', embeds, no_embeds),
        ('pooled', pooled, no_pooled),
    ):
        # rounding: the library does not switch gradients off
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=3e-5)
        torch.testing.assert_close(empty[name].expand_as(nothing), nothing, rtol=1e-4, atol=3e-5)
    assert set(ours) == {'prompt_embeds', 'pooled'}
    if kind == 'sd35':
        assert not ours['prompt_embeds'][:, 16:].any()  # no T5: zeros


@pytest.mark.parametrize('h, w', [(4, 4), (4, 8), (6, 2)])
def test_packing_is_the_pipelines(h, w):
    from diffusers import FluxPipeline

    from balanceddpo.models.families import token_places

    x = torch.randn(3, 16, h, w)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 3, 16, h, w))
    assert torch.equal(unpack(pack(x), h, w), x)
    assert torch.equal(
        token_places(h, w, x),
        FluxPipeline._prepare_latent_image_ids(3, h // 2, w // 2, 'cpu', x.dtype),
    )


# --- noise and target


@pytest.mark.parametrize('size', [64, 512, 1024, 2048])
@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_the_schedule_is_the_librarys(folders, kind, size):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    family, scheduler = (
        load_family(folders[kind], device='cpu', components=()),
        plain_scheduler(folders[kind]),
    )
    ours = family.sigmas(torch.empty(1, 16, size // 8, size // 8))
    if kind == 'flux':
        mu = calculate_shift((size // 16) ** 2, 256, 4096, 0.5, 1.15)
        assert abs(family.shift((size // 16) ** 2) - mu) < 1e-12
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.001, 1000), mu=mu)
        scheduler.sigmas = scheduler.sigmas[:-1]
    torch.testing.assert_close(ours, scheduler.sigmas.flip(0), rtol=1e-5, atol=1e-7)
    assert len(ours) == 1000
    assert ours[-1] == 1
    assert (ours.diff() > 0).all()
    assert ours[0] > 0


def plain_scheduler(folder):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder='scheduler')


def test_sigmas_by_hand(folders):
    sd3, flux, schnell = (
        load_family(folders[k], device='cpu', components=()) for k in ('sd3', 'flux', 'schnell')
    )
    t = torch.tensor([249, 499, 999])
    middle = 1024 // 8
    like = torch.empty(1, 16, middle, middle)
    # 3/4 / (1 + 2/4), 3/2 / (1 + 1)
    torch.testing.assert_close(sd3.sigmas(like)[t], torch.tensor([0.5, 0.75, 1.0]))
    torch.testing.assert_close(schnell.sigmas(like)[t], torch.tensor([0.25, 0.5, 1.0]))
    s = float(np.exp(1.15))
    torch.testing.assert_close(flux.sigmas(like)[t], torch.tensor([s / (s + 3), s / (s + 1), 1.0]))
    # a smaller image needs less noise
    assert flux.sigmas(like[..., :64, :64])[499] < flux.sigmas(like)[499]


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_noise_and_target_are_the_schedulers(folders, kind):
    family, x0, eps, t = (
        load_family(folders[kind], device='cpu', components=()),
        noise_of(3, 1),
        noise_of(3, 2),
        torch.tensor([0, 500, 998]),
    )
    noisy, sigma = family.noise(x0, eps, t), family.sigmas(x0)[t]
    s = (
        torch.tensor([SHIFT[kind] * u / (1 + (SHIFT[kind] - 1) * u) for u in (0.001, 0.501, 0.999)])
        .float()
        .view(3, 1, 1, 1)
    )
    torch.testing.assert_close(noisy, (1 - s) * x0 + s * eps, rtol=1e-5, atol=1e-5)
    assert torch.equal(family.target(x0, eps, t), eps - x0)
    scheduler = plain_scheduler(folders[kind])
    if kind != 'flux':
        torch.testing.assert_close(
            noisy,
            scheduler.scale_noise(x0, scheduler.timesteps.flip(0)[t], eps),
            rtol=1e-5,
            atol=1e-5,
        )
    for i in range(3):  # one Euler step along the target ends at the image
        scheduler.sigmas, scheduler.timesteps, scheduler._step_index = (
            torch.tensor([sigma[i], 0.0]),
            1000 * sigma[i : i + 1],
            None,
        )
        torch.testing.assert_close(
            scheduler.step(eps[i] - x0[i], 1000 * sigma[i], noisy[i]).prev_sample,
            x0[i],
            rtol=1e-5,
            atol=1e-5,
        )


def test_timesteps_favour_the_middle(folders):
    family = load_family(folders['sd3'], device='cpu', components=())
    t = draw_timesteps(0, 0, range(4000), 1000, density=family.timestep_density).float()
    # the logit is standard normal
    assert abs((t.log() - (1000 - t).log()).std() - 1) < 0.05
    assert abs(t.mean() - 500) < 12


# --- prediction


@pytest.mark.parametrize('scale', [1.0, 4.0])
@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_the_pipelines_images_come_out_of_our_predictions(folders, kind, scale):
    """Three Euler steps with `predict`, guidance on and off, against the whole of the library's
    `pipe(prompt)` from the same noise; the steps are u = 1, .7 and .2."""
    pipe, family, x = plain(folders[kind]), load_family(folders[kind], device='cpu'), noise_of()
    prompts, given = ['a red cat', 'a dog'], pack(x) if kind in FLUX_KINDS else x
    theirs = pipe(
        prompts,
        latents=given,
        num_inference_steps=3,
        sigmas=[1.0, 0.7, 0.2],
        height=SIZE,
        width=SIZE,
        output_type='latent',
        **guidance_of(kind, scale),
    ).images
    text, empty = (
        family.encode_prompts(prompts),
        {k: v.expand(2, *v.shape[1:]) for k, v in family.empty_conditioning().items()},
    )
    family.training_guidance = scale
    sigmas = [*family.sigmas(x)[[999, 699, 199]], 0.0]
    for t, now, after in zip((999, 699, 199), sigmas, sigmas[1:]):

        def velocity(conditioning):
            with torch.no_grad():
                return family.predict(family.model, x, torch.tensor([t, t]), conditioning, SIZE)

        v = velocity(text)
        if scale > 1 and kind != 'flux':
            v = velocity(empty) + scale * (v - velocity(empty))
        x = x + (after - now) * v
    torch.testing.assert_close(
        x, unpack(theirs, 8, 8) if kind in FLUX_KINDS else theirs, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_every_input_of_the_prediction_counts(folders, kind):
    family, x, t = load_family(folders[kind], device='cpu'), noise_of(), torch.tensor([100, 900])
    text = family.encode_prompts(['a red cat', 'a dog'])

    def predict(noisy=x, timesteps=t, **changes):
        with torch.no_grad():
            return family.predict(family.model, noisy, timesteps, text | changes, SIZE)

    base = predict()
    assert base.shape == x.shape
    # alone or in company
    torch.testing.assert_close(
        predict(x[:1], t[:1], **{k: v[:1] for k, v in text.items()})[0],
        base[0],
        rtol=1e-4,
        atol=1e-5,
    )
    others = [
        predict(x + 0.1),
        predict(timesteps=t + 50),
        predict(pooled=text['pooled'] + 1),
        predict(prompt_embeds=text['prompt_embeds'] + 0.5),
    ]
    others.append(predict(x.transpose(2, 3)).transpose(2, 3))  # rows are not columns
    if kind == 'flux':
        family.training_guidance = 7.0
        others.append(predict())
    assert all((o - base).abs().max() > 1e-4 for o in others)


# --- sampling


@pytest.mark.parametrize('guidance', [1.0, 4.0])
@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_images_are_those_of_the_plain_pipeline(folders, tmp_path, kind, guidance):
    prompts = PromptSet('some', ('a red cat', 'a dog'))
    config = SampleConfig(
        model=str(folders[kind]),
        images_per_prompt=1,
        steps=3,
        guidance=guidance,
        scheduler='euler',
        resolution=SIZE,
        batch_size=4,
        device='cpu',
    )
    store = sample(config, prompts, tmp_path / 'o', progress=False)
    generators = [torch.Generator().manual_seed(image_seed(pid, 0, 0)) for pid in prompts.ids]
    theirs = plain(folders[kind])(
        list(prompts.prompts),
        num_inference_steps=3,
        generator=generators,
        height=SIZE,
        width=SIZE,
        **guidance_of(kind, guidance),
    ).images
    ours, theirs = (
        np.stack([np.asarray(i, int) for i in images])
        for images in ([i for _, i, _ in store.items()], theirs)
    )
    assert np.abs(ours - theirs).max() <= 1
    assert theirs.std() > 5


def test_a_sampler_of_the_wrong_kind_is_refused(folders, tmp_path):
    for name in ('ddim', 'dpm++', 'pndm'):
        config = SampleConfig(model=str(folders['sd3']), steps=1, scheduler=name, device='cpu')
        with pytest.raises(InputError, match='is not for a flow model: use euler'):
            sample(config, PromptSet('one', ('a',)), tmp_path / name, progress=False)


# --- training


def by_hand(inputs, config, steps, kind):
    """Flow DPO on all weights in plain torch, winner first: no code of training.py or families.py
    but the order of the pairs; returns the weights and the losses."""
    from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel

    flux = kind in FLUX_KINDS
    policy, reference = (
        (FluxTransformer2DModel if flux else SD3Transformer2DModel)
        .from_pretrained(inputs.base, subfolder='transformer')
        .eval()
        for _ in range(2)
    )
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        foreach=False,
    )
    decided = inputs.labels[inputs.labels.s != 0].set_index('pair_id').s
    usable, side, losses = (
        [i for i, p in enumerate(inputs.encoded.pair_ids) if p in decided.index],
        SMALL // 8,
        [],
    )
    shift = (
        float(np.exp(0.5 + 0.65 * ((side // 2) ** 2 - 256) / 3840))
        if kind == 'flux'
        else SHIFT[kind]
    )
    places = FluxPipeline._prepare_latent_image_ids(0, side // 2, side // 2, 'cpu', torch.float32)

    def predict(model, x, sigma, text, pooled):
        if not flux:
            return model(
                hidden_states=x,
                timestep=1000 * sigma,
                encoder_hidden_states=text,
                pooled_projections=pooled,
            ).sample
        guidance = torch.full((len(x),), 3.5) if kind == 'flux' else None
        packed, ids = (
            FluxPipeline._pack_latents(x, len(x), 16, side, side),
            dict(img_ids=places, txt_ids=torch.zeros(text.shape[1], 3)),
        )
        v = model(
            hidden_states=packed,
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            **ids,
        ).sample
        return FluxPipeline._unpack_latents(v, SMALL, SMALL, 8)

    for step in range(steps):
        chosen = [usable[i] for i in plan(len(usable), config.batch_size, config.seed, step)]
        ids = [inputs.encoded.pair_ids[i] for i in chosen]
        moments, conditioning = inputs.encoded.moments(chosen), inputs.encoded.conditioning(chosen)
        z = draw_noise(config.seed, step, ids, (2, 16, side, side), 'latents')
        latents = 1.5 * (moments[:, :, :16] + torch.exp(moments[:, :, 16:] / 2) * z - 0.06)
        first_wins = torch.tensor([decided[p] == 1 for p in ids]).view(-1, 1, 1, 1)
        winner, loser = (
            torch.where(first_wins, latents[:, 0], latents[:, 1]),
            torch.where(first_wins, latents[:, 1], latents[:, 0]),
        )
        dropped = draw_uniform(config.seed, step, ids, 'empty prompt') < config.empty_prompt_rate
        text, pooled = (
            torch.stack(
                [
                    inputs.encoded.empty_conditioning[k][0] if d else e
                    for d, e in zip(dropped, conditioning[k])
                ]
            )
            for k in ('prompt_embeds', 'pooled')
        )
        text, pooled = torch.cat([text, text]), torch.cat([pooled, pooled])
        u = (draw_timesteps(config.seed, step, ids, 1000, density='logit_normal') + 1) / 1000
        sigma = (shift * u / (1 + (shift - 1) * u)).repeat(2)
        noise, clean, s = (
            draw_noise(config.seed, step, ids, (16, side, side)).repeat(2, 1, 1, 1),
            torch.cat([winner, loser]),
            sigma.view(-1, 1, 1, 1),
        )
        noisy, velocity = (1 - s) * clean + s * noise, noise - clean
        model_w, model_l = (
            (predict(policy, noisy, sigma, text, pooled) - velocity).pow(2).mean([1, 2, 3]).chunk(2)
        )
        with torch.no_grad():
            ref_w, ref_l = (
                (predict(reference, noisy, sigma, text, pooled) - velocity)
                .pow(2)
                .mean([1, 2, 3])
                .chunk(2)
            )
        loss = -torch.nn.functional.logsigmoid(
            -0.5 * config.beta * ((model_w - model_l) - (ref_w - ref_l))
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
        optimizer.step()
        if (step + 1) % config.refresh_every == 0:
            reference.load_state_dict(policy.state_dict())
    return policy.state_dict(), losses


@pytest.mark.parametrize('kind', ['sd3', 'flux', 'schnell'])
def test_four_steps_equal_a_loop_written_by_hand(made, tmp_path, kind):
    inputs = made(kind)
    changes = dict(
        max_steps=4, refresh_every=3, learning_rate=1e-4, empty_prompt_rate=0.5, micro_batch_size=3
    )
    family = load_family(inputs.base, device='cpu')
    before = {k: v.clone() for k, v in family.model.state_dict().items()}
    go(inputs, tmp_path / 'run', family=family, **changes)
    expected, losses = by_hand(inputs, settings(inputs, **changes), 4, kind)
    assert [r['loss'] for r in metrics(tmp_path / 'run')] == pytest.approx(losses, abs=1e-4)
    assert abs(losses[1] - LN2) > 1e-3
    assert losses[3] == LN2
    weights, ours, start = (
        torch.cat([state[k].flatten() for k in before])
        for state in (expected, family.model.state_dict(), before)
    )
    moved, apart = (weights - start).norm(), (weights - ours).norm()
    assert apart < 1e-5 * weights.norm()
    assert apart < 3e-3 * moved


def test_the_loss_of_one_pair_by_hand(made, tmp_path):
    """A policy that predicts the velocity plus 1, a reference that predicts it exactly for image 0
    and plus 2 for image 1: errors 1, 1, 0, 4."""
    run = begin(made('sd3'), tmp_path, beta=1.0)
    batch = micro_batch(run, np.arange(1))
    sigma = run.family.sigmas(batch.noisy)[batch.timesteps].view(-1, 1, 1, 1)
    x0 = batch.noisy - sigma * batch.target  # x_t = x0 + sigma (eps - x0)
    # one noise, two images
    assert torch.allclose((x0 + batch.target)[0], (x0 + batch.target)[1], atol=1e-5)
    assert not torch.allclose(x0[0], x0[1])
    run.reference = SimpleNamespace(
        predict=lambda call: batch.target + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    )
    run.family = SimpleNamespace(predict=lambda *_: batch.target + 1)
    outputs = replace(training.outputs_of(run, batch), weights=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(outputs.errors, torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(outputs.reference_errors, torch.tensor([[0.0, 4.0]]))
    loss, logit = training.loss_of(run.config)(outputs)
    assert logit.item() == pytest.approx(-0.5 * ((1 - 1) - (0 - 4)))
    assert loss.item() == pytest.approx(np.log1p(np.exp(2)))
    torch.testing.assert_close(outputs.log_snr, 2 * ((1 - sigma) / sigma).log().flatten()[::2])


def test_every_method_that_needs_no_inversion_has_a_loss_and_the_others_are_refused(made, tmp_path):
    """One gradient each, with random noise. A timestep of pure noise (log signal-to-noise ratio
    -inf) does no harm."""
    inputs = made('sd35')
    run = begin(inputs, tmp_path / 'run')
    batch = micro_batch(run, np.arange(4))
    last = replace(batch, log_snr=run.family.log_snr(batch.noisy, torch.tensor([999, 999, 500, 0])))
    assert last.log_snr[:2].tolist() == [-np.inf] * 2
    with torch.no_grad():
        for p in run.parameters:
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    for method in LOSSES:
        run.config = replace(
            run.config, method=method, beta=None, noise='random', micro_batch_size=4
        )
        losses, logits = training.loss_of(run.config)(training.outputs_of(run, last))
        losses.sum().backward()
        assert losses.isfinite().all() and all(
            p.grad.isfinite().all() for p in run.parameters if p.grad is not None
        ), method
        assert sum(p.grad.abs().sum() for p in run.parameters if p.grad is not None) > 0, method
        run.optimizer.zero_grad()
    for method in ('smpo', 'inpo'):
        with pytest.raises(
            InputError,
            match=f'{method} gets its noise by DDIM inversion .*, which flow models have not',
        ):
            begin(inputs, tmp_path / method, method=method)


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_two_steps_of_every_family_load_in_plain_diffusers(made, tmp_path, kind, mode):
    inputs = made(kind)
    family = load_family(inputs.base, device='cpu')
    out = go(inputs, tmp_path / 'run', family=family, mode=mode, max_steps=2, refresh_every=1)
    # before the first step, and after a refresh
    assert [r['loss'] for r in metrics(tmp_path / 'run')] == [LN2, LN2]
    assert all(
        r['grad_norm'] > 0 and r['margin'] == 0 and r['distance'] == 0 and r['refreshed']
        for r in metrics(tmp_path / 'run')
    )
    x, t, conditioning = (
        noise_of(2, 3, SMALL),
        torch.tensor([10, 900]),
        inputs.encoded.conditioning([0, 1]),
    )

    def predict(model):
        with torch.no_grad():
            return family.predict(model, x, t, conditioning, SMALL)

    base = plain(inputs.base)
    untrained = predict(base.transformer)
    if mode == 'full':
        loaded = plain(out)
    else:
        loaded = base
        loaded.load_lora_weights(out, local_files_only=True)
    torch.testing.assert_close(
        predict(loaded.transformer), predict(family.model), rtol=1e-5, atol=1e-6
    )
    assert not torch.allclose(predict(loaded.transformer), untrained, rtol=1e-4, atol=1e-4)
    if mode == 'full':
        assert {k for k, v in part_digests(out).items() if v != part_digests(inputs.base)[k]} == {
            'transformer'
        }
    card = (out / 'README.md').read_text()
    assert (
        'add_q_proj' in card and 'load_lora_weights' in card
        if mode == 'lora'
        else 'from_pretrained("this folder")' in card
    )


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_a_random_lora_draws_the_same_in_plain_diffusers(folders, tmp_path, kind):
    "A scale that is not 1, and a second adapter beside it, as the reference is."
    from peft import LoraConfig
    from safetensors import safe_open

    model, family = (
        load_family(folders[kind], device='cpu').model,
        load_family(folders[kind], device='cpu'),
    )
    for i, name in enumerate(('default', 'reference')):
        model.add_adapter(
            LoraConfig(r=4, lora_alpha=16, target_modules=list(lora_targets(folders[kind]))),
            adapter_name=name,
        )
        for n, p in model.named_parameters():
            if f'lora_B.{name}' in n:
                p.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    model.set_adapter('default')
    size = dict(height=SIZE, width=SIZE)

    def draw(pipe):
        return torch.from_numpy(
            pipe(
                'a red cat',
                num_inference_steps=2,
                output_type='np',
                generator=torch.Generator().manual_seed(0),
                **size,
            ).images
        )

    expected = draw(plain_pipeline(family, plain_scheduler(folders[kind]), model=model))
    lora = save_pipeline(folders[kind], model, tmp_path / 'lora', adapter='default')
    pipe = plain(folders[kind])
    before = draw(pipe)
    pipe.load_lora_weights(lora)
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)
    with safe_open(lora / 'pytorch_lora_weights.safetensors', 'pt') as f:
        names = list(f.keys())
    assert all(n.startswith('transformer.') and 'reference' not in n for n in names)
    blocks = {n.split('.lora_')[0].removeprefix('transformer.') for n in names}
    adapted = {
        'attn.to_q',
        'attn.to_k',
        'attn.to_v',
        'attn.to_out.0',
        'attn.add_q_proj',
        'attn.add_k_proj',
        'attn.add_v_proj',
        'attn.to_add_out',
    }
    assert {f'transformer_blocks.0.{n}' for n in adapted} <= blocks
    assert ('single_transformer_blocks.0.attn.to_q' in blocks) == (kind in FLUX_KINDS)
    assert ('transformer_blocks.0.attn2.to_q' in blocks) == (kind == 'sd35')
    merged, untouched = (
        merged_weights(
            Model('m', str(folders[kind]), str(lora / 'pytorch_lora_weights.safetensors'))
        ),
        dict(family.model.named_parameters()),
    )
    assert merged.keys() == untouched.keys()
    assert {
        n.removesuffix('.weight') for n, p in merged.items() if not torch.equal(p, untouched[n])
    } == blocks


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize('kind', ['sd35', 'flux'])
def test_bf16_has_one_numeric_path(made, tmp_path, kind, mode):
    out = go(
        made(kind), tmp_path / 'run', mode=mode, precision='bf16', max_steps=3, refresh_every=2
    )
    rows = metrics(out.parent)
    assert rows[0]['loss'] == rows[2]['loss'] == LN2 != rows[1]['loss']


@pytest.mark.parametrize('kind', ['sd3', 'flux'])
def test_the_reference_follows_by_its_alpha_and_gradients_can_be_recomputed(made, tmp_path, kind):
    runs = {
        on: go(
            made(kind),
            tmp_path / str(on),
            mode='lora',
            max_steps=4,
            refresh_every=2,
            refresh_alpha=0.5,
            gradient_checkpointing=on,
        ).parent
        for on in (False, True)
    }
    a, b = (metrics(folder) for folder in runs.values())
    assert [r['refreshed'] for r in a] == [False, True, False, True]
    assert 0 < a[1]['distance'] < a[0]['distance'] * 2
    for x, y in zip(a, b):
        assert x['loss'] == pytest.approx(y['loss'], abs=1e-5)


def test_the_family_names_the_layers_of_a_lora_and_the_key_of_a_run_says_them(made, tmp_path):
    for kind, targets in (
        ('sd15', ('to_q', 'to_k', 'to_v', 'to_out.0')),
        (
            'sd3',
            (
                'to_q',
                'to_k',
                'to_v',
                'to_out.0',
                'add_q_proj',
                'add_k_proj',
                'add_v_proj',
                'to_add_out',
            ),
        ),
    ):
        inputs = made(kind)
        config = settings(inputs, mode='lora')
        keys = [
            run_inputs(c, inputs.encoded, inputs.labels, inputs.label_config, inputs.base)
            for c in (config, replace(config, lora_targets=targets))
        ]
        assert keys[0] == keys[1]
        assert keys[0]['training']['lora_targets'] == targets == lora_targets(inputs.base)
        assert begin(inputs, tmp_path / kind, mode='lora').config.lora_targets == targets
    only = begin(made('sd3'), tmp_path / 'only', mode='lora', lora_targets=('to_add_out',))
    assert {
        n.split('.lora_')[0].split('.')[-1]
        for n, p in only.policy.named_parameters()
        if p.requires_grad
    } == {'to_add_out'}


# --- refusals, and the plans of the command line


def rewritten(folder, target, file, **changes):
    folder = shutil.copytree(folder, target)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


def test_refusals_say_what_there_is(folders, tmp_path):
    def refused(pattern, *args, **kwargs):
        with pytest.raises(InputError, match=pattern) as error:
            load_family(*args, device='cpu', **kwargs)
        assert '\n' not in str(error.value)

    supported = (
        'StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline'
    )
    for i, (name, reason) in enumerate(
        {
            'SanaPipeline': 'no Gaussian',
            'PixArtSigmaPipeline': 'no LoRA format',
            'FluxFillPipeline': 'FluxFillPipeline',
        }.items()
    ):
        refused(
            f'{reason}.*the families here are {supported}',
            rewritten(folders['sd3'], tmp_path / str(i), 'model_index.json', _class_name=name),
        )
    scheduler = 'scheduler/scheduler_config.json'
    refused(
        "prediction type 'epsilon' is not one of flow",
        rewritten(folders['flux'], tmp_path / 'x', scheduler, _class_name='DDIMScheduler'),
    )
    sd15 = tiny_folder(tmp_path / 'sd15')
    refused(
        "prediction type 'flow' is not one of epsilon",
        rewritten(sd15, tmp_path / 'y', scheduler, _class_name='FlowMatchEulerDiscreteScheduler'),
    )
    refused(
        "unknown component 'unet' of a model: use text, vae, denoiser",
        sd15,
        components=('vae', 'unet'),
    )


def test_what_a_flow_model_does_not_have_is_refused(folders):
    for kind in FLOW_KINDS:
        family = load_family(folders[kind], device='cpu', components=('vae', 'denoiser'))
        with pytest.raises(InputError, match='is a flow model, which has no alpha_bar'):
            family.alphas_cumprod
        with pytest.raises(InputError, match='resolution 72 is not a multiple of 16'):
            family.latent_shape(72)
        with pytest.raises(InputError, match='tokenizer.* was not loaded'):
            family.encode_prompts(['a'])
    with pytest.raises(InputError, match='has no safety_checker'):
        sample(
            SampleConfig(
                model=str(folders['sd3']),
                scheduler='euler',
                steps=1,
                safety_checker=True,
                device='cpu',
            ),
            PromptSet('one', ('a',)),
            progress=False,
        )


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_plans_of_the_command_line(folders, made, kind):
    side, prompts = (
        (1024 if kind in FLUX_KINDS else SIZE),
        PromptSet('some', ('a red cat', 'a dog')),
    )
    drawn = cli.sample_plan(
        SampleConfig(model=str(folders[kind]), images_per_prompt=1, scheduler='euler'), prompts
    )
    assert drawn[-1] == f'at most {cli.amount(6 * side**2, "bytes")} of PNG files'
    options = cli.EncodeOptions(pairs='icons', limit=3)
    assert (
        'of embeddings'
        in cli.encode_plan(options, EncodeConfig(model=str(folders[kind]), resolution=SIZE))[-1]
    )
    inputs = made(kind)
    trained = cli.train_plan(
        cli.TrainOptions(labels=inputs.file, encoded=inputs.folder),
        settings(inputs),
        inputs.encoded,
        inputs.labels,
    )
    n = sum(p.numel() for p in load_family(inputs.base, device='cpu').model.state_dict().values())
    assert cli.amount(n, 'parameters') in trained[-1]


def test_only_the_families_know_a_family():
    """Training, encoding and sampling do not know a family: no name of a part, pipeline or
    architecture in their source."""
    import inspect

    from balanceddpo.losses import diffusion_dpo
    from balanceddpo.models import encoding, sampling
    from balanceddpo.training import reference

    known = (
        "'unet'",
        "'transformer'",
        'UNet2D',
        'Flux',
        'FLUX',
        'StableDiffusion3',
        'guidance_embeds',
        "'to_q'",
        'pooled',
    )
    for module in (training, encoding, diffusion_dpo, reference, sampling):
        source = inspect.getsource(module)
        assert not [word for word in known if word in source], module.__name__
