"""Settings of a training run: what is refused and with which words, one form for one setting, a
comment for each, and a module that is light."""

import math
import subprocess
import sys
from dataclasses import asdict, fields

import pytest

from balanceddpo.command.options import option_comments
from balanceddpo.core.errors import InputError
from balanceddpo.losses.inversion import INVERSIONS
from balanceddpo.losses.methods import LOSSES
from balanceddpo.training.config import METHODS, NOISES, TrainConfig
from short_runs import settings


@pytest.mark.parametrize(
    'field,value',
    [
        ('batch_size', 0),
        ('learning_rate', 0.0),
        ('learning_rate', math.nan),
        ('clip', -1.0),
        ('empty_prompt_rate', 1.5),
        ('refresh_alpha', 0.0),
        ('refresh_every', -1),
        ('beta', math.inf),
        ('keep_checkpoints', 0),
        ('method', 'ppo'),
        ('mode', 'qlora'),
        ('precision', 'fp8'),
        ('log_every', 0),
        ('warmup_steps', -3),
        ('timesteps', (249, 249)),
        ('timesteps', (-1, 499)),
    ],
)
def test_a_setting_without_sense_is_named(field, value):
    with pytest.raises(InputError, match=f'^{field} must be'):
        TrainConfig(model='x', **{field: value})


def test_a_whole_number_is_the_same_setting():
    "A preset says beta=5000, the command line 5000.0: one run, not two."
    assert asdict(TrainConfig(model='x', beta=5000, clip=1)) == asdict(
        TrainConfig(model='x', beta=5000.0, clip=1.0)
    )
    assert type(TrainConfig(model='x', beta=5000).beta) is float
    assert type(TrainConfig(model='x').max_steps) is int


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(method='mapo', refresh_every=10), 'mapo has no reference that could be refreshed'),
        (dict(method='sft', refresh_drift=0.1), 'sft has no reference that could be refreshed'),
        (dict(refresh_drift=-0.1), 'refresh_drift must be 0 or more'),
        (dict(method='kto', micro_batch_size=2), 'kto compares a pair with the others'),
        (dict(options=('mu=0.5',)), "dpo has no parameter 'mu'"),
        (dict(method='dmpo', options=('alpha',)), 'an option of a method is NAME=VALUE'),
        (dict(method='mapo', beta_convention='sum'), 'mapo is made for errors that are a mean'),
        (dict(noise='inverse'), "noise must be a known word, not 'inverse': use auto, random"),
        (dict(method='dspo', beta=5000.0), 'beta must be from 0 to 1 for dspo'),
    ],
)
def test_what_does_not_fit_a_method_is_refused_with_the_reason(made, changes, reason):
    with pytest.raises(InputError, match=reason):
        settings(made(), **changes)


def test_every_setting_has_a_help_comment():
    assert option_comments(TrainConfig).keys() == {f.name for f in fields(TrainConfig)}


def test_the_light_names_are_those_of_the_tables():
    assert tuple(LOSSES) == METHODS
    assert tuple(INVERSIONS) == NOISES


def test_importing_the_settings_is_light():
    code = (
        "import sys, balanceddpo.training.config; print(*{'torch', 'numpy', 'pandas', 'accelerate'}"
        " & sys.modules.keys(), *(m for m in sys.modules if m.startswith('balanceddpo.losses')))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
