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
parameters = dict(beta=Parameter(1.0, 'made up'))
long = Loss(lambda outputs, beta: (outputs.errors, outputs.errors[:, 0]), '', '', parameters)
none = Loss(lambda outputs, beta: None, '', '', parameters)
"""


OFFERED = {'halves': 'mine', 'wrong': 'wrong', 'dpo': 'gone', 'long': 'long', 'none': 'none'}


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setattr('balanceddpo.losses.methods.LOSSES', dict(LOSSES))
    install(tmp_path, monkeypatch, CODE, losses=OFFERED)
    yield
    sys.modules.pop('my_plugins', None)


def seen():
    "What a loss sees of one pair, of which the errors are 4 and 1."
    prediction = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1, 1)
    return Outputs(prediction, None, torch.zeros_like(prediction), torch.tensor([[1.0, 0.0]]))


def test_a_run_takes_a_loss_by_its_name():
    config = TrainConfig('icons', method='halves')
    assert config.beta == 3.0
    losses, logits = choose_loss('halves', beta=0.5)(seen())
    # the error of the first image is 2 squared
    assert (losses.item(), logits.item()) == (1.0, 2.0)
    with pytest.raises(InputError, match='halves has no reference'):
        TrainConfig('icons', method='halves', refresh_every=10)


def test_what_is_no_loss_is_told_with_its_package():
    with pytest.raises(InputError, match="'wrong' of the package my-plugins 1.0 is function"):
        choose_loss('wrong')
    with pytest.raises(InputError, match="unknown method 'yours': use dpo, .*, wrong") as told:
        choose_loss('yours')
    assert str(told.value).count(' dpo,') == 1  # the name of a built-in loss is offered too


def test_a_built_in_loss_cannot_be_taken_over():
    assert choose_loss('dpo').func is LOSSES['dpo'].function


def test_a_loss_that_gives_no_losses_is_told_with_its_package():
    told = "the loss 'long' of the package my-plugins 1.0 gave losses .1, 2. for 1 pairs"
    with pytest.raises(InputError, match=told):
        choose_loss('long')(seen())
    with pytest.raises(InputError, match="the loss 'none' of the package .* failed .*: TypeError"):
        choose_loss('none')(seen())
