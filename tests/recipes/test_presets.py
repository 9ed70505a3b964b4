"""Presets: the paper's values, a source behind each, and settings that the command line can show
and parse."""

import inspect
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.losses.methods import LOSSES
from balanceddpo.recipes import presets
from balanceddpo.recipes.presets import PRESETS, preset
from balanceddpo.training.config import TrainConfig


def test_the_values_that_the_paper_states():
    """Section IV-A: 2000 steps, reference every 100 steps, AdamW, batch 128, 1e-8 with warm-up;
    Algorithm 1, lines 20-22: replaced, not blended."""
    c = preset('balanced_dpo_sd15')
    assert (c.max_steps, c.refresh_every, c.refresh_alpha, c.optimizer, c.batch_size) == (
        2000,
        100,
        1.0,
        'adamw',
        128,
    )
    assert c.learning_rate == pytest.approx(1e-8 * 128)
    assert c.warmup_steps > 0


def test_the_values_of_the_public_diffusion_dpo():
    sd, xl = preset('diffusion_dpo_sd15'), preset('diffusion_dpo_sdxl')
    assert (
        sd.max_steps,
        sd.batch_size,
        sd.warmup_steps,
        sd.beta,
        sd.empty_prompt_rate,
        sd.optimizer,
    ) == (2000, 2048, 500, 5000, 0.2, 'adamw')
    assert (
        xl.max_steps,
        xl.batch_size,
        xl.warmup_steps,
        xl.beta,
        xl.optimizer,
        xl.gradient_checkpointing,
        xl.resolution,
    ) == (2000, 2048, 200, 5000, 'adafactor', True, 1024)
    assert sd.learning_rate == xl.learning_rate == pytest.approx(2.048e-5)
    assert sd.beta_convention == xl.beta_convention == 'mean'
    assert sd.weight_decay == 1e-2
    assert sd.clip == 1


def test_the_values_of_the_lora_example_of_diffusers():
    """Rank 8, rate 1e-5, 16 x 2 pairs, 10000 steps, no warm-up (README); beta 2500, no caption
    dropped (train_diffusion_dpo.py). BalancedDPO's adds the paper's steps, batch and refreshes."""
    plain, ours = preset('diffusion_dpo_sd15_lora'), preset('balanced_dpo_sd15_lora')
    assert (
        plain.mode,
        plain.lora_rank,
        plain.learning_rate,
        plain.batch_size,
        plain.max_steps,
        plain.warmup_steps,
        plain.beta,
        plain.empty_prompt_rate,
        plain.refresh_every,
    ) == ('lora', 8, 1e-5, 32, 10000, 0, 2500, 0, 0)
    assert (ours.mode, ours.lora_rank, ours.learning_rate, ours.beta) == ('lora', 8, 1e-5, 2500)
    assert (ours.batch_size, ours.max_steps, ours.refresh_every, ours.refresh_alpha) == (
        128,
        2000,
        100,
        1,
    )


@pytest.mark.parametrize(
    'name, steps, batch, rate, beta, noise',
    [
        ('smpo_sd15', 200, 1024, 1.024e-5, 2000, 'smpo_code'),
        ('smpo_sdxl', 200, 1024, 1.024e-5, 5000, 'smpo_code_sdxl'),
        ('inpo_sd15', 400, 1024, 1.024e-5, 2000, 'inpo_code'),
        ('inpo_sdxl', 400, 1024, 1.024e-5, 5000, 'inpo_code'),
        ('dspo_sd15', 2000, 2048, 2.048e-5, 0.001, 'random'),
        ('kto_sd15', 20000, 1024, 1e-7, 1000, 'random'),
        ('dpo_safeguarded_sd15', 2000, 2048, 2.048e-5, 5000, 'random'),
        ('dmpo_sd15', 2000, 2048, 2.048e-5, 2000, 'random'),
        ('mapo_sdxl', 2000, 16, 1e-5, 0.1, 'random'),
    ],
)
def test_the_values_of_the_rivals_public_launchers(name, steps, batch, rate, beta, noise):
    c = preset(name)
    assert (c.max_steps, c.batch_size, c.beta, c.noise) == (
        steps,
        batch,
        beta,
        noise,
    )
    assert c.learning_rate == pytest.approx(rate)
    assert c.method == name.rsplit('_', 1)[0]
    assert c.refresh_every == c.refresh_drift == 0
    assert (c.optimizer == 'adafactor') == (name in ('smpo_sdxl', 'inpo_sdxl'))
    assert c.resolution == (1024 if name.endswith('sdxl') else 512)


def test_every_loss_has_an_icon_preset_that_differs_from_diffusion_dpo_in_tuned_values_only():
    plain = asdict(preset('diffusion_dpo_icons'))
    for method, loss in LOSSES.items():
        if method == 'dpo':
            continue
        c = asdict(preset(f'{method}_icons'))
        assert {k for k in plain if plain[k] != c[k]} <= {
            'method',
            'learning_rate',
            'beta',
            'noise',
        }
        assert c['method'] == method
        assert c['noise'] == loss.noise


def test_the_rivals_settings_in_the_icon_world_are_those_that_the_search_chose():
    """Of each loss the try with the largest gain on the tuning prompts, as the committed search has
    it; a guarded loss has the settings of the loss itself."""
    import pandas as pd

    from balanceddpo.paper.rivals import RIVALS

    table = pd.read_csv(Path(__file__).parents[2] / 'paper_figures/icons/rivals_tuning.csv')
    parts = table.setting.str.extract(r'^(?P<name>.+), beta (?P<beta>\S+), rate (?P<rate>\S+)$')
    best = parts.join(table.gain).sort_values('gain').groupby('name').last()
    found = {RIVALS[n].recipe: (float(r.rate), float(r.beta)) for n, r in best.iterrows()}
    found |= {f'{n}_safeguarded': found[n] for n in ('dmpo', 'dspo')}
    assert found == presets.ICON_RIVALS
    assert {*found, 'dpo'} == {*LOSSES}
    assert (parts.groupby('name').size() == 7).all()


@pytest.mark.parametrize('size', ['sd15', 'sdxl', 'icons'])
def test_only_balanced_dpo_moves_its_reference(size):
    balanced, plain = preset(f'balanced_dpo_{size}'), preset(f'diffusion_dpo_{size}')
    assert balanced.refresh_every > 0 == plain.refresh_every
    assert balanced.max_steps > balanced.refresh_every
    assert balanced.model == plain.model
    assert balanced.resolution == plain.resolution
    assert size == 'icons' or balanced.beta == plain.beta  # which is tuned for each method there


@pytest.mark.parametrize('name', PRESETS)
def test_every_line_of_values_says_where_they_come_from(name):
    "Behind a value stands its source, or above it and the values that follow it."
    source = inspect.getsource(PRESETS[name])
    assert re.search(r'#\s*\S', source)
    has_comment_above = False
    for line in source.splitlines():
        if re.match(r'\s*#\s*\S', line):
            has_comment_above = True
        elif re.match(r'\s{12}\w+=', line):
            behind = re.search(r'#\s*\S', line)
            assert behind or has_comment_above, line
            has_comment_above = has_comment_above and not behind


@pytest.mark.parametrize('name', PRESETS)
def test_any_value_can_be_replaced_and_no_other_changes(name):
    before, after = (
        asdict(preset(name)),
        asdict(preset(name, seed=7, learning_rate=1e-3, tracker='none')),
    )
    assert {k for k in before if before[k] != after[k]} == {'seed', 'learning_rate', 'tracker'}


@pytest.mark.parametrize('name', ['balanced_dpo_sd15', 'kto_sd15', 'smpo_sd15', 'smpo_icons'])
def test_another_method_comes_with_its_own_beta_noise_and_options(name):
    for method, loss in LOSSES.items():
        before, still = preset(name), {} if loss.needs_reference else dict(refresh_every=0)
        if method == before.method:
            assert preset(name, method=method) == before
            continue
        if not loss.per_pair:
            still['micro_batch_size'] = before.batch_size
        c = preset(name, method=method, **still)
        assert (c.method, c.beta, c.noise, c.options) == (
            method,
            loss.defaults['beta'],
            loss.noise,
            (),
        )
        given = preset(name, method=method, beta=0.5, noise='random', **still)
        assert (given.beta, given.noise) == (0.5, 'random')
        assert {k for k in asdict(c) if asdict(c)[k] != asdict(before)[k]} <= {
            'method',
            'beta',
            'noise',
            'options',
            *still,
        }


def test_what_does_not_exist_is_named():
    with pytest.raises(InputError, match="unknown preset 'sd15': use balanced_dpo_sd15"):
        preset('sd15')
    with pytest.raises(InputError, match="no setting 'lr'"):
        preset('balanced_dpo_sd15', lr=1e-5)
    with pytest.raises(InputError, match='beta must be above 0'):
        preset('balanced_dpo_sd15', beta=-1)


@pytest.mark.parametrize('name', PRESETS)
def test_the_command_line_can_show_and_parse_it(name, capsys):
    import tyro

    default = preset(name)
    parsed = tyro.cli(
        TrainConfig,
        default=default,
        args=['--learning-rate', '123', '--lora-targets', 'to_q', 'to_k'],
    )
    assert asdict(parsed) == asdict(default) | {
        'learning_rate': 123.0,
        'lora_targets': ('to_q', 'to_k'),
    }
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, default=default, args=['--help'])
    shown = re.sub(r'[\s│]+', ' ', capsys.readouterr().out)
    assert all(f'--{f.name.replace("_", "-")}' in shown for f in fields(TrainConfig))
    assert 'steps between two refreshes of the reference' in shown


def test_importing_presets_is_light():
    import subprocess
    import sys

    heavy = (
        "import sys, balanceddpo.recipes.presets; print(*{'torch', 'numpy', 'pandas', 'diffusers',"
        " 'accelerate', 'transformers'} & sys.modules.keys())"
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', heavy], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ''
    )
