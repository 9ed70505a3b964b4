"The carrying over of CLIP's weights, and the head of the aesthetic score."

import torch

from balanceddpo.icon_world import world as icons
from balanceddpo.icon_world.fitting import FitConfig
from balanceddpo.icon_world.judges import (
    fit_aesthetic,
    linear_head,
    make_clip,
    preference_scores,
    save_open_clip,
)
from balanceddpo.icon_world.words import make_tokenizer, token_ids


def test_open_clip_gives_the_embeddings_of_the_carried_over_clip(tmp_path):
    from balanceddpo.scoring.registry import load_scorer

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    clip = make_clip(tokenizer).eval()
    some = icons.all_icons()[::700]
    pictures, prompts = icons.truths(some), [icons.caption(i) for i in some]
    with torch.no_grad():
        theirs = (
            preference_scores(clip, pictures, token_ids(tokenizer, prompts))
            / clip.logit_scale.exp()
        )
    ours = load_scorer(
        f'hps={save_open_clip(clip, tokenizer, tmp_path / "hps")}', device='cpu'
    ).score(pictures, prompts)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_head_is_linear(tmp_path):
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(400, 96), dim=-1)
    target = 5 + 8 * embeddings[:, 0]
    state = fit_aesthetic(
        embeddings,
        target,
        tmp_path,
        FitConfig(steps=400, learning_rate=5e-3, warmup=10, ema=0.0),
    )
    found = linear_head(state, embeddings)
    assert torch.corrcoef(torch.stack([found, target]))[0, 1] > 0.95
    middle = linear_head(state, embeddings[:2].mean(0, keepdim=True))
    assert torch.allclose(middle, found[:2].mean(), atol=1e-4)
