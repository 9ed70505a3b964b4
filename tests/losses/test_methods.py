"The table of methods: every row is whole, defaults are the public code's, what is refused and why."

import math

import pytest
import torch
from torch.testing import assert_close

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import diffusion_dpo_loss
from balanceddpo.losses.methods import LOSSES, RULES, Loss, Parameter, choose_loss
from balanceddpo.losses.outputs import Outputs, by_votes, pair_logits
from balanceddpo.losses.pair_losses import dpo

SAFEGUARDED = [name for name in LOSSES if name.endswith('_safeguarded')]


def make(n=12):
    "n random pairs with labels of every kind."
    draw = torch.Generator().manual_seed(0)
    policy, reference, target = torch.randn(3, n, 2, 4, generator=draw)
    kinds = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.75, 0.25]])
    return Outputs(policy, reference, target, kinds.repeat(n // 4, 1), torch.linspace(-6, 6, n))


@pytest.mark.parametrize(
    'wrong, reason',
    [
        (dict(name='ppo'), 'unknown method.*dpo'),
        (dict(name='dpo', alpha=0.1), "no parameter 'alpha'.*beta"),
        (dict(name='dmpo', alpha=0.5), 'between 0 and 0.5'),
        (dict(name='dpo', beta=0.0), 'above 0'),
        (dict(name='dpo', beta=math.inf), 'above 0'),
        (dict(name='dpo', beta='high'), 'above 0'),
        (dict(name='dspo', beta=5000.0), 'from 0 to 1'),
        (dict(name='dpo_safeguarded', mu=1.1), 'from 0 to 1'),
        (dict(name='mapo', convention='sum'), 'mean'),
        (dict(name='dspo', convention='sum'), 'mean'),
        (dict(name='kto', kl=-1.0), '0 or more'),
        (dict(name='smpo', variant='ours'), "'code' or 'paper'"),
        (dict(name='capo', weighting=None), "'sigmoid'"),
        (dict(name='capo', bias=math.nan), 'finite'),
    ],
)
def test_choose_loss_refuses_with_a_reason(wrong, reason):
    with pytest.raises(InputError, match=reason):
        choose_loss(**wrong)


@pytest.mark.parametrize('name', LOSSES)
def test_rows_of_the_table_are_whole(name):
    loss = LOSSES[name]
    assert 'beta' in loss.parameters
    assert loss.paper
    assert all(p.source and p.rule in RULES for p in loss.parameters.values())
    assert choose_loss(name, **loss.defaults)  # every default keeps its own rule
    outputs = make()
    assert_close(choose_loss(name)(outputs), loss.function(outputs, **loss.defaults))


def test_defaults_are_the_ones_of_the_public_code():
    defaults = {name: loss.defaults for name, loss in LOSSES.items()}
    assert defaults['mapo'] == dict(beta=0.1, scale=0.5, timesteps=1000)
    assert defaults['dmpo'] == dict(beta=2000, alpha=0.01)
    assert defaults['kto'] == dict(beta=1000, kl=None)
    assert defaults['dspo'] == dict(beta=0.001)
    assert defaults['smpo'] == dict(beta=2000, sensitivity=10, variant='code')
    assert defaults['capo']['bias'] == 1.5
    assert {name: defaults[name]['mu'] for name in SAFEGUARDED} == dict(
        dpo_safeguarded=0.9, dmpo_safeguarded=0.9, dspo_safeguarded=0.2
    )


def test_a_new_method_is_a_function_and_a_row(monkeypatch):
    def half(outputs, beta):
        x = pair_logits(outputs, beta)
        return by_votes(outputs, diffusion_dpo_loss(x, 0.5, 0), diffusion_dpo_loss(x, 0, 0.5)), x

    monkeypatch.setitem(
        LOSSES, 'half', Loss(half, 'Half', 'this test', dict(beta=Parameter(1.0, 'ours')))
    )
    outputs = make()
    assert_close(choose_loss('half', beta=4.0)(outputs)[0], dpo(outputs, 4.0)[0] / 2)
