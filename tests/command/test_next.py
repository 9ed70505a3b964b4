"""What a verb ends with: the command that comes next, which can be pasted as it is."""

import re
import shlex

import pytest

from balanceddpo.cli import VERBS
from balanceddpo.command.asking import parse
from balanceddpo.command.labelling import (
    LabelOptions,
    recipe_of_labels,
    specs_and_config,
    tell_implied_scorers,
)
from balanceddpo.command.training import show_next_of_model, words_of_row
from balanceddpo.core.files import asset
from balanceddpo.models.config import EncodeConfig
from balanceddpo.training.config import TrainConfig
from balanceddpo.voting import labels
from balanceddpo.voting.config import LabelConfig
from short_commands import DRAW, TRAIN, encode_words, label_words


def next_of(said):
    "(verb, options, settings) of the command in the last line."
    last = said.splitlines()[-1]
    assert last.startswith('next: balanceddpo '), said
    verb, *words = shlex.split(last)[2:]
    return verb, *parse(VERBS[verb], words)


def test_each_stage_leads_to_the_next(world, tmp_path, run):
    work = tmp_path / "my 'work'"
    label = label_words(world, '--method', 'human', '--limit', 6, '--out', work / 'labels.parquet')
    verb, options, config = next_of(run(*label))
    assert (verb, options.pairs, options.limit) == ('encode', f'{world}/pairs.parquet', 6)
    assert options.out == work / 'encoded'
    assert config.mirrored  # as DiffusionDPO, which learns from people, wants it

    encode = [*encode_words(world, '--device', 'cpu', '--limit', 6), '--out', work / 'encoded']
    verb, options, config = next_of(run(*encode))
    assert verb == 'train'
    assert (options.labels, options.encoded) == (work / 'labels.parquet', work / 'encoded')
    assert (options.recipe, config.model) == ('DiffusionDPO', f'{world}/model')
    assert (config.resolution, config.mirror) == (32, 'no')  # as they are encoded

    files = ['--labels', work / 'labels.parquet', '--encoded', work / 'encoded']
    train = ['train', '--model', world / 'model', *files, *TRAIN, '--mode', 'lora']
    verb, options, config = next_of(run(*train, '--out', work / 'lora'))
    assert (verb, config.model) == ('sample', f'{world}/model+{work}/lora/model')

    words = ['--prompt', "it's a cat", *DRAW, '--out', work / 'drawn']
    verb, options, config = next_of(run('sample', '--model', config.model, *words))
    assert (verb, options.prompt) == ('evaluate', ("it's a cat",))
    assert options.models == (f'base={world}/model', f'ours={work}/drawn')
    assert (config.steps, config.resolution, config.images_per_prompt) == (2, 32, 2)


def test_pairs_that_nobody_has_labelled_are_labelled_next(world, tmp_path, run, monkeypatch):
    opened, read = [], labels.read_labels
    words = encode_words(world, '--device', 'cpu', '--share', 0.9)
    verb, options, _ = next_of(run(*words, '--out', tmp_path / 'a/encoded'))
    assert (verb, options.share) == ('label', 0.9)
    assert options.out == tmp_path / 'a/labels.parquet'
    verb, options, _ = next_of(run(*words))  # kept under runs
    assert (verb, options.out) == ('label', None)
    run(*label_words(world, '--method', 'human'))
    # what else lies there is not read: it may be as large as all pictures
    (tmp_path / 'runs/encode/pairs.parquet').symlink_to(world / 'pairs.parquet')
    (tmp_path / 'runs/encode/notes.parquet').write_text('none')
    monkeypatch.setattr(labels, 'read_labels', lambda path: opened.append(path) or read(path))
    verb, options, _ = next_of(run(*words))
    assert verb == 'train'
    assert opened == [options.labels]
    assert options.labels.parent == tmp_path / 'runs/labels'


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_a_model_of_the_icon_world_is_judged_next(capsys, tmp_path, mode):
    show_next_of_model(TrainConfig(model='icons', resolution=64, mode=mode), tmp_path / 'model')
    verb, options, config = next_of(capsys.readouterr().out)
    assert verb == 'evaluate'
    ours = f'ours=icons+{tmp_path}/model' if mode == 'lora' else f'ours={tmp_path}/model'
    assert options.models == ('base=icons', ours)
    assert options.prompts == ('icons:hpd',)


def test_the_words_of_a_row_fit_what_was_encoded():
    assert words_of_row('BalancedDPO', EncodeConfig('icons'), 64) == ['--recipe', 'BalancedDPO']
    other = words_of_row('BalancedDPO', EncodeConfig('icons'), 32)
    assert other == ['--recipe', 'BalancedDPO', '--resolution=32']
    assert words_of_row(None, EncodeConfig('icons'), 32) == ['--resolution=32']
    assert recipe_of_labels(LabelConfig('single', scorer='hps')) == 'HPS'
    assert recipe_of_labels(LabelConfig('given')) is None


def test_the_pairs_of_the_icon_world_imply_its_scorers(capsys):
    options = LabelOptions('icons', limit=2)
    specs, config = specs_and_config(options, LabelConfig())
    assert [s.source for s in specs] == [str(asset('scorers', s.kind)) for s in specs]
    tell_implied_scorers(options, config)
    assert re.match("scorers: the icon world's hps, clip, pickscore", capsys.readouterr().out)
    named = LabelOptions('icons', scorers=('hps', 'clip', 'aesthetic'))
    specs, config = specs_and_config(named, LabelConfig())
    assert [s.source for s in specs] == ['', '', '']  # the published ones
    other = LabelOptions('pairs.parquet')
    tell_implied_scorers(named, config)
    tell_implied_scorers(other, specs_and_config(other, LabelConfig())[1])
    assert capsys.readouterr().out == ''


def test_align_ends_with_it_too(run):
    short = 'align DiffusionDPO --model icons --pairs icons --limit 8'.split()
    options = dict(zip(TRAIN[::2], TRAIN[1::2]))
    own = ['--max-steps', '--batch-size', '--micro-batch-size', '--device', '--tracker']
    words = [word for name in own for word in (name, options[name])]
    verb, options, _ = next_of(run(*short, *words))
    assert (verb, options.models[0]) == ('evaluate', 'base=icons')
