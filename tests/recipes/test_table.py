"""The table of methods: the papers' values, each with its source, and rows that are what they
say."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.losses.methods import LOSSES
from balanceddpo.recipes.recipe import KINDS, Recipe, add_recipe, differences_of, values_of
from balanceddpo.recipes.table import RECIPES, recipe_named
from balanceddpo.training.config import TrainConfig
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.group_rules import GROUP_RULES

ROOT = Path(__file__).resolve().parents[2]


def values(name, kind):
    return {k: v.value for k, v in values_of(RECIPES[name], kind, RECIPES).items()}


def test_the_values_that_the_paper_states():
    """Section IV-A: 2000 steps, reference every 100 steps, AdamW, batch 128, 1e-8 with warm-up;
    Algorithm 1, lines 20-22: replaced, not blended."""
    c = values('BalancedDPO', 'sd15')
    assert (c['max_steps'], c['refresh_every'], c['refresh_alpha']) == (2000, 100, 1.0)
    assert (c['optimizer'], c['batch_size']) == ('adamw', 128)
    assert c['learning_rate'] == pytest.approx(1e-8 * 128)
    assert c['warmup_steps'] > 0
    assert RECIPES['BalancedDPO'].labels == LabelConfig('majority')


def test_the_values_of_the_public_diffusion_dpo():
    sd, xl = values('DiffusionDPO', 'sd15'), values('DiffusionDPO', 'sdxl')
    assert (sd['max_steps'], sd['batch_size'], sd['warmup_steps']) == (2000, 2048, 500)
    assert (sd['beta'], sd['empty_prompt_rate'], sd['optimizer']) == (5000, 0.2, 'adamw')
    assert (xl['max_steps'], xl['batch_size'], xl['warmup_steps']) == (2000, 2048, 200)
    assert (xl['beta'], xl['optimizer'], xl['resolution']) == (5000, 'adafactor', 1024)
    assert xl['gradient_checkpointing']
    assert sd['learning_rate'] == xl['learning_rate'] == pytest.approx(2.048e-5)
    assert sd['beta_convention'] == xl['beta_convention'] == 'mean'
    assert sd['weight_decay'] == 1e-2
    assert sd['clip'] == 1


def test_the_values_of_the_lora_example_of_diffusers():
    """Rank 8, rate 1e-5, 16 x 2 pairs, 10000 steps, no warm-up (README); beta 2500 in a loss
    without the 1/2, which is 5000 in ours, no caption dropped (train_diffusion_dpo.py).
    BalancedDPO's adds the paper's steps, batch and refreshes."""
    plain, ours = values('DiffusionDPO', 'sd15_lora'), values('BalancedDPO', 'sd15_lora')
    assert (plain['mode'], plain['lora_rank'], plain['learning_rate']) == ('lora', 8, 1e-5)
    assert (plain['batch_size'], plain['max_steps'], plain['warmup_steps']) == (32, 10000, 0)
    assert (plain['beta'], plain['empty_prompt_rate'], plain['refresh_every']) == (5000, 0, 0)
    assert (ours['mode'], ours['lora_rank'], ours['learning_rate']) == ('lora', 8, 1e-5)
    assert (ours['beta'], ours['batch_size'], ours['max_steps']) == (5000, 128, 2000)
    assert (ours['refresh_every'], ours['refresh_alpha']) == (100, 1)


def test_the_values_of_the_sdxl_lora_example_of_diffusers():
    """Rank 8, rate 1e-5, 8 x 2 pairs, 2000 steps, no warm-up (README); beta 5000 in a loss with the
    1/2, no caption dropped (train_diffusion_dpo_sdxl.py)."""
    plain, ours = values('DiffusionDPO', 'sdxl_lora'), values('BalancedDPO', 'sdxl_lora')
    assert (plain['mode'], plain['lora_rank'], plain['learning_rate']) == ('lora', 8, 1e-5)
    assert (plain['batch_size'], plain['max_steps'], plain['warmup_steps']) == (16, 2000, 0)
    assert (plain['beta'], plain['empty_prompt_rate'], plain['resolution']) == (5000, 0, 1024)
    assert plain['optimizer'] == 'adamw'
    assert (ours['mode'], ours['learning_rate'], ours['beta']) == ('lora', 1e-5, 5000)
    assert (ours['batch_size'], ours['refresh_every'], ours['empty_prompt_rate']) == (128, 100, 0.2)


def test_the_values_of_sdxl_turbo():
    """launchers/turbo.sh: rate 1e-8 x pairs, 2000 steps, warm-up 200, beta 5000, no caption
    dropped; diffusers' README: as for SDXL; both 512 pixels, at four timesteps that end in pure
    noise."""
    full, adapted = values('DiffusionDPO', 'sdxl_turbo'), values('DiffusionDPO', 'sdxl_turbo_lora')
    for found in (full, adapted, values('BalancedDPO', 'sdxl_turbo')):
        assert found['timesteps'] == (249, 499, 749, 999)
        assert found['zero_terminal_snr']
        assert (found['resolution'], found['empty_prompt_rate'], found['beta']) == (512, 0, 5000)
    assert (full['max_steps'], full['warmup_steps'], full['optimizer']) == (2000, 200, 'adafactor')
    assert full['learning_rate'] == pytest.approx(1e-8 * full['batch_size'])
    assert (adapted['batch_size'], adapted['learning_rate'], adapted['lora_rank']) == (16, 1e-5, 8)


def test_what_the_public_scripts_do_at_each_visit():
    """DiffusionDPO's script and diffusers' for SD1.5 mirror each image by itself, diffusers' for
    SDXL and MaPO's the pair; these two tell SDXL the picture's own size, DiffusionDPO that of the
    square; its dropped captions are the encoded empty text. The icon world does none of it."""
    names = ('mirror', 'empty_prompt', 'time_ids')

    def visits(name, kind):
        found = values(name, kind)
        return tuple(found.get(n) for n in names)

    assert visits('DiffusionDPO', 'sd15') == ('each', None, None)
    assert visits('DiffusionDPO', 'sd15_lora') == ('each', None, None)
    assert visits('DiffusionDPO', 'sdxl') == ('each', 'encoded', 'square')
    assert visits('DiffusionDPO', 'sdxl_lora') == ('pair', 'encoded', 'picture')
    assert visits('MaPO', 'sdxl') == ('pair', 'encoded', 'picture')
    for name in RECIPES:
        assert visits(name, 'icons') == (None, None, None)


def test_what_differs_is_told_for_each_kind_that_has_a_launcher_and_taken_over():
    plain = RECIPES['DiffusionDPO']
    assert {*plain.differs} == {*KINDS} - {'icons'}
    assert 'fp16-fix' in differences_of(plain, 'sdxl', RECIPES)
    ours = RECIPES['BalancedDPO']
    assert differences_of(ours, 'sd15', RECIPES) == plain.differs['sd15']
    assert differences_of(ours, 'icons', RECIPES) == ''


@pytest.mark.parametrize(
    'name, kind, steps, batch, rate, beta, noise',
    [
        ('SmPO-Diffusion', 'sd15', 200, 1024, 1.024e-5, 2000, 'smpo_code'),
        ('SmPO-Diffusion', 'sdxl', 200, 1024, 1.024e-5, 5000, 'smpo_code_sdxl'),
        ('DDIM-InPO', 'sd15', 400, 1024, 1.024e-5, 2000, 'inpo_code'),
        ('DDIM-InPO', 'sdxl', 400, 1024, 1.024e-5, 5000, 'inpo_code'),
        ('DSPO', 'sd15', 2000, 2048, 2.048e-5, 0.001, None),
        ('Diffusion-KTO', 'sd15', 20000, 1024, 1e-7, 1000, None),
        ('SDPO safeguard', 'sd15', 2000, 2048, 2.048e-5, 5000, None),
        ('DMPO', 'sd15', 2000, 2048, 2.048e-5, 2000, None),
        ('MaPO', 'sdxl', 2000, 16, 1e-5, 0.1, None),
    ],
)
def test_the_values_of_the_rivals_public_launchers(name, kind, steps, batch, rate, beta, noise):
    c = values(name, kind)
    assert (c['max_steps'], c['batch_size'], c['beta']) == (steps, batch, beta)
    assert c.get('noise') == noise
    assert c['learning_rate'] == pytest.approx(rate)
    assert c['refresh_every'] == 0
    inverted = name in ('SmPO-Diffusion', 'DDIM-InPO')
    assert (c['optimizer'] == 'adafactor') == (kind == 'sdxl' and inverted)
    assert c['resolution'] == (1024 if kind == 'sdxl' else 512)


def test_the_rivals_settings_in_the_icon_world_are_those_that_the_search_chose():
    """Of each loss the try with the largest gain on the tuning prompts, as the committed search has
    it; a guarded loss has the settings of the loss itself."""
    import pandas as pd

    table = pd.read_csv(ROOT / 'paper_figures/icons/rivals_tuning/rivals_tuning.csv')
    parts = table.setting.str.extract(r'^(?P<name>.+), beta (?P<beta>\S+), rate (?P<rate>\S+)$')
    best = parts.join(table.gain).sort_values('gain').groupby('name').last()
    found = {RECIPES[n].loss: (float(r.rate), float(r.beta)) for n, r in best.iterrows()}
    found |= {f'{n}_safeguarded': found[n] for n in ('dmpo', 'dspo')}
    assert {*found, 'dpo'} == {*LOSSES}
    for row in RECIPES.values():
        if row.loss != 'dpo':
            own = values(row.name, 'icons')
            assert (own['learning_rate'], own['beta']) == found[row.loss], row.name
    assert (parts.groupby('name').size() == 7).all()


def test_every_loss_has_a_row_and_every_row_its_parts():
    assert {row.loss for row in RECIPES.values()} == {*LOSSES}
    named = {row.groups for row in RECIPES.values()} - {''}
    assert named == {*GROUP_RULES}
    assert all((row.labels.method == 'given') == bool(row.groups) for row in RECIPES.values())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', RECIPES)
def test_every_value_is_a_setting_and_says_where_it_comes_from(name, kind):
    known = {f.name for f in fields(TrainConfig)}
    for setting, value in values_of(RECIPES[name], kind, RECIPES).items():
        assert setting in known
        assert len(value.source) > 3, setting


def test_another_loss_takes_no_beta_noise_or_options_of_the_row_that_it_is_like():
    assert 'beta' in values('DiffusionDPO', 'sd15')
    assert 'beta' not in values('IPO', 'sd15')
    assert 'options' not in values('DMPO', 'sdxl')


def test_a_moving_average_is_on_average_as_old_as_the_refreshed_reference():
    for kind in KINDS:
        average = values('Moving average', kind)
        assert average['refresh_every'] == 1
        assert 1 / average['refresh_alpha'] == values('BalancedDPO', kind)['refresh_every'] / 2


def test_what_does_not_exist_is_named_and_no_name_comes_twice():
    with pytest.raises(InputError, match="no recipe 'balanced': did you mean BalancedDPO\\?"):
        recipe_named('balanced')
    with pytest.raises(InputError, match="unknown kind of base model 'sd9': use sd15"):
        values_of(RECIPES['BalancedDPO'], 'sd9', RECIPES)
    with pytest.raises(InputError, match="a recipe 'BalancedDPO' already"):
        add_recipe(Recipe('BalancedDPO', 'another'), RECIPES)


def test_importing_the_table_is_light():
    code = (
        "import sys, balanceddpo.recipes.table; print(*{'torch', 'numpy', 'pandas', 'diffusers',"
        " 'accelerate', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
