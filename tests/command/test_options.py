"""Options: where their defaults and their help come from, and what is said of those that cannot be
read."""

import pytest

from balanceddpo.cli import VERBS, main
from balanceddpo.command.options import option_comments, parse


def test_a_recipe_gives_defaults_that_can_be_changed():
    from balanceddpo.recipes.settings import settings_of

    model = 'stabilityai/stable-diffusion-xl-base-1.0'
    files = ['--labels', 'l', '--encoded', 'e', '--model', model]
    for words in (['--recipe', 'BalancedDPO'], ['--recipe=BalancedDPO']):
        options, config = parse(VERBS['train'], [*files, *words])
        assert config == settings_of('BalancedDPO', model)
        assert options.recipe == 'BalancedDPO'
    words = '--refresh-every 7 --no-sample-latents --lora_targets to_q --recipe BalancedDPO'
    _, config = parse(VERBS['train'], [*words.split(), *files])
    changes = dict(refresh_every=7, sample_latents=False, lora_targets=('to_q',))
    assert config == settings_of('BalancedDPO', model, **changes)


def test_a_recipe_has_other_values_for_a_lora_and_those_that_are_asked_for():
    from balanceddpo.recipes.settings import settings_of

    model = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
    words = ['BalancedDPO', '--model', model, '--pairs', 'p', '--mode', 'lora']
    _, config = parse(VERBS['align'], words)
    assert config == settings_of('BalancedDPO', model, mode='lora')
    assert config.learning_rate == 1e-5
    words = ['SmPO-Diffusion', f'--model={model}', '--values', 'sdxl']
    _, config = parse(VERBS['align'], words)
    assert config == settings_of('SmPO-Diffusion', model, 'sdxl')
    assert (config.method, config.noise) == ('smpo', 'smpo_code_sdxl')


@pytest.mark.parametrize('verb', VERBS)
def test_help_has_every_option_with_its_comment(verb, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '400')
    with pytest.raises(SystemExit) as stop:
        main([verb, '--help'])
    said, v = capsys.readouterr().out, VERBS[verb]
    assert stop.value.code in (0, None)
    for config in filter(None, (v.options, v.settings)):
        comments = option_comments(config)
        for name in config.__dataclass_fields__:
            if config is v.options and name in v.unasked:
                continue
            if config is v.settings and name in v.hidden:
                assert f'--{name} ' not in said or name in v.options.__dataclass_fields__
                continue
            assert comments.get(name), f'{config.__name__}.{name} has no comment'
            assert comments[name] in said, f'{config.__name__}.{name}'
            assert name in v.positional or f'--{name.replace("_", "-")}' in said
    assert {'--dry-run'} <= set(said.split()) or '--dry-run,' in said


def test_an_options_name_is_used_once():
    for v in VERBS.values():
        if v.settings:
            assert not set(v.options.__dataclass_fields__) & (
                set(v.settings.__dataclass_fields__) - set(v.hidden)
            )


def test_long_paths_are_not_broken_in_messages(run):
    path = '/'.join(['a long name'] * 40)
    assert path in run('label', '--pairs', path, code=2)
    assert f"'{path}'" in run('sample', '--limit', path, code=2)


@pytest.mark.parametrize(
    'words, says',
    [
        ('label --pairs x --limit 0', '--limit must be 1 or more, not 0'),
        ('label --pairs x --limit -1', '--limit must be 1 or more, not -1'),
        ('label --pairs x --batch-size 0', '--batch-size must be 1 or more'),
        ('encode --pairs x --model icons --limit 0', '--limit must be 1 or more'),
        ('encode --pairs x --model icons --batch-size -1', '--batch-size must be 1 or more'),
        ('encode --pairs x --model icons --workers 0', '--workers must be 1 or more'),
        ('encode --pairs x --model icons --resolution -64', '--resolution must be 0 or more'),
        ('encode --pairs x --model icons --resolution 63', '--resolution must be a multiple of'),
        ('encode --pairs x --model icons --seed -1', '--seed must be from 0 to 4294967295'),
        ('train --labels x --encoded x --model icons --seed 4294967296', '--seed must be from 0'),
        ('train --labels x --encoded x --model icons --resolution 0', 'resolution must be'),
        ('sample --limit -1', '--limit must be 1 or more'),
        ('sample --images-per-prompt 0', '--images-per-prompt must be 1 or more'),
        ('sample --steps 0', '--steps must be 1 or more'),
        ('sample --resolution 63', '--resolution must be a multiple of'),
        ('evaluate a=icons b=icons --prompts icons:hpd --resolution 63', 'must be a multiple of'),
        ('align BalancedDPO --model icons --pairs x --seed -1', '--seed must be from 0'),
        ('align BalancedDPO --model icons --pairs x --limit 0', '--limit must be 1 or more'),
        ('align BalancedDPO --model icons --pairs x --resolution 63', 'must be a multiple of'),
        ('icons --rows 0', '--rows must be 1 or more'),
        ('reproduce all --workers 0', '--workers must be 1 or more'),
    ],
)
def test_a_number_without_sense_is_refused_in_one_line(run, words, says):
    assert says in run(*words.split(), code=2)
