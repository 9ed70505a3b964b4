"Grids of images: whole pixels, every image once and in its place, nothing outside the page."

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.figures.grids import image_grid, sample_grid, with_places
from balanceddpo.figures.style import COLUMN, PAGE, Look, save_figure
from balanceddpo.figures.tables import score_caption
from figure_checks import SCORERS, picture, texts_outside

PROMPTS = [
    'a red apple',
    r'$5 and $6 \frac{ unbalanced_ ^ & % # <img onerror=x>',
    'a very long prompt ' * 40,
]


@pytest.mark.parametrize('size', [64, 512])
@pytest.mark.parametrize('width,models', [(COLUMN, 3), (PAGE, 3), (PAGE, 7)])
def test_grids_keep_to_the_page(size, width, models):
    images = [[picture(size) for _ in range(models)] for _ in PROMPTS]
    captions = [[score_caption({k: 0.2 for k in SCORERS})] * models for _ in PROMPTS]
    names, truth = ['BalancedDPO'] * models, [picture(size)] * 3
    fig = image_grid(images, PROMPTS, names, captions, truth, Look(width=width))
    assert texts_outside(fig) == []
    assert len(fig.axes) == 3 * (models + 1)
    assert fig.get_figwidth() == width
    boxes = [ax.get_window_extent() for ax in fig.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert np.ptp([(b.width, b.height) for b in boxes]) < 0.01


def test_icons_are_enlarged_by_whole_pixels_and_photos_reduced():
    icon = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype='uint8')
    fig = image_grid([[icon]], ['p'], ['m'], look=Look(width=COLUMN))
    shown = np.asarray(fig.axes[0].images[0].get_array())
    factor = shown.shape[0] // 64
    assert shown.shape == (64 * factor, 64 * factor, 3)
    assert factor > 1
    assert np.array_equal(shown[::factor, ::factor], icon)
    assert np.array_equal(shown, icon.repeat(factor, 0).repeat(factor, 1))
    photos = [[picture(1024)] * 3]
    fig = image_grid(photos, ['p'], list('abc'), look=Look(width=COLUMN), dpi=100)
    large = np.asarray(fig.axes[0].images[0].get_array())
    assert large.shape[0] < 120


def test_shape_of_pictures_and_empty_cells():
    fig = image_grid(
        [[picture(64, 32), None], [picture(32, 64), picture(64)]], ['a', 'b'], ['x', 'y']
    )
    ratios = [ax.get_window_extent().height / ax.get_window_extent().width for ax in fig.axes]
    assert sorted(round(r, 2) for r in ratios) == [0.5, 1, 2]
    assert len(image_grid([[None]], [''], ['']).axes) == 0


def test_grids_are_the_same_bytes(tmp_path):
    def make():
        images, truth = [[picture(64), picture(64, color='blue')]] * 2, [picture(64)] * 2
        return image_grid(images, ['a', 'b'], ['x', 'y'], truth=truth, look=Look(width=COLUMN))

    assert [p.read_bytes() for p in save_figure(make(), tmp_path / 'a')] == [
        p.read_bytes() for p in save_figure(make(), tmp_path / 'b')
    ]


@pytest.mark.parametrize(
    'wrong',
    [
        dict(columns=['x']),
        dict(rows=['a']),
        dict(captions=[['c']]),
        dict(truth=[]),
        dict(images=[[np.zeros((4, 4, 3))] * 2] * 2),
    ],
)
def test_wrong_shapes_and_floats_are_refused(wrong):
    with pytest.raises(InputError):
        image_grid(
            **(dict(images=[[picture(8)] * 2] * 2, rows=['a', 'b'], columns=['x', 'y']) | wrong)
        )


def test_every_sample_is_shown_once_with_its_prompt():
    colors = [(i, 0, 0) for i in range(7)]
    images, prompts = [picture(64, color=c) for c in colors], [f'prompt {i}' for i in range(7)]
    fig = sample_grid(images, prompts, across=3, look=Look('seven'))
    assert [
        int(ax.images[0].get_array()[0, 0, 0])
        for ax in sorted(fig.axes, key=lambda ax: (-ax.get_position().y0, ax.get_position().x0))
    ] == list(range(7))
    below = {t.get_text(): t.get_position() for t in fig.texts if t.get_text().startswith('prompt')}
    for ax in fig.axes:
        x, y = below[f'prompt {int(ax.images[0].get_array()[0, 0, 0])}']
        box = ax.get_position()
        assert box.x0 < x < box.x1
        assert 0 < box.y0 - y < 0.05
    # no room is left for row names
    assert texts_outside(fig) == []
    assert min(ax.get_position().x0 for ax in fig.axes) * PAGE < 0.1
    with pytest.raises(InputError, match='2 for 1'):
        sample_grid([picture(64)], ['a', 'b'])


def test_names_over_narrow_columns_do_not_touch():
    names = ['base', 'Aesthetic', 'CLIP', 'HPS', 'PickScore', 'DiffusionDPO', 'BalancedDPO']
    fig = image_grid(
        [[picture(64)] * 7], ['a prompt'], names, truth=[picture(64)], look=Look('seven')
    )
    fig.draw_without_rendering()
    heads = sorted(
        (t.get_window_extent() for t in fig.texts if t.get_text() in [*names, 'true render']),
        key=lambda b: b.x0,
    )
    assert len(heads) == 8
    assert all(a.x1 < b.x0 for a, b in zip(heads, heads[1:]))


def test_places_are_the_middles_of_equal_parts():
    assert with_places(['a', 'b']) == ['a (25\xa0%)', 'b (75\xa0%)']


def test_sample_grids_are_the_same_bytes(tmp_path):
    def make():
        return sample_grid([picture(64)] * 3, list('abc'), look=Look(width=COLUMN))

    assert [p.read_bytes() for p in save_figure(make(), tmp_path / 'a')] == [
        p.read_bytes() for p in save_figure(make(), tmp_path / 'b')
    ]
