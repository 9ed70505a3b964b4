"The loop that trains the icon world's networks, and the carrying over of CLIP's weights."

import json

import pytest
import torch

from balanceddpo.icon_world import making
from balanceddpo.icon_world import world as icons


class Killed(Exception):
    pass


def curve_fit(folder, steps, die_at=None):
    "A parabola through noisy points, whose every draw comes from the step's generator."
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(3))

    def batch_loss(step, generator):
        if step == die_at:
            raise Killed
        x = torch.rand(8, generator=generator)
        return (
            (
                (weights[0] * x * x + weights[1] * x + weights[2] - torch.sin(x))
                + 0.1 * torch.randn(8, generator=generator)
            )
            .square()
            .mean()
        )

    making.fit(
        'parabola',
        [weights],
        batch_loss,
        making.FitConfig(steps=steps, warmup=3, keep_every=10, ema=0.9),
        folder,
    )
    return weights.detach().clone()


def test_a_run_that_was_stopped_ends_where_the_other_ends(tmp_path):
    whole = curve_fit(tmp_path / 'whole', 40)
    with pytest.raises(Killed):
        curve_fit(tmp_path / 'stopped', 40, die_at=27)
    assert torch.equal(whole, curve_fit(tmp_path / 'stopped', 40))
    # a finished run is not trained further
    assert torch.equal(whole, curve_fit(tmp_path / 'stopped', 40))


def test_the_clocks_of_all_sittings_are_added(tmp_path):
    # stopped at 100
    rows = [
        {'step': 50, 'seconds': 10},
        {'step': 100, 'seconds': 25},
        {'step': 100},
        {'step': 150, 'seconds': 8},
        {'step': 200, 'seconds': 16},
    ]
    (tmp_path / 'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    assert making.seconds_spent(tmp_path / 'log.jsonl') == 25 + 16


def test_the_learning_rate_by_hand():
    config = making.FitConfig(steps=200, learning_rate=2.0, warmup=4, decay=0.5)
    assert [making.rate(s, config) for s in (0, 3, 99, 100, 150, 199)] == pytest.approx(
        [0.5, 2.0, 2.0, 2.0, 1.0, 0.02]
    )


def test_the_linear_code_is_sklearns():
    from numpy.linalg import eigh

    pictures = making.pictures_of(icons.all_icons()[::97])
    code = making.fit_linear_code(pictures, channels=5)
    patches = making.to_patches(pictures).reshape(-1, 192).double()
    values = eigh(torch.cov(patches.T).numpy())[0][::-1]
    left = (code.decode(code.encode(pictures)) - pictures).square().mean().item()
    assert left == pytest.approx(
        values[5:].sum() / 192, rel=2e-3
    )  # what five components cannot hold
    assert code.encode(pictures).std().item() == pytest.approx(1, rel=0.02)


def test_words_are_one_token_and_nothing_is_unknown():
    tokenizer = making.make_tokenizer()
    ids = tokenizer('a zebra, 東京 <b>').input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == max(tokenizer.get_vocab().values())
    assert all(len(tokenizer(word).input_ids) == 3 for word in making.world_words())


def test_open_clip_gives_the_embeddings_of_the_carried_over_clip(tmp_path):
    from balanceddpo.scoring.scorers import load_scorer

    torch.manual_seed(0)
    tokenizer = making.make_tokenizer()
    clip = making.make_clip(tokenizer).eval()
    some = icons.all_icons()[::700]
    pictures, prompts = icons.truths(some), [icons.caption(i) for i in some]
    with torch.no_grad():
        theirs = (
            making.preference_scores(clip, pictures, making.token_ids(tokenizer, prompts))
            / clip.logit_scale.exp()
        )
    ours = load_scorer(
        f'hps={making.save_open_clip(clip, tokenizer, tmp_path / "hps")}', device='cpu'
    ).score(pictures, prompts)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_head_is_linear(tmp_path):
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(400, 96), dim=-1)
    target = 5 + 8 * embeddings[:, 0]
    state = making.fit_aesthetic(
        embeddings,
        target,
        tmp_path,
        making.FitConfig(steps=400, learning_rate=5e-3, warmup=10, ema=0.0),
    )
    found = making.linear_head(state, embeddings)
    assert torch.corrcoef(torch.stack([found, target]))[0, 1] > 0.95
    middle = making.linear_head(state, embeddings[:2].mean(0, keepdim=True))
    assert torch.allclose(middle, found[:2].mean(), atol=1e-4)
