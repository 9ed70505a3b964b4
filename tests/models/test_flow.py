"""SD3, SD3.5 and FLUX against the library's own pipelines, schedulers and LoRA loading; tiny random
models."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from balanceddpo.command.plans import amount
from balanceddpo.command.sampling import sample_plan
from balanceddpo.command.training import EncodeOptions, TrainOptions, encode_plan, train_plan
from balanceddpo.core.errors import InputError
from balanceddpo.data.prompts import PromptSet
from balanceddpo.losses.diffusion_dpo import draw_timesteps
from balanceddpo.models.config import EncodeConfig, SampleConfig
from balanceddpo.models.families import load_family, plain_pipeline
from balanceddpo.models.flow import pack_latents, token_places, unpack_latents
from balanceddpo.models.folders import native_latents
from balanceddpo.models.sampling import image_seed, sample
from balanceddpo.models.saving import save_pipeline
from balanceddpo.models.weights import merged_weights
from short_runs import settings
from tiny_models import (
    FLOW_KINDS,
    SIZE,
    diffusers_pipeline,
    draw_array,
    rewritten_copy,
    tiny_folder,
    with_adapters,
)

PROMPTS = [
    'a red cat',
    'two dogs!',
    '',
    'a prompt with far more characters than the sixteen tokens there are ' * 9,
]
FLUX_KINDS = ('flux', 'schnell')
# of 64 pixels: 16 tokens
SHIFT = {'sd3': 3.0, 'sd35': 3.0, 'flux': np.exp(0.5 + 0.65 * (16 - 256) / 3840), 'schnell': 1.0}
ATTENTION = ('to_q', 'to_k', 'to_v', 'to_out.0')
TEXT_ATTENTION = ('add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out')


def noise_of(n=2, seed=0, size=SIZE):
    return torch.randn(n, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))


def guidance_of(kind, scale):
    "What a user of the plain pipeline writes for guidance by `scale`."
    return (
        dict(true_cfg_scale=scale, negative_prompt='')
        if kind == 'schnell'
        else dict(guidance_scale=scale)
    )


def plain_scheduler(folder):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder='scheduler')


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
def test_images_and_latents_are_the_librarys(folders, kind, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', 'plain')  # the kernels that the library takes
    family, pipe = load_family(folders[kind], device='cpu'), diffusers_pipeline(folders[kind])
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
    pipe, family = diffusers_pipeline(folders[kind]), load_family(folders[kind], device='cpu')
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

    x = torch.randn(3, 16, h, w)
    assert torch.equal(pack_latents(x), FluxPipeline._pack_latents(x, 3, 16, h, w))
    assert torch.equal(unpack_latents(pack_latents(x), h, w), x)
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


def velocity(family, x, t, conditioning):
    "Of noisy latents [n, c, h, w] that are all at timestep t."
    with torch.no_grad():
        return family.predict(family.model, x, torch.tensor([t] * len(x)), conditioning, SIZE)


@pytest.mark.parametrize('scale', [1.0, 4.0])
@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_the_pipelines_images_come_out_of_our_predictions(folders, kind, scale):
    """Three Euler steps with `predict`, guidance on and off, against the whole of the library's
    `pipe(prompt)` from the same noise; the steps are u = 1, .7 and .2."""
    pipe, family = diffusers_pipeline(folders[kind]), load_family(folders[kind], device='cpu')
    prompts, x = ['a red cat', 'a dog'], noise_of()
    theirs = pipe(
        prompts,
        latents=pack_latents(x) if kind in FLUX_KINDS else x,
        num_inference_steps=3,
        sigmas=[1.0, 0.7, 0.2],
        height=SIZE,
        width=SIZE,
        output_type='latent',
        **guidance_of(kind, scale),
    ).images
    text = family.encode_prompts(prompts)
    empty = {k: v.expand(2, *v.shape[1:]) for k, v in family.empty_conditioning().items()}
    family.training_guidance = scale
    timesteps = [999, 699, 199]
    sigmas = [*family.sigmas(x)[timesteps], 0.0]
    for t, now, after in zip(timesteps, sigmas, sigmas[1:]):
        v = velocity(family, x, t, text)
        if scale > 1 and kind != 'flux':
            without = velocity(family, x, t, empty)
            v = without + scale * (v - without)
        x = x + (after - now) * v
    theirs = unpack_latents(theirs, 8, 8) if kind in FLUX_KINDS else theirs
    torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)


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
    theirs = diffusers_pipeline(folders[kind])(
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


# --- saving


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_a_random_lora_draws_the_same_in_plain_diffusers(folders, tmp_path, kind):
    "A scale that is not 1, and a second adapter beside it, as the reference is."
    model, family = with_adapters(folders[kind]), load_family(folders[kind], device='cpu')
    size = dict(height=SIZE, width=SIZE)
    ours = plain_pipeline(family, plain_scheduler(folders[kind]), model=model)
    expected = draw_array(ours, **size)
    lora = save_pipeline(folders[kind], model, tmp_path / 'lora', adapter='default')
    pipe = diffusers_pipeline(folders[kind])
    before = draw_array(pipe, **size)
    pipe.load_lora_weights(lora)
    torch.testing.assert_close(draw_array(pipe, **size), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


def adapted_layers(file):
    "The layers of a transformer that a LoRA file adapts."
    with safe_open(file, 'pt') as f:
        names = list(f.keys())
    assert all(n.startswith('transformer.') and 'reference' not in n for n in names)
    return {n.split('.lora_')[0].removeprefix('transformer.') for n in names}


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_a_lora_adapts_all_attention_and_merging_changes_nothing_else(folders, tmp_path, kind):
    base, model = folders[kind], with_adapters(folders[kind])
    lora = save_pipeline(base, model, tmp_path / 'lora', adapter='default')
    file = lora / 'pytorch_lora_weights.safetensors'
    layers = adapted_layers(file)
    attention = (*ATTENTION, *TEXT_ATTENTION)
    assert {f'transformer_blocks.0.attn.{n}' for n in attention} <= layers
    assert ('single_transformer_blocks.0.attn.to_q' in layers) == (kind in FLUX_KINDS)
    assert ('transformer_blocks.0.attn2.to_q' in layers) == (kind == 'sd35')
    merged = merged_weights(base, file)
    untouched = dict(load_family(base, device='cpu').model.named_parameters())
    assert merged.keys() == untouched.keys()
    changed = {n for n, p in merged.items() if not torch.equal(p, untouched[n])}
    assert {n.removesuffix('.weight') for n in changed} == layers


# --- refusals, and the plans of the command line


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
            rewritten_copy(folders['sd3'], tmp_path / str(i), 'model_index.json', _class_name=name),
        )
    scheduler = 'scheduler/scheduler_config.json'
    refused(
        "prediction type 'epsilon' is not one of flow",
        rewritten_copy(folders['flux'], tmp_path / 'x', scheduler, _class_name='DDIMScheduler'),
    )
    sd15 = tiny_folder(tmp_path / 'sd15')
    refused(
        "prediction type 'flow' is not one of epsilon",
        rewritten_copy(
            sd15, tmp_path / 'y', scheduler, _class_name='FlowMatchEulerDiscreteScheduler'
        ),
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
            _ = family.alphas_cumprod
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
    drawn = sample_plan(
        SampleConfig(model=str(folders[kind]), images_per_prompt=1, scheduler='euler'), prompts
    )
    assert drawn[-1] == f'at most {amount(6 * side**2, "bytes")} of PNG files'
    options = EncodeOptions(pairs='icons', limit=3)
    assert (
        'of embeddings'
        in encode_plan(options, EncodeConfig(model=str(folders[kind]), resolution=SIZE))[-1]
    )
    inputs = made(kind)
    trained = train_plan(
        TrainOptions(labels=inputs.file, encoded=inputs.folder),
        settings(inputs),
        inputs.encoded,
        inputs.labels,
    )
    n = sum(p.numel() for p in load_family(inputs.base, device='cpu').model.state_dict().values())
    assert amount(n, 'parameters') in trained[-1]
