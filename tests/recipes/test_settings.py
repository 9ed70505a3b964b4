"""From a row to a run: values that can be changed, and changes that are another method."""

import re
from dataclasses import asdict, fields, replace

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.losses.methods import LOSSES
from balanceddpo.recipes.recipe import KINDS
from balanceddpo.recipes.settings import (
    check_labels,
    kind_of,
    reference_of,
    settings_of,
    variant,
)
from balanceddpo.recipes.table import RECIPES
from balanceddpo.training.config import TrainConfig
from balanceddpo.voting.config import LabelConfig
from tiny_models import tiny_folder

SD15 = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
SDXL = 'stabilityai/stable-diffusion-xl-base-1.0'


def whole(name):
    "KTO compares the pairs of a batch, which then must not be split."
    return dict(batch_size=8, micro_batch_size=8) if RECIPES[name].loss == 'kto' else {}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', RECIPES)
def test_every_row_gives_a_run_that_is_what_the_row_says(name, kind):
    c = settings_of(name, 'icons', kind, **whole(name))
    row = RECIPES[name]
    assert c.method == row.loss
    assert reference_of(c) == row.reference
    assert (c.noise != 'random') == (row.noise == 'inversion')
    assert (c.mode == 'lora') == kind.endswith('_lora')


@pytest.mark.parametrize('kind', KINDS)
def test_the_variants_differ_from_balanced_dpo_in_one_thing(kind):
    ours = RECIPES['BalancedDPO']
    plain = asdict(settings_of(ours, 'icons', kind))
    for name, row in RECIPES.items():
        if row.like != 'BalancedDPO':
            continue
        other = asdict(settings_of(name, 'icons', kind))
        changed = {k for k in plain if plain[k] != other[k]}
        assert changed <= {'refresh_every', 'refresh_alpha', 'refresh_drift'}, name
        assert bool(changed) != (row.labels != ours.labels), name


def test_where_nobody_published_a_value_the_loss_has_its_own():
    for name, row in RECIPES.items():
        if row.loss in ('ipo', 'hinge', 'dmpo_safeguarded', 'sft'):
            c = settings_of(name, SD15)
            assert c.beta == LOSSES[row.loss].defaults['beta']
            assert c.noise == LOSSES[row.loss].noise
            assert c.options == ()


def test_any_value_can_be_replaced_and_no_other_changes():
    before = asdict(settings_of('SmPO-Diffusion', SDXL))
    after = asdict(settings_of('SmPO-Diffusion', SDXL, seed=7, learning_rate=1e-3, tracker='none'))
    assert {k for k in before if before[k] != after[k]} == {'seed', 'learning_rate', 'tracker'}


@pytest.mark.parametrize(
    'name, changes, words',
    [
        ('BalancedDPO', dict(refresh_every=0), "the reference 'replaced', and these .* 'fixed'"),
        ('BalancedDPO', dict(refresh_alpha=0.5), "these settings make it 'mixed'"),
        ('DiffusionDPO', dict(refresh_every=5), "the reference 'fixed', and these .* 'replaced'"),
        ('DiffusionDPO', dict(refresh_drift=0.1), "these settings make it 'drifted'"),
        ('DiffusionDPO', dict(method='ipo'), "the loss 'dpo', and these settings make it 'ipo'"),
        ('DDIM-InPO', dict(noise='random'), "the noise 'inversion', and these .* 'random'"),
        ('IPO', dict(lr=1e-5), "no setting 'lr'"),
        ('IPO', dict(beta=-1), 'beta must be above 0'),
    ],
)
def test_what_contradicts_a_row_is_refused(name, changes, words):
    with pytest.raises(InputError, match=words):
        settings_of(name, 'icons', **changes)


def test_labels_of_another_kind_are_refused_but_not_another_handling_of_ties():
    ours = RECIPES['BalancedDPO']
    with pytest.raises(InputError, match="learns from the labels 'majority', not 'human'"):
        check_labels(ours, LabelConfig('human'))
    with pytest.raises(InputError, match="'smoothed of pickscore', not 'smoothed of hps'"):
        check_labels(RECIPES['SmPO-Diffusion'], LabelConfig('smoothed', scorer='hps'))
    check_labels(ours, LabelConfig('majority', ties='human', scorers=('a', 'b')))


@pytest.mark.parametrize('changes', [dict(refresh_every=0), dict(refresh_alpha=0.5), {}])
def test_a_variant_is_named_for_what_it_is(changes):
    row = variant('BalancedDPO', 'mine', LabelConfig('human'), **changes)
    c = settings_of(row, 'icons')
    assert row.name == 'mine'
    assert row.labels.method == 'human'
    assert reference_of(c) == row.reference
    assert c == replace(settings_of('BalancedDPO', 'icons'), **changes)
    assert settings_of(row, SD15) == replace(settings_of('BalancedDPO', SD15), **changes)


def test_the_kind_of_a_folder_is_that_of_its_family(tmp_path):
    assert kind_of(str(tiny_folder(tmp_path / 'sd21', 'sd21'))) == 'sd15'
    assert kind_of(str(tiny_folder(tmp_path / 'sd15', 'sd15')), 'lora') == 'sd15_lora'
    assert kind_of(str(tiny_folder(tmp_path / 'sdxl', 'sdxl'))) == 'sdxl'
    assert kind_of(str(tmp_path / 'sdxl'), 'lora') == 'sdxl_lora'
    flow = str(tiny_folder(tmp_path / 'sd3', 'sd3'))
    with pytest.raises(InputError, match='family sd3: say whose are to be used, values sd15 or'):
        kind_of(flow)
    assert settings_of('DiffusionDPO', flow, 'sdxl').resolution == 1024


@pytest.mark.parametrize('name', ['BalancedDPO', 'SmPO-Diffusion'])
def test_the_command_line_can_show_and_parse_it(name, capsys):
    import tyro

    default = settings_of(name, SD15)
    args = ['--learning-rate', '123', '--lora-targets', 'to_q', 'to_k']
    parsed = tyro.cli(TrainConfig, default=default, args=args)
    changed = {'learning_rate': 123.0, 'lora_targets': ('to_q', 'to_k')}
    assert asdict(parsed) == asdict(default) | changed
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, default=default, args=['--help'])
    shown = re.sub(r'[\s│]+', ' ', capsys.readouterr().out)
    assert all(f'--{f.name.replace("_", "-")}' in shown for f in fields(TrainConfig))
