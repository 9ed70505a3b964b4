"""Stable Diffusion 1.5, 2.1 and XL against the library's own pipelines and schedulers, on tiny
random models in the published shapes."""

import json
import shutil

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.models.families import load_family
from balanceddpo.models.folders import pipeline_index
from tiny_models import KINDS, diffusers_pipeline, rewritten_copy, some_latents

PROMPTS = [
    'a red cat',
    'two dogs!',
    '',
    'a prompt with far more characters than the sixteen tokens there are',
]


@pytest.mark.parametrize('zeros', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_prompts_are_encoded_as_the_pipeline_does(folders, kind, zeros, tmp_path):
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    index = pipeline_index(folder)
    (folder / 'model_index.json').write_text(
        json.dumps(index | ({'force_zeros_for_empty_prompt': zeros} if kind == 'sdxl' else {}))
    )
    pipe, family = (
        diffusers_pipeline(folder),
        load_family(folder, device='cpu', components=('text',)),
    )
    theirs = pipe.encode_prompt(
        prompt=PROMPTS, device='cpu', num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    ours, empty = family.encode_prompts(PROMPTS), family.empty_conditioning()
    for name, mine, other in zip(('prompt_embeds', 'pooled'), theirs[::2], theirs[1::2]):
        torch.testing.assert_close(ours[name], mine, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(empty[name].expand_as(other), other, rtol=1e-5, atol=1e-6)
    assert set(ours) == ({'prompt_embeds', 'pooled'} if kind == 'sdxl' else {'prompt_embeds'})


@pytest.mark.parametrize('kind', KINDS)
def test_prediction_is_the_pipelines_own_call(folders, kind):
    """The first call of the UNet inside the pipeline, caught by a hook, against `predict` on the
    same noisy latents."""
    pipe, family, calls = (
        diffusers_pipeline(folders[kind]),
        load_family(folders[kind], device='cpu'),
        [],
    )
    pipe.unet.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args, out[0])), with_kwargs=True
    )
    pipe(
        'a red cat',
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        height=128,
        width=128,
    )
    (noisy, t), out = calls[0]
    with torch.no_grad():
        mine = family.predict(
            family.model, noisy, t.reshape(1), family.encode_prompts(['a red cat']), 128
        )
    torch.testing.assert_close(mine, out, rtol=1e-5, atol=1e-6)


def test_the_size_conditioning_matters_for_sdxl(folders):
    family, x, t = load_family(folders['sdxl'], device='cpu'), some_latents(1), torch.tensor([500])
    text = family.encode_prompts(['a dog'])
    with torch.no_grad():
        a, b = (family.predict(family.model, x, t, text, size) for size in (512, 1024))
    assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_noise_and_target_are_the_schedulers(folders, kind):
    from diffusers import DDPMScheduler

    family, x0, eps, t = (
        load_family(folders[kind], device='cpu'),
        some_latents(seed=1),
        some_latents(seed=2),
        torch.tensor([0, 500, 999]),
    )
    scheduler = DDPMScheduler.from_pretrained(folders[kind], subfolder='scheduler')
    torch.testing.assert_close(family.noise(x0, eps, t), scheduler.add_noise(x0, eps, t))
    torch.testing.assert_close(
        family.target(x0, eps, t), scheduler.get_velocity(x0, eps, t) if kind == 'sd21' else eps
    )
    torch.testing.assert_close(
        family.alphas_cumprod, diffusers_pipeline(folders[kind]).scheduler.alphas_cumprod
    )


def test_a_schedule_with_zero_terminal_snr_is_honoured(folders, tmp_path):
    folder = shutil.copytree(folders['sd21'], tmp_path / 'sd21')
    config = folder / 'scheduler' / 'scheduler_config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | {'rescale_betas_zero_snr': True}))
    family = load_family(folder, device='cpu', components=())
    assert (
        family.alphas_cumprod[999]
        < 1e-6
        < 0.004
        < load_family(folders['sd21'], device='cpu', components=()).alphas_cumprod[999]
    )


def test_betas_that_leave_no_signal_are_refused_for_noise_and_not_for_v(folders, tmp_path):
    "The setting rescale_betas_zero_snr is refused by name; betas can do the same without it."
    betas = [0.1] * 9 + [1.0]
    for kind in ('sd15', 'sd21'):
        changes = dict(num_train_timesteps=10, trained_betas=betas)
        file = 'scheduler/scheduler_config.json'
        folder = rewritten_copy(folders[kind], tmp_path / kind, file, **changes)
        family = load_family(folder, device='cpu', components=('text',))
        if kind == 'sd21':
            assert family.alphas_cumprod[-1] == 0
        else:
            with pytest.raises(InputError, match='signal-to-noise ratio of zero'):
                _ = family.alphas_cumprod
