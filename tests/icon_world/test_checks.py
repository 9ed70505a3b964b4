"What the recogniser can name, and what the shipped model draws by its word."

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import asset
from balanceddpo.icon_world.checks import (
    as_pictures,
    closeness_scores,
    edge_scores,
    recognised_scores,
    structure_scores,
    verify,
)
from balanceddpo.icon_world.world import Icon, caption, split_icons, true_render, truths


def test_the_recogniser_names_true_renders_that_no_network_was_trained_on():
    held = split_icons(True)[::9]
    found = verify(truths(held), [caption(i) for i in held])
    assert found['concept'].mean() > 0.95
    assert found['style'].mean() > 0.9
    assert found['background'].mean() > 0.95
    assert found['distance'].max() < 1e-6


def test_the_model_loads_without_us_and_draws_what_it_is_asked_for():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(asset('model'), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    wanted = [Icon(c, c % 4, 1 + c % 7) for c in range(0, 160, 8)]
    prompts = [caption(i) for i in wanted]
    pictures = pipeline(
        prompts,
        num_inference_steps=20,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type='pt',
    ).images
    found = verify(pictures.float(), prompts)
    assert found['concept'].mean() >= 0.7
    assert found['style'].mean() > 0.5
    assert found['background'].mean() > 0.5


def test_scores_of_a_true_and_of_a_changed_picture():
    icon, other = Icon(44, 1, 2), Icon(44, 1, 6)
    images = [Image.fromarray(true_render(i).permute(1, 2, 0).numpy()) for i in (icon, other)]
    assert recognised_scores(images, [caption(icon)] * 2).tolist() == [1, 0]
    a, b = (np.asarray(image, float) / 255 for image in images)
    expected = [0, -np.sqrt(((a - b) ** 2).mean())]
    assert closeness_scores(images, [caption(icon)] * 2) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(as_pictures(images), truths([icon, other]))
    with pytest.raises(InputError, match='no caption'):
        recognised_scores(images[:1], ['a fox in the snow'])


FOX = Icon(44, 1, 2)


def test_two_truths_that_blur_does_not_please():
    "The true render has 1; what is blurred until it is closer than noise keeps fewer of its edges."
    true = true_render(FOX)
    picture = Image.fromarray(true.permute(1, 2, 0).numpy())
    rng = np.random.default_rng(0)
    noisy = np.asarray(picture, float) + rng.normal(0, 12, (64, 64, 3))
    noisy = Image.fromarray(noisy.clip(0, 255).astype('uint8'))
    blurred = picture.filter(ImageFilter.GaussianBlur(2.5))
    images, prompts = [picture, noisy, blurred], [caption(FOX)] * 3
    for scores in (structure_scores(images, prompts), edge_scores(images, prompts)):
        assert scores[0] == pytest.approx(1, abs=1e-6)
        assert scores[2] < 0.9
    assert edge_scores(images, prompts)[1] > edge_scores(images, prompts)[2]
    flat = [Image.new('RGB', (64, 64), 'grey')]
    assert edge_scores(flat, prompts[:1])[0] == 0


def test_structure_by_its_formula_with_scipy():
    "Of the two luminances, with Gaussian means over 1.5 pixels, a window of 11, and C1, C2 of 1."
    other = Icon(45, 1, 2)
    a, b = (rgb2gray(truths([icon])[0].permute(1, 2, 0).numpy()) for icon in (FOX, other))

    def mean(x):
        return gaussian_filter(x, 1.5, truncate=3.5, mode='reflect')

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    s = (2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    expected = s[5:-5, 5:-5].mean()
    image = [Image.fromarray(true_render(FOX).permute(1, 2, 0).numpy())]
    assert structure_scores(image, [caption(other)])[0] == pytest.approx(expected, abs=1e-5)
