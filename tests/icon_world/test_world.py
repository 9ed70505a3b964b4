"The icon world: its truths, its prompts, and what the shipped scorers must be able to do."

import itertools

import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import asset
from balanceddpo.icon_world import world as icons
from balanceddpo.icon_world.world import Icon


def test_a_true_render_is_the_drawing_over_its_background():
    icon = Icon(7, 1, 3)
    picture, rgba = icons.true_render(icon), icons.drawings()[7, 1].numpy()
    canvas = Image.new('RGB', (64, 64), icons.BACKGROUNDS['green'])
    canvas.paste(Image.fromarray(rgba), (6, 6), Image.fromarray(rgba))
    difference = (
        torch.tensor(list(canvas.getdata())).reshape(64, 64, 3).permute(2, 0, 1) - picture.int()
    ).abs()
    assert difference.max() <= 1
    assert picture[:, 0, 0].tolist() == list(icons.BACKGROUNDS['green'])


def test_every_caption_names_one_truth():
    captions = {}
    for icon, template in itertools.product(icons.all_icons(), icons.TEMPLATES):
        assert captions.setdefault(icons.caption(icon, template), icon) == icon
    assert all(icons.truth_of(text) == icon for text, icon in list(captions.items())[::7])


def test_a_prompt_of_another_world_is_refused():
    with pytest.raises(InputError, match='no caption of the icon world'):
        icons.truth_of('a cyberpunk golden retriever is coding')
    with pytest.raises(InputError, match='a fox, flat style'):
        icons.truth_of('a fox, flat style')


def test_prompt_sets_are_shipped_apart_and_held_out_where_they_should_be():
    from balanceddpo.data.prompts import read_prompts
    from balanceddpo.data.sources import read_pairs

    sets = {name: read_prompts(f'icons:{name}') for name in icons.PROMPT_SETS}
    truths = {name: {icons.truth_of(p) for p in s.prompts} for name, s in sets.items()}
    assert all(len(s) >= 100 for s in sets.values())
    assert all(not truths[a] & truths[b] for a, b in itertools.combinations(truths, 2))
    assert all(icons.held_out(i) for name in ('partiprompts', 'hpd') for i in truths[name])
    assert not any(icons.held_out(i) for name in ('pickapic', 'tuning') for i in truths[name])
    used = {icons.truth_of(p.caption) for p in read_pairs('icons')}
    assert not used & set().union(*truths.values())
    assert not any(map(icons.held_out, used))


def test_the_weights_are_safetensors():
    weights = [
        f
        for f in asset().rglob('*')
        if f.suffix in ('.safetensors', '.bin', '.pt', '.pth', '.ckpt', '.pkl')
    ]
    assert weights
    assert all(f.suffix == '.safetensors' for f in weights)


def test_the_scorers_prefer_the_caption_that_is_true():
    from balanceddpo.scoring.registry import load_scorers

    held = icons.split_icons(True)[::40]
    pictures = (icons.truths(held) * 255).round().byte()
    right = [icons.caption(i) for i in held]
    for scorer in load_scorers(['icons:clip', 'icons:pickscore', 'icons:hps'], device='cpu'):
        margin = scorer.score(pictures, right) - scorer.score(pictures, right[1:] + right[:1])
        assert (margin > 0).float().mean() > 0.9, scorer.name
