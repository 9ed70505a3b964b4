"""Families against the library's own pipelines and schedulers, on tiny random models in the
published shapes."""

import json
import shutil

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.models.families import (
    check_family,
    load_family,
    part_config,
    part_digests,
    parts_of,
    pipeline_index,
    plain_pipeline,
    save_pipeline,
)
from tiny_models import KINDS, SIZE, tiny_folder

PROMPTS = [
    'a red cat',
    'two dogs!',
    '',
    'a prompt with far more characters than the sixteen tokens there are',
]


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('pipelines')
    return {kind: tiny_folder(root / kind, kind) for kind in KINDS}


def plain(folder):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt='a red cat'):
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(
        pipeline(
            prompt, num_inference_steps=2, guidance_scale=3.0, output_type='np', generator=generator
        ).images
    )


def some_images(n=3, seed=0):
    return torch.randint(
        0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def some_latents(n=3, seed=0):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    'kind, name, prediction',
    [('sd15', 'sd15', 'epsilon'), ('sd21', 'sd21', 'v_prediction'), ('sdxl', 'sdxl', 'epsilon')],
)
def test_the_folder_says_what_it_is(folders, kind, name, prediction):
    family = load_family(folders[kind], device='cpu')
    assert (family.name, family.prediction, family.n_train_timesteps, family.latent_shape(128)) == (
        name,
        prediction,
        1000,
        (4, 16, 16),
    )
    assert not any(p.requires_grad for p in family.model.parameters())
    assert not family.model.training


@pytest.mark.parametrize('kind', KINDS)
def test_images_are_encoded_as_the_library_does(folders, kind):
    family, pipe, images = (
        load_family(folders[kind], device='cpu'),
        plain(folders[kind]),
        some_images(),
    )
    with torch.no_grad():
        gaussian = pipe.vae.encode(
            pipe.image_processor.preprocess(images.float() / 255)
        ).latent_dist
    moments, scale = family.encode_images(images), pipe.vae.config.scaling_factor
    assert moments.dtype == torch.float32
    torch.testing.assert_close(
        family.latents(moments), gaussian.mode() * scale, rtol=1e-5, atol=1e-6
    )
    noise = torch.randn(gaussian.mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        family.latents(moments, noise),
        gaussian.sample(torch.Generator().manual_seed(1)) * scale,
        rtol=1e-5,
        atol=1e-5,
    )


def test_sixteen_channels_shift_and_channel_statistics(tmp_path):
    folder = tiny_folder(tmp_path / 'sd', channels=16, scaling_factor=0.5, shift_factor=0.25)
    family, moments = load_family(folder, device='cpu'), torch.ones(1, 32, 8, 8)
    assert family.latent_shape() == (16, 8, 8)
    assert family.encode_images(some_images(1)).shape == (
        1,
        32,
        8,
        8,
    )
    assert torch.equal(family.latents(moments), torch.full((1, 16, 8, 8), (1 - 0.25) * 0.5))
    family.vae_config.update(latents_mean=[0.0] * 15 + [3.0], latents_std=[2.0] * 16)
    assert family.latents(moments)[0, :, 0, 0].tolist() == [(1 - 0) * 0.5 / 2] * 15 + [
        (1 - 3) * 0.5 / 2
    ]


@pytest.mark.parametrize('kind', KINDS)
def test_latents_are_decoded_as_the_pipeline_does(folders, kind):
    family, pipe, x0 = (
        load_family(folders[kind], device='cpu'),
        plain(folders[kind]),
        some_latents(2) * 0.5,
    )
    with torch.no_grad():
        pixels = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample
    assert (
        family.decode(x0).float() - pipe.image_processor.postprocess(pixels, output_type='pt') * 255
    ).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize('zeros', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_prompts_are_encoded_as_the_pipeline_does(folders, kind, zeros, tmp_path):
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    index = pipeline_index(folder)
    (folder / 'model_index.json').write_text(
        json.dumps(index | ({'force_zeros_for_empty_prompt': zeros} if kind == 'sdxl' else {}))
    )
    pipe, family = plain(folder), load_family(folder, device='cpu', components=('text',))
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
    pipe, family, calls = plain(folders[kind]), load_family(folders[kind], device='cpu'), []
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
    torch.testing.assert_close(family.alphas_cumprod, plain(folders[kind]).scheduler.alphas_cumprod)


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


def test_training_needs_the_denoiser_only(folders):
    family = load_family(folders['sdxl'], device='cpu', components=('denoiser',))
    assert set(family.parts) == {'unet'}
    assert family.latents(torch.ones(1, 8, 8, 8)).shape == (1, 4, 8, 8)
    assert family.latent_shape(64) == (4, 8, 8)
    with pytest.raises(InputError, match='vae .* was not loaded'):
        family.encode_images(some_images())


def test_an_autoencoder_that_overflows_in_fp16_encodes_in_fp32_and_still_samples(tmp_path):
    folder, images = tiny_folder(tmp_path / 'a', 'sdxl', force_upcast=True), some_images()
    family, exact = load_family(folder, 'fp16', 'cpu'), load_family(folder, 'fp32', 'cpu')
    moments = family.encode_images(images)
    assert (family.image_dtype, family.model.dtype) == (torch.float32, torch.float16)
    # only the weights were rounded
    assert (moments - exact.encode_images(images)).norm() < 1e-3 * moments.norm()
    scheduler = plain(folder).scheduler
    assert (
        draw(plain_pipeline(family, scheduler)) - draw(plain_pipeline(exact, scheduler))
    ).abs().mean() < 0.02


def test_bf16(tmp_path):
    folder = tiny_folder(tmp_path / 'b', 'sd15', force_upcast=False)
    family, exact = (
        load_family(folder, 'bf16', 'cpu'),
        load_family(folder, 'fp32', 'cpu').encode_images(some_images()),
    )
    assert {
        family.vae.dtype,
        family.image_dtype,
        family.model.dtype,
        family.part('text_encoder').dtype,
    } == {torch.bfloat16}
    moments = family.encode_images(some_images())
    assert moments.dtype == torch.float32
    assert (moments - exact).norm() < 0.05 * exact.norm()


# --- saving


@pytest.mark.parametrize('kind', KINDS)
def test_a_saved_pipeline_is_plain_diffusers_with_the_new_denoiser(folders, kind, tmp_path):
    family = load_family(folders[kind], device='cpu')
    with torch.no_grad():
        for p in family.model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    expected = draw(plain_pipeline(family, plain(folders[kind]).scheduler))
    out = save_pipeline(folders[kind], family.model, tmp_path / 'out')
    assert torch.equal(draw(plain(out)), expected)
    assert not torch.allclose(expected, draw(plain(folders[kind])), atol=0.01)
    new, old = part_digests(out), part_digests(folders[kind])
    assert {k for k in old if new[k] != old[k]} == {'unet'}
    assert new.keys() == old.keys()
    # no path of the machine it was made on
    assert not any(str(tmp_path) in p.read_text() for p in out.rglob('*.json'))


def test_old_weights_stay_behind_and_links_become_files(folders, tmp_path):
    source = shutil.copytree(folders['sd15'], tmp_path / 'source')
    (source / 'vae' / 'diffusion_pytorch_model.bin').write_bytes(b'pickle')
    (source / 'v1-5.ckpt').write_bytes(b'pickle')
    weights = source / 'vae' / 'diffusion_pytorch_model.safetensors'
    weights.rename(tmp_path / 'blob')
    weights.symlink_to(tmp_path / 'blob')
    out = save_pipeline(source, load_family(source, device='cpu').model, tmp_path / 'out')
    assert not [p for p in out.rglob('*') if p.suffix in ('.bin', '.ckpt') or p.is_symlink()]
    assert torch.equal(draw(plain(out)), draw(plain(source)))


def test_a_trimmed_copy_is_saved_whole_and_one_that_lacks_more_is_refused(folders, tmp_path):
    "Many copies of SD1.5 name a safety checker that they do not bring."
    folder = shutil.copytree(folders['sd15'], tmp_path / 'trimmed')
    index = json.loads((folder / 'model_index.json').read_text())
    (folder / 'model_index.json').write_text(
        json.dumps(
            index
            | {
                'safety_checker': ['stable_diffusion', 'StableDiffusionSafetyChecker'],
                'feature_extractor': ['transformers', 'CLIPImageProcessor'],
            }
        )
    )
    family = load_family(folder, components=('denoiser',))
    saved = json.loads(
        (save_pipeline(folder, family.model, tmp_path / 'new') / 'model_index.json').read_text()
    )
    assert saved['safety_checker'] == saved['feature_extractor'] == [None, None]
    assert saved['unet'] == index['unet']
    assert torch.equal(draw(plain(tmp_path / 'new')), draw(plain(folders['sd15'])))
    shutil.rmtree(folder / 'text_encoder')
    with pytest.raises(InputError, match="names the part 'text_encoder', which is not there"):
        save_pipeline(folder, family.model, tmp_path / 'newer')
    assert not (tmp_path / 'newer').exists()


def test_saving_again_replaces_and_a_failure_leaves_the_old(folders, tmp_path):
    model = load_family(folders['sd15'], device='cpu').model
    out = save_pipeline(folders['sd15'], model, tmp_path / 'out')
    before = draw(plain(out))

    class Broken:
        def save_pretrained(self, folder, **_):
            raise OSError(28, 'No space left on device')

    with pytest.raises(OSError):
        save_pipeline(folders['sd15'], Broken(), out)
    assert torch.equal(draw(plain(out)), before)
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    model.conv_out.bias.data += 1
    assert not torch.equal(draw(plain(save_pipeline(folders['sd15'], model, out))), before)


def with_adapters(folder, rank=4, alpha=16):
    "A UNet with a random LoRA 'default', whose scale is not 1, and another one beside it."
    from peft import LoraConfig

    model = load_family(folder, device='cpu').model
    for i, name in enumerate(('default', 'reference')):
        model.add_adapter(
            LoraConfig(
                r=rank, lora_alpha=alpha, target_modules=['to_q', 'to_k', 'to_v', 'to_out.0']
            ),
            adapter_name=name,
        )
        for n, p in model.named_parameters():
            if f'lora_B.{name}' in n:
                p.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    model.set_adapter('default')
    return model


@pytest.mark.parametrize('kind', KINDS)
def test_a_lora_loads_in_plain_diffusers_with_equal_output(folders, kind, tmp_path):
    from safetensors import safe_open

    model = with_adapters(folders[kind])
    expected = draw(
        plain_pipeline(
            load_family(folders[kind], device='cpu'), plain(folders[kind]).scheduler, model=model
        )
    )
    out = save_pipeline(folders[kind], model, tmp_path / 'lora', adapter='default')
    pipe = plain(folders[kind])
    before = draw(pipe)
    pipe.load_lora_weights(out)
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, expected, atol=0.01)
    with safe_open(out / 'pytorch_lora_weights.safetensors', 'pt') as f:
        assert all(k.startswith('unet.') and 'reference' not in k for k in f.keys())
        assert str(folders[kind]) not in str(f.metadata())


def test_an_adapter_that_is_not_there_is_an_error(folders, tmp_path):
    with pytest.raises(InputError, match="no adapter 'default'"):
        save_pipeline(
            folders['sd15'],
            load_family(folders['sd15'], device='cpu').model,
            tmp_path / 'out',
            adapter='default',
        )
    assert not (tmp_path / 'out').exists()


# --- refusals


def rewritten(folder, target, file, **changes):
    folder = shutil.copytree(folder, target)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'unet': ['my_module', 'UNet']}, "unet is of 'my_module'"),
        (
            {'unet': ['diffusers', 'NoSuchModel']},
            'NoSuchModel, which the installed diffusers does not have',
        ),
        ({'_class_name': 'FooPipeline'}, 'is a FooPipeline'),
    ],
)
def test_an_index_that_names_foreign_code_is_refused(folders, tmp_path, changes, message):
    folder = rewritten(folders['sd15'], tmp_path / 'x', 'model_index.json', **changes)
    (folder / 'unet' / 'my_module.py').write_text(
        f'open({str(tmp_path / "canary")!r}, "w")\nclass UNet: pass\n'
    )
    with pytest.raises(InputError, match=message):
        load_family(folder, device='cpu')
    assert not (tmp_path / 'canary').exists()


def test_refusals_are_one_line_and_say_where(folders, tmp_path):
    def refused(pattern, *args, **kwargs):
        with pytest.raises(InputError, match=pattern) as error:
            load_family(*args, device='cpu', **kwargs)
        assert '\n' not in str(error.value)

    (tmp_path / 'empty').mkdir()
    refused('empty is not a diffusers pipeline folder', tmp_path / 'empty')
    refused('no-such is no folder', 'no-such')
    refused("unknown precision 'fp8'", folders['sd15'], dtype='fp8')
    refused(
        "prediction type 'sample'",
        rewritten(
            folders['sd15'],
            tmp_path / 'a',
            'scheduler/scheduler_config.json',
            prediction_type='sample',
        ),
    )
    cut = shutil.copytree(folders['sd15'], tmp_path / 'b')
    weights = cut / 'vae' / 'diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    refused('vae could not be loaded', cut)
    weights.unlink()
    refused('vae could not be loaded', cut)


def test_wrong_sizes_and_pixels(folders):
    family = load_family(folders['sd15'], device='cpu')
    with pytest.raises(InputError, match='100 is not a multiple of 8'):
        family.latent_shape(100)
    with pytest.raises(InputError, match='uint8'):
        family.encode_images(some_images() / 255)


def test_an_older_config_gets_the_defaults_of_its_class(folders, tmp_path):
    folder = shutil.copytree(folders['sd15'], tmp_path / 'x')
    path = folder / 'vae' / 'config.json'
    path.write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads(path.read_text()).items()
                if k not in ('scaling_factor', 'shift_factor')
            }
        )
    )
    assert part_config(folder, 'vae')['scaling_factor'] == 0.18215
    assert 'unet' in parts_of(pipeline_index(folder))
    assert torch.equal(
        load_family(folder, device='cpu').latents(torch.ones(1, 8, 8, 8)),
        torch.full((1, 4, 8, 8), 0.18215),
    )


def test_the_packaged_models_are_of_two_families():
    for name, family, width in (('icons', 'sd15', 128), ('icons-xl', 'sdxl', 256)):
        found = load_family(name, components=('text',), device='cpu')
        assert found.name == family
        assert found.encode_prompts(['a fox'])['prompt_embeds'].shape == (
            1,
            24,
            width,
        )


def test_the_class_and_the_settings_of_a_pipeline_are_part_of_what_it_is(folders, tmp_path):
    """The embedding of the empty prompt, and so every guided image, depends on a setting of SDXL's
    model_index.json."""
    import json

    folder = shutil.copytree(folders['sdxl'], tmp_path / 'sdxl')
    before = part_digests(folder, ('vae',))
    index = json.loads((folder / 'model_index.json').read_text())

    def now(**changes):
        (folder / 'model_index.json').write_text(json.dumps(index | changes))
        return part_digests(folder, ('vae',))

    assert (
        now()
        == now(_diffusers_version='0.1', _name_or_path='elsewhere')
        == before
        == part_digests(folders['sdxl'], ('vae',))
    )
    assert {
        k
        for k, v in now(
            force_zeros_for_empty_prompt=not index.get('force_zeros_for_empty_prompt', True)
        ).items()
        if v != before[k]
    } == {'pipeline'}


@pytest.mark.parametrize('kind', ['sd15', 'sd21', 'sdxl'])
def test_a_family_that_is_asked_for_is_the_models_or_refused(folders, kind):
    check_family(folders[kind], kind)
    with pytest.raises(InputError, match=f'is of the family {kind}, not flux'):
        check_family(folders[kind], 'flux')
    with pytest.raises(InputError, match="unknown family 'sd4': use sd15, sd21, sdxl, sd3, flux"):
        check_family(folders[kind], 'sd4')
