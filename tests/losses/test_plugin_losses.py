"""Losses that an installed package offers."""

import sys

import pytest
import torch
from plugin_package import install

from balanceddpo.core.errors import InputError
from balanceddpo.losses.methods import LOSSES, choose_loss
from balanceddpo.losses.outputs import Outputs
from balanceddpo.training.config import TrainConfig

CODE = """
from balanceddpo.losses.methods import Loss, Parameter

def halves(outputs, beta):
    x = beta * outputs.errors[:, 0]
    return x / 2, x

mine = Loss(halves, 'Halves', 'nobody', dict(beta=Parameter(3.0, 'made up')), needs_reference=False)
wrong = halves
"""


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setattr('balanceddpo.losses.methods.LOSSES', dict(LOSSES))
    install(tmp_path, monkeypatch, CODE, losses={'halves': 'mine', 'wrong': 'wrong', 'dpo': 'gone'})
    yield
    sys.modules.pop('my_plugins', None)


def test_a_run_takes_a_loss_by_its_name():
    config = TrainConfig('icons', method='halves')
    assert config.beta == 3.0
    prediction = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1, 1)
    target = torch.zeros_like(prediction)
    outputs = Outputs(prediction, None, target, torch.tensor([[1.0, 0.0]]))
    losses, logits = choose_loss('halves', beta=0.5)(outputs)
    # the error of the first image is 2 squared
    assert (losses.item(), logits.item()) == (1.0, 2.0)
    with pytest.raises(InputError, match='halves has no reference'):
        TrainConfig('icons', method='halves', refresh_every=10)


def test_what_is_no_loss_is_told_with_its_package():
    with pytest.raises(InputError, match="'wrong' of the package my-plugins 1.0 is function"):
        choose_loss('wrong')
    with pytest.raises(InputError, match="unknown method 'yours'"):
        choose_loss('yours')


def test_a_built_in_loss_cannot_be_taken_over():
    assert choose_loss('dpo').func is LOSSES['dpo'].function
