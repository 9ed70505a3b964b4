"""Pictures: those that are refused, and views that are the libraries' own to the pixel."""

import pytest
import torch
from transformers import CLIPImageProcessorPil

from balanceddpo.core.errors import InputError
from balanceddpo.core.parallel import in_threads
from balanceddpo.scoring.pictures import ImageBatch, crop_to_square
from balanceddpo.scoring.registry import load_scorer
from balanceddpo.scoring.scorers import score_items
from tiny_scorers import SIZES, close, noise


def test_clip_view_equals_transformers_pixel_for_pixel(models):
    processor = CLIPImageProcessorPil.from_pretrained(models / 'clip', do_normalize=False)
    for i, size in enumerate(SIZES + [(33, 47), (47, 33), (10, 9), (500, 40)]):
        image = noise(size, i)
        close(
            crop_to_square(image, 32),
            torch.as_tensor(processor(images=[image], return_tensors='pt')['pixel_values'][0]),
            1e-7,
        )


def test_views_in_threads_are_the_same(monkeypatch):
    monkeypatch.setattr('balanceddpo.core.parallel.core_count', lambda: 8)
    batch = ImageBatch([noise((60, 50), i) for i in range(40)])
    close(
        torch.stack(in_threads(lambda i: crop_to_square(batch[i], 32), range(40))),
        torch.stack([crop_to_square(batch[i], 32) for i in range(40)]),
        0,
    )


@pytest.mark.parametrize(
    'wrong, says',
    [
        (lambda x: x * 2 - 1, 'undo the normalisation'),
        (lambda x: x * 255, 'divide'),
        (lambda x: x / 255, 'divided by 255 twice'),
        (lambda x: x * float('nan'), 'no numbers'),
        (lambda x: x[0], 'shape'),
        (lambda x: x.permute(0, 2, 3, 1), 'shape'),
        (lambda x: (x * 255).int(), 'uint8 or float'),
        (lambda x: x[:, :1], 'shape'),
        (lambda x: 'image.png', 'sequence'),
        (lambda x: [b'bytes'], 'PIL'),
        (lambda x: noise(), 'sequence'),
    ],
)
def test_bad_images_are_refused(models, wrong, says):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=says) as error:
        clip.score(wrong(x), ['a', 'b'])
    assert '\n' not in str(error.value)


def test_one_dark_image_among_bright_ones_is_found_and_black_and_uint8_pass(models):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    x = torch.rand(3, 3, 8, 8)
    x[2] /= 255
    with pytest.raises(InputError, match='image 2'):
        clip.score(x, ['a'] * 3)
    x[2] = 0
    assert clip.score(x, ['a'] * 3).isfinite().all()
    # level 1 of 255, known to be so
    assert clip.score(torch.ones(1, 3, 8, 8, dtype=torch.uint8), ['a']).isfinite().all()
    assert clip.score([], []).shape == (0,)
    assert score_items([clip], [])['clip'].shape == (0,)


def test_encoders_that_look_alike_share_a_view_and_others_do_not():
    batch, made = ImageBatch(torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)), []

    def make(name, i):
        return batch.view(name, i, lambda: made.append((name, i)) or len(made))

    assert [make('crop', 0), make('crop', 0), make('crop', 1), make('pad', 0), make('crop', 1)] == [
        1,
        1,
        2,
        3,
        2,
    ]
    assert made == [('crop', 0), ('crop', 1), ('pad', 0)]
