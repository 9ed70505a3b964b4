"""HPS v2 against the authors' own package, on shared random weights: the same score for every shape
of image and every odd prompt."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from balanceddpo.scoring.pictures import ImageBatch, pad_to_square
from balanceddpo.scoring.registry import load_scorer
from tiny_scorers import noise

TINY = dict(
    embed_dim=32,
    vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=8),
    text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2),
)
SIZES = [(32, 32), (64, 64), (97, 61), (33, 80), (31, 31), (200, 90), (40, 41), (16, 16)]
PROMPTS = [
    'A cat with two horns on its head',
    '',
    'caf\u00e9  &amp; \U0001f98a <b>bold</b>',
    'an ASTRONAUT, riding a horse! ' * 12,
    'x' * 400,
]


@pytest.fixture(scope='module')
def original(hpsv2_img_score, tmp_path_factory):
    """hpsv2's `score`, its own model class and preprocessing with random weights, and the
    checkpoint it reads them from."""
    from hpsv2.src.open_clip.model import CLIP
    from hpsv2.src.open_clip.transform import image_transform

    folder = tmp_path_factory.mktemp('hpsv2')
    torch.manual_seed(0)
    model = CLIP(**TINY, output_dict=True).eval()
    checkpoint = folder / 'HPS_v2_compressed.pt'
    torch.save({'epoch': 10, 'state_dict': model.state_dict()}, checkpoint)
    # what is scored must come from the checkpoint
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hpsv2_img_score.model_dict, 'model', model)
        patch.setitem(
            hpsv2_img_score.model_dict,
            'preprocess_val',
            image_transform(32, is_train=False, resize_longest_max=True),
        )
        patch.setattr(hpsv2_img_score, 'root_path', str(folder))
        yield (
            lambda image, prompt: float(
                hpsv2_img_score.score(image, prompt, cp=str(checkpoint))[0]
            ),
            checkpoint,
        )


@pytest.fixture(scope='module')
def ours(original, tmp_path_factory):
    (tmp_path_factory.mktemp('architecture') / 'tiny-hps.json').write_text(json.dumps(TINY))
    open_clip.add_model_config(
        next(tmp_path_factory.getbasetemp().glob('architecture*/tiny-hps.json'))
    )
    return load_scorer(f'hps={original[1]}+tiny-hps', device='cpu')


def test_hps_equals_hpsv2(original, ours):
    score, _ = original
    cases = [(noise(size, i), PROMPTS[i % len(PROMPTS)]) for i, size in enumerate(SIZES)] + [
        (noise((50, 70), 9), p) for p in PROMPTS
    ]
    theirs = torch.tensor([score(image, prompt) for image, prompt in cases])
    torch.testing.assert_close(ours.score(*map(list, zip(*cases))), theirs, atol=1e-6, rtol=0)
    assert theirs.std() > 1e-3  # and the cases can tell a mistake


def test_grey_and_transparent_images_are_scored_as_their_rgb(original, ours):
    score, _ = original
    for mode in ('L', 'P', 'RGBA'):
        image = noise((48, 30), 3, mode)
        assert (
            abs(float(ours.score([image], ['a cat'])[0]) - score(image.convert('RGB'), 'a cat'))
            < 1e-6
        )


@pytest.mark.parametrize('form', ['folder', 'safetensors'])
def test_the_same_weights_in_other_files_give_the_same_score(original, ours, tmp_path, form):
    weights = torch.load(original[1], weights_only=True)['state_dict']
    save_file(weights, tmp_path / 'open_clip_model.safetensors')
    (tmp_path / 'open_clip_config.json').write_text(
        json.dumps({'model_cfg': TINY, 'preprocess_cfg': {}})
    )
    other = load_scorer(
        f'hps={tmp_path}'
        if form == 'folder'
        else f'hps={tmp_path / "open_clip_model.safetensors"}+tiny-hps',
        device='cpu',
    )
    images = [noise(size, 5) for size in SIZES[:3]]
    torch.testing.assert_close(
        other.score(images, PROMPTS[:3]), ours.score(images, PROMPTS[:3]), atol=1e-6, rtol=0
    )


def test_preprocessing_equals_hpsv2_pixel_for_pixel(original):
    from hpsv2.src.open_clip.transform import image_transform

    transform = image_transform(
        32, is_train=False, resize_longest_max=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    for size in SIZES:
        image = noise(size, 1)
        torch.testing.assert_close(
            pad_to_square(ImageBatch([image]).pixels(0), 32), transform(image), atol=0, rtol=0
        )


def test_the_published_architecture_takes_the_published_weights(hpsv2_img_score):
    """Names and shapes of hpsv2's ViT-H-14 are those of open_clip's, so that its checkpoint loads
    strictly."""
    from hpsv2.src.open_clip.factory import get_model_config
    from hpsv2.src.open_clip.model import CLIP

    with torch.device('meta'):
        theirs, here = (
            CLIP(**get_model_config('ViT-H-14')),
            open_clip.model.CLIP(**open_clip.get_model_config('ViT-H-14')),
        )

    def shapes(model):
        return {k: tuple(v.shape) for k, v in model.state_dict().items()}

    assert shapes(theirs) == shapes(here)
    assert sum(p.numel() for p in here.parameters()) > 9e8
    assert get_model_config('ViT-H-14') == open_clip.get_model_config('ViT-H-14')
