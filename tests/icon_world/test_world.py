"""The icon world: its truths, its simulated annotators, and what the shipped networks must be able
to do."""

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
    from balanceddpo.data.pairs import read_pairs
    from balanceddpo.data.prompts import read_prompts

    sets = {name: read_prompts(f'icons:{name}') for name in icons.PROMPT_SETS}
    truths = {name: {icons.truth_of(p) for p in s.prompts} for name, s in sets.items()}
    assert all(len(s) >= 100 for s in sets.values())
    assert all(not truths[a] & truths[b] for a, b in itertools.combinations(truths, 2))
    assert all(icons.held_out(i) for name in ('partiprompts', 'hpd') for i in truths[name])
    assert not any(icons.held_out(i) for name in ('pickapic', 'tuning') for i in truths[name])
    used = {icons.truth_of(p.caption) for p in read_pairs('icons')}
    assert not used & set().union(*truths.values())
    assert not any(map(icons.held_out, used))


def test_qualities_by_hand():
    icon = Icon(0, 0, 1)
    true = icons.truths([icon])
    found = icons.qualities(torch.cat([true, true - 0.05]).clamp(0, 1), [icon, icon])
    assert found['drawing'][0] == 0
    assert found['background'][0].abs() < 1e-6
    assert found['clean'][0].abs() < 1e-6
    assert found['background'][1].item() == pytest.approx(-0.05 / 0.08, abs=1e-4)
    assert found['drawing'][1] < 0


def test_simulated_annotators_are_seeded_fair_and_blind_where_they_should_be():
    equal = torch.zeros(4000)
    labels = icons.judge(equal, equal, seed=1)
    assert torch.equal(labels, icons.judge(equal, equal, seed=1))
    assert not torch.equal(labels, icons.judge(equal, equal, seed=2))
    assert (labels == 1).sum().item() == pytest.approx((labels == 0).sum().item(), abs=200)
    # a tie: |difference of two normals of s.d. .1| < .05, that is erf(.05/(.1*2)) = 0.276
    assert (labels == 0.5).float().mean().item() == pytest.approx(0.276, abs=0.025)
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blind = [
        icons.utility(icons.qualities(pictures, [Icon(c, 0, b)] * 3), 'aesthetic')
        for c, b in ((0, 0), (99, 5))
    ]
    assert torch.allclose(*blind)


def test_the_recogniser_names_true_renders_that_no_network_was_trained_on():
    held = icons.split_icons(True)[::9]
    found = icons.verify(icons.truths(held), [icons.caption(i) for i in held])
    assert found['concept'].mean() > 0.95
    assert found['style'].mean() > 0.9
    assert found['background'].mean() > 0.95
    assert found['distance'].max() < 1e-6


def test_the_weights_are_safetensors():
    weights = [
        f
        for f in asset().rglob('*')
        if f.suffix in ('.safetensors', '.bin', '.pt', '.pth', '.ckpt', '.pkl')
    ]
    assert weights
    assert all(f.suffix == '.safetensors' for f in weights)


def test_the_model_loads_without_us_and_draws_what_it_is_asked_for():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(asset('model'), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    wanted = [Icon(c, c % 4, 1 + c % 7) for c in range(0, 160, 8)]
    prompts = [icons.caption(i) for i in wanted]
    pictures = pipeline(
        prompts,
        num_inference_steps=20,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type='pt',
    ).images
    found = icons.verify(pictures.float(), prompts)
    assert found['concept'].mean() >= 0.7
    assert found['style'].mean() > 0.5
    assert found['background'].mean() > 0.5


def test_the_scorers_prefer_the_caption_that_is_true():
    from balanceddpo.scoring.scorers import load_scorers

    held = icons.split_icons(True)[::40]
    pictures = (icons.truths(held) * 255).round().byte()
    right = [icons.caption(i) for i in held]
    for scorer in load_scorers(['icons:clip', 'icons:pickscore', 'icons:hps'], device='cpu'):
        margin = scorer.score(pictures, right) - scorer.score(pictures, right[1:] + right[:1])
        assert (margin > 0).float().mean() > 0.9, scorer.name
