"""Options in a file: what is printed reads back as it was, the command line wins, and what is wrong
is told with its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from balanceddpo.cli import VERBS
from balanceddpo.command.asking import ask, parse, values_asked, words_of_all
from balanceddpo.command.options import options_of
from balanceddpo.core.engines import ENGINE_FIELDS, words_without
from balanceddpo.recipes.recipe import KINDS, values_of
from balanceddpo.recipes.table import RECIPES

ALIGN = ['align', 'BalancedDPO', '--model', 'icons', '--pairs', 'my pairs.parquet']
WORDS = {
    'align': [*ALIGN, '--scorers', 'hps', 'clip=a b', '--out', 'work/run'],
    'methods': ['methods'],
    'label': [
        'label',
        '--pairs',
        'x',
        '--method',
        'smoothed',
        '--scorer=no',
        '--limits',
        '0',
        '1e-7',
    ],
    'encode': ['encode', '--pairs', 'x', '--model', 'icons', '--mirrored', '--share', '0.1'],
    'train': 'train --recipe BalancedDPO --labels l --encoded e --model icons --no-resume'.split(),
    'sample': ['sample', '--prompt', 'a "cat": #1', "it's", '--lora', '~', '--guidance', '3'],
    'evaluate': ['evaluate', 'a=icons', 'b=x', '--prompts', 'icons:hpd', '--max-unsound', '1'],
    'reproduce': ['reproduce', 'table1', '--parameters', 'a=1', 'b=[2, 3]'],
    'icons': ['icons', '--rows', '3'],
    'verify': ['verify', 'a folder'],
    'inspect': ['inspect', 'x', '--columns', 'caption=words', 'jpg_0=one', '--look', '3'],
    'score': ['score', 'a.png', 'b.png', '--prompt', "it's", '--json'],
    'export': ['export', 'a+b', '--to', 'fp16', '--push-to-hub', 'me/mine'],
    'doctor': ['doctor', '--offline'],
    'completion': ['completion', 'bash'],
}


def printed(run, words, path):
    "The file that `--print-config` makes of the words of a command."
    path.write_text(run(*words, '--print-config'))
    return path


def same(words, path):
    "Whether a command and its printed file ask for the same."
    verb = VERBS[words[0]]
    return parse(verb, words[1:]) == parse(verb, ['--config', str(path)])


def values(words):
    "The value of each option of a command, but for those that name a file or print one."
    asked = values_asked(VERBS[words[0]], ask(VERBS[words[0]], list(map(str, words[1:]))))
    return {n: v for n, v in asked.items() if n not in ('config', 'print_config')}


@pytest.mark.parametrize('verb', VERBS)
def test_all_options_of_a_verb_are_printed_and_read_back(run, tmp_path, verb):
    words = WORDS.get(verb, [verb])
    path = printed(run, words, tmp_path / 'run.yaml')
    assert values([verb, '--config', path]) == values(words)
    text = path.read_text().replace("'on':", 'on:')  # quoted for readers of YAML 1.1
    for name in options_of(VERBS[verb]).keys() - {'config', 'print_config'}:
        assert f'\n{name}: ' in text or f'\n# {name}:  (has to be given)' in text


@pytest.mark.parametrize('words', WORDS.values(), ids=list(WORDS))
def test_what_a_verb_prints_reads_back_as_the_same_settings(run, tmp_path, words):
    assert same(words, printed(run, words, tmp_path / 'run.yaml'))


@pytest.mark.parametrize('kind', KINDS)
def test_a_row_is_printed_with_its_values_and_where_they_are_from(run, tmp_path, kind):
    words = [*ALIGN, '--values', kind]
    path = printed(run, words, tmp_path / 'run.yaml')
    assert same(words, path)
    text = path.read_text()
    value = values_of(RECIPES['BalancedDPO'], kind, RECIPES)['refresh_every']
    assert f'# from: {value.source}\nrefresh_every: {value.value}\n' in text


def test_every_row_reads_back(run, tmp_path):
    for name, row in RECIPES.items():
        source = ['--prompts', 'p.txt'] if row.groups else ['--pairs', 'p']
        words = ['align', name, '--model', 'icons', *source]
        assert same(words, printed(run, words, tmp_path / 'run.yaml')), name


def test_what_has_to_be_given_is_a_comment_until_it_is(run, tmp_path):
    path = printed(run, ['label'], tmp_path / 'run.yaml')
    assert '\n# pairs:  (has to be given)\n' in path.read_text()
    assert 'label needs --pairs' in run('label', '--config', path, code=2)
    assert parse(VERBS['label'], ['--config', str(path), '--pairs', 'x'])[0].pairs == 'x'


@pytest.mark.parametrize('suffix', ['.yaml', '.yml', '.toml'])
def test_the_command_line_wins_over_the_file_and_the_file_over_the_row(tmp_path, suffix):
    to = ' = ' if suffix == '.toml' else ': '
    lines = ['recipe@"BalancedDPO"', 'model@"icons"', 'pairs@"p"', 'max-steps@7', 'batch_size@4']
    lines += ['micro_batch_size@2', 'lora_targets@["to_q", "to_k"]', 'sample-latents@false']
    path = tmp_path / f'run{suffix}'
    path.write_text('\n'.join(lines).replace('@', to))
    options, config = parse(VERBS['align'], ['--config', str(path), '--max-steps=9'])
    assert (options.recipe, options.pairs) == ('BalancedDPO', 'p')
    assert (config.max_steps, config.batch_size, config.micro_batch_size) == (9, 4, 2)
    assert (config.lora_targets, config.sample_latents) == (('to_q', 'to_k'), False)
    assert config.refresh_every == 25  # the row's
    options, config = parse(VERBS['align'], ['Borda', '--config', str(path), '--sample-latents'])
    assert (options.recipe, config.sample_latents) == ('Borda', True)


def test_yaml_is_read_as_it_looks(tmp_path):
    "YAML 1.1 alone would make text of the first, false of the second and true of the third."
    path = tmp_path / 'run.yaml'
    path.write_text('learning_rate: 1e-5\nmirror: no\non: here\nmodel: icons\npairs: p\n')
    options, config = parse(VERBS['align'], ['BalancedDPO', '--config', str(path)])
    assert (config.learning_rate, config.mirror, options.on) == (1e-5, 'no', 'here')


@pytest.mark.parametrize(
    'name, text, says',
    [
        ('a.yaml', 'model: icons\nmax_step: 3\n', "a.yaml, line 2: align has no option 'max_step'"),
        ('a.yaml', 'max_step: 3\n', 'did you mean max_steps or'),
        ('a.yaml', 'max_steps: 3\nmax-steps: 4\n', 'a.yaml, line 2: max-steps is there twice'),
        ('a.yaml', 'max_steps: many', "line 1: max_steps must be a whole number, not 'many'"),
        ('a.yaml', 'max_steps: 2.5', 'max_steps must be a whole number, not 2.5'),
        ('a.yaml', 'max_steps: true', 'max_steps must be a whole number, not True'),
        ('a.yaml', 'max_steps:', 'max_steps must be a whole number, not None'),
        ('a.yaml', 'max_steps: {a: 1}', "max_steps must be a whole number, not {'a': 1}"),
        ('a.yaml', 'pairs: 2024', 'pairs must be text, not 2024: put it into quotes'),
        ('a.yaml', 'resume: sure', "resume must be true or false, not 'sure'"),
        ('a.yaml', 'mode: loro', "mode must be one of full, lora, not 'loro'"),
        ('a.yaml', 'lora_targets: to_q', "lora_targets must be a list, each text, not 'to_q'"),
        ('a.yaml', 'scorers: [hps, 3]', "scorers must be a list, each text, not ['hps', 3]"),
        ('a.yaml', 'method: ipo', "align has no option 'method'"),
        ('a.yaml', 'config: b.yaml', "align has no option 'config'"),
        ('a.yaml', '- max_steps', 'it must be a list of KEY: VALUE'),
        ('a.yaml', 'a: !!python/object/apply:os.system [ls]', 'could not determine a constructor'),
        ('a.yaml', 'a: [1', 'a.yaml cannot be read'),
        ('a.yaml', b'\xff\xfe', 'a.yaml cannot be read'),
        ('a.toml', 'max_steps = 3\nmax_steps = 4\n', 'a.toml cannot be read: Cannot overwrite'),
        ('a.toml', 'max_steps = 3\nmax-steps = 4\n', 'a.toml: max-steps is there twice'),
        ('a.toml', 'max_steps = "3"', "a.toml: max_steps must be a whole number, not '3'"),
        ('a.json', '{}', 'a config file ends in .yaml, .yml or .toml'),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(run, tmp_path, name, text, says):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = run('align', 'BalancedDPO', '--config', path, code=2)
    assert says in said
    assert str(path) in said


def test_a_file_that_is_not_there(run, tmp_path):
    assert 'none.yaml: No such file' in run('align', '--config', tmp_path / 'none.yaml', code=2)


def test_processes_get_the_words_of_the_file_and_not_the_file(tmp_path):
    "Otherwise each of them would read `on: gpus` and start others."
    path = tmp_path / 'run.yaml'
    path.write_text(
        'on: gpus\nprocesses: 2\nrecipe: BalancedDPO\nmodel: icons\nresume: false\nvae: ""\n'
        'scorers: [hps, clip]\nlimit: null\nshare: 0.5\npairs: -x\n'
    )
    align, words = VERBS['align'], ['--seed', '3', '--config', str(path), '--share=0.25']
    alone = words_of_all(align, words, ask(align, words))
    own = words_without(alone, ENGINE_FIELDS)
    assert not {'--config', str(path)} & set(own)
    options, config = parse(align, own[1:])
    asked = parse(align, words)
    assert (options.on, asked[0].on, asked[0].processes) == ('here', 'gpus', 2)
    for name in ('recipe', 'resume', 'vae', 'scorers', 'limit', 'share', 'pairs'):
        assert getattr(options, name) == getattr(asked[0], name)
    assert config == asked[1]


def test_paths_in_a_file_are_relative_to_the_working_folder(run, world, tmp_path, monkeypatch):
    (tmp_path / 'configs').mkdir()
    path = tmp_path / 'configs/run.yaml'
    path.write_text('pairs: pairs.parquet\nmethod: human\nout: labels.parquet\n')
    monkeypatch.chdir(tmp_path)
    Path('pairs.parquet').symlink_to(world / 'pairs.parquet')
    run('label', '--config', path)
    assert Path('labels.parquet').is_file()


def test_a_config_is_printed_without_a_numeric_library():
    code = """
import sys; from balanceddpo.cli import main
assert main('align --model icons --print-config'.split()) == 0
assert not {m.split('.')[0] for m in sys.modules} & {'torch', 'pandas', 'diffusers'}
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '\nmodel: icons\n' in done.stdout
