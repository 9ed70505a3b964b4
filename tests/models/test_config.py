"""The settings of encoding and sampling: light to import, and which of them a key holds."""

import subprocess
import sys
from dataclasses import fields

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.models.config import (
    IMAGE_SETTINGS,
    LATENT_SETTINGS,
    EncodeConfig,
    SampleConfig,
)

HEAVY = {'torch', 'numpy', 'pandas', 'pyarrow', 'PIL', 'diffusers', 'transformers'}


def test_importing_the_settings_imports_nothing_heavy():
    code = 'import sys, balanceddpo.models.config; print(*(m.split(".")[0] for m in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize(
    'config, settings', [(EncodeConfig, LATENT_SETTINGS), (SampleConfig, IMAGE_SETTINGS)]
)
def test_the_settings_in_a_key_are_fields_and_say_nothing_of_speed(config, settings):
    names = {f.name for f in fields(config)}
    assert set(settings) < names
    assert not set(settings) & {'batch_size', 'workers', 'device'}


@pytest.mark.parametrize('name', ['images_per_prompt', 'batch_size', 'steps'])
def test_what_would_draw_nothing_is_refused(name):
    SampleConfig(**{name: 1}).check()
    with pytest.raises(InputError, match='at least 1'):
        SampleConfig(**{name: 0}).check()


@pytest.mark.parametrize(
    'name, value',
    [
        ('guidance', float('inf')),
        ('guidance', float('nan')),
        ('guidance', -1.0),
        ('limit', -1),
        ('limit', 0),
        ('resolution', -64),
    ],
)
def test_settings_without_sense_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f'^{name} must be .*, not {value}$'):
        SampleConfig(**{name: value}).check()


def test_settings_at_the_edge_are_kept():
    "FLUX.1-schnell is drawn without guidance."
    SampleConfig(guidance=0.0, limit=1, resolution=0).check()
