"""Images to latents and back as the library's own pipelines do it, on tiny random models in the
published shapes."""

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.models.families import load_family, plain_pipeline
from tiny_models import (
    KINDS,
    diffusers_pipeline,
    draw_array,
    some_images,
    some_latents,
    tiny_folder,
)


def draw(pipeline):
    return draw_array(pipeline, guidance_scale=3.0)


@pytest.mark.parametrize('kind', KINDS)
def test_images_are_encoded_as_the_library_does(folders, kind):
    family, pipe, images = (
        load_family(folders[kind], device='cpu'),
        diffusers_pipeline(folders[kind]),
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
    folder = tiny_folder(tmp_path / 'sd', latent_channels=16, scaling_factor=0.5, shift_factor=0.25)
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
        diffusers_pipeline(folders[kind]),
        some_latents(2) * 0.5,
    )
    with torch.no_grad():
        pixels = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample
    assert (
        family.decode(x0).float() - pipe.image_processor.postprocess(pixels, output_type='pt') * 255
    ).abs().max() <= 0.5 + 1e-3


def test_an_autoencoder_that_overflows_in_fp16_encodes_in_fp32_and_still_samples(tmp_path):
    folder, images = tiny_folder(tmp_path / 'a', 'sdxl', force_upcast=True), some_images()
    family, exact = load_family(folder, 'fp16', 'cpu'), load_family(folder, 'fp32', 'cpu')
    moments = family.encode_images(images)
    assert (family.image_dtype, family.model.dtype) == (torch.float32, torch.float16)
    # only the weights were rounded
    assert (moments - exact.encode_images(images)).norm() < 1e-3 * moments.norm()
    scheduler = diffusers_pipeline(folder).scheduler
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


def test_wrong_sizes_and_pixels(folders):
    family = load_family(folders['sd15'], device='cpu')
    with pytest.raises(InputError, match='100 is not a multiple of 8'):
        family.latent_shape(100)
    with pytest.raises(InputError, match='uint8'):
        family.encode_images(some_images() / 255)
