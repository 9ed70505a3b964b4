"""Options: where their defaults and their help come from, and what is said of those that cannot be
read."""

import re
from pathlib import Path

import pytest

import balanceddpo
from balanceddpo.cli import VERBS, main
from balanceddpo.command.asking import parse
from balanceddpo.command.options import option_comments


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


@pytest.mark.parametrize(
    'words, says',
    [
        ('label --pairs x --limit many', "--limit must be a whole number, not 'many'"),
        ('label --pairs x --limit 1.5', "--limit must be a whole number, not '1.5'"),
        ('label --pairs x --share half', "--share must be a number, not 'half'"),
        ('label --pairs x --weights 1 b', "--weights must be a list, each a number, not '1 b'"),
        ('label --pairs x --limits 1', "--limits must be a list of 2, each a number, not '1'"),
        ('label --pairs x --method most', "unknown way to label 'most': use majority, human"),
        ('label --pairs x --ties most', "--ties cannot be 'most': use "),
        (
            'label --pairs x --method majorty',
            "unknown way to label 'majorty': did you mean majority?",
        ),
        ('label --pairs x --dtype', '--dtype needs a value (see balanceddpo label --help)'),
        ('label --pairs x --dtype --limit 3', '--dtype needs a value (one that begins with -'),
        ('label --pairs --limit 3', '--pairs needs a value'),
        ('label --pairs x --stpes 3', "label has no option '--stpes'"),
        ('label --pairs x --batch_sise=3', "'--batch-sise': did you mean --batch-size?"),
        ('train --no-resum', 'did you mean --no-resume'),
        ('label --pairs x y', "'y' is one word too many"),
        ('label --pairs x -q', "label has no option '-q'"),
        ('train --labels l', 'train needs --encoded and --model (see balanceddpo train --help)'),
        ('align --seed 3', 'align needs RECIPE and --model'),
        ('reproduce', 'reproduce needs NAME'),
    ],
)
def test_words_that_cannot_be_read_are_told_in_one_line(run, words, says):
    assert says in run(*words.split(), code=2)


def test_a_recipe_may_come_after_the_options():
    words = ['--pairs', 'p', '--model', 'icons', '--max-steps', '7', 'Borda, soft']
    last = parse(VERBS['align'], words)
    assert last == parse(VERBS['align'], [words[-1], *words[:-1]])
    assert (last[0].recipe, last[1].max_steps, last[1].refresh_every) == ('Borda, soft', 7, 25)
    # of two that contradict each other the last one holds, for the row's values too
    twice = ['--model', 'nothing', *words, '--model', 'icons', '--max-steps=8']
    assert parse(VERBS['align'], twice)[1].max_steps == 8


def test_help_has_the_defaults_that_the_words_choose(capsys):
    for words, default in (([], '2000'), (['--recipe', 'BalancedDPO', '--model', 'icons'], '100')):
        with pytest.raises(SystemExit) as stop:
            main(['train', *words, '--help'])
        assert not stop.value.code
        said = ' '.join(capsys.readouterr().out.split())
        assert re.search(rf'--max-steps INT optimizer steps \(default: {default}\)', said), said


def test_only_the_public_part_of_tyro_is_used():
    "What begins with an underscore may change in any release."
    package = Path(balanceddpo.__file__).parent
    uses = [
        p for p in package.rglob('*.py') if re.search(r'tyro\._|from tyro import _', p.read_text())
    ]
    assert uses == []


@pytest.mark.parametrize(
    'words, says',
    [
        ('evalute a=icons b=icons', "unknown verb 'evalute': did you mean evaluate"),
        ('methods balancedpo', "'balancedpo': did you mean BalancedDPO"),
        ('align smpo --model icons --pairs p', 'did you mean SmPO-Diffusion'),
        ('align BalancedDPO --model icons --pairs p --values sd15lora', 'did you mean sd15_lora'),
        ('align BalancedDPO --model icon --pairs p', 'did you mean icons'),
        ('reproduce tabel1', "there is no notebook 'tabel1': did you mean table1"),
        ('reproduce table1 --scale icon', "--scale cannot be 'icon': did you mean icons?"),
        ('reproduce table1 --parameters scal=icons', "'scal': did you mean scale?"),
        ('sample --prompts icons:hdp', "'hdp': did you mean hpd?"),
        ('label --pairs p --scorers pickscor', "'pickscor': did you mean pickscore?"),
        ('label --pairs p --scorers clip@h41', "clip has no variant 'h41': did you mean h14?"),
        ('train --labels l --encoded e --model icons --method dop', "not 'dop': did you mean dpo"),
        (
            'train --labels l --encoded e --model icons --method mapo --options gama=1',
            "mapo has no parameter 'gama'",
        ),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(run, words, says):
    assert says in run(*words.split(), code=2)
