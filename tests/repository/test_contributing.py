"""CONTRIBUTING's recipes, followed to the letter: what they add can be used like what is there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from balanceddpo.losses.methods import LOSSES, choose_loss
from balanceddpo.losses.outputs import Outputs
from balanceddpo.recipes.settings import settings_of
from balanceddpo.recipes.table import RECIPES
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import LABELLERS, label_pairs
from made_scores import make_scores, make_table

PAGE = (Path(__file__).resolve().parents[2] / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def follow(heading):
    "Run the lines of a recipe, at most fifteen; what they define."
    section = re.search(rf'^## {heading}$(.*?)(?=^## |\Z)', PAGE, re.M | re.S)[1]
    (code,) = re.findall(r'```python\n(.*?)```', section, re.S)
    assert sum(1 for line in code.splitlines() if line.strip()) <= 15
    scope = {}
    exec(code, scope)
    return scope


def test_a_scorer(tmp_path):
    scorer = follow('Add a scorer')['scorer']
    images = [Image.new('RGB', (8, 8), color) for color in ('black', 'white')]
    assert list(scorer.score(images, ['', ''])) == [0, 255]


def test_a_way_to_vote(monkeypatch):
    monkeypatch.setattr('balanceddpo.voting.labels.LABELLERS', dict(LABELLERS))
    follow('Add a way to vote')
    scores = make_scores(n=50, K=4, seed=3, missing=0)
    labels = label_pairs(make_table(scores), LabelConfig('unanimous'))
    for row, pair in zip(labels.itertuples(), scores, strict=True):
        agreed = {np.sign(a - b) for a, b in zip(*pair, strict=True)}
        assert row.s == (agreed.pop() if len(agreed) == 1 else 0)


def test_a_loss(monkeypatch):
    monkeypatch.setattr('balanceddpo.losses.methods.LOSSES', dict(LOSSES))
    follow('Add a loss')
    target = torch.zeros(1, 2, 1, 1, 1)
    prediction = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
    outputs = Outputs(prediction, torch.ones_like(target), target, torch.tensor([[1.0, 0.0]]))
    losses, logits = choose_loss('squared_hinge', beta=1.0)(outputs)
    # errors: policy 0 and 1, reference 1 and 1; so the logit is 1/2 ((1 - 0) - (1 - 1))
    assert logits.item() == pytest.approx(0.5)
    assert losses.item() == pytest.approx(0.25)


def test_a_method(monkeypatch):
    monkeypatch.setattr('balanceddpo.recipes.table.RECIPES', rows := dict(RECIPES))
    follow('Add a method')
    assert {*rows} - {*RECIPES} == {'Hinge on votes'}
    settings = settings_of(rows['Hinge on votes'], 'icons')
    assert (settings.method, settings.beta, settings.max_steps) == ('hinge', 5000, 100)


def test_a_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = follow('Add a figure')['paths']
    assert [p.name for p in paths] == ['gains.png']
    assert all(p.stat().st_size for p in paths)
