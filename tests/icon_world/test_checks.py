"What the recogniser can name, and what the shipped model draws by its word."

import numpy as np
import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import asset
from balanceddpo.icon_world.checks import as_pictures, closeness_scores, recognised_scores, verify
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
