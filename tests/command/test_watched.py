"""Watching a run from the command line: its plan, its page and its best model, and what is refused
before anything is loaded."""

import json

import pytest

from balanceddpo import pipeline
from balanceddpo.data.sources import PairSource
from balanceddpo.recipes.config import AlignConfig
from short_commands import encode_words, label_words, train_words

SCORERS = """
import numpy as np
from balanceddpo.scoring.registry import register_scorer

@register_scorer('bright')
def bright(images, prompts):
    return [np.asarray(image.convert('L'), float).mean() for image in images]

@register_scorer('lively')
def lively(images, prompts):
    return [np.asarray(image.convert('L'), float).std() for image in images]
"""
WATCH = '--validate-every 1 --validation-steps 2 --validation-scorers bright lively'.split()


@pytest.fixture
def scorers(tmp_path):
    (tmp_path / 'scorers.py').write_text(SCORERS)
    return '--register', tmp_path / 'scorers.py'


def validations(out):
    return [json.loads(line) for line in (out / 'validation.jsonl').read_text().splitlines()]


def test_train_is_watched_and_says_where_to_look(world, tmp_path, run, scorers):
    run(*label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet'))
    run(*encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded'))
    prompts, out = ('--validation-prompts', world / 'prompts.txt'), tmp_path / 'run'
    words = train_words(world, tmp_path, *prompts, *WATCH, *scorers, '--out', out)
    plan = run(*words, '--dry-run', '--stop-when', 'lively < -9 for 2')
    # the base model and two validations, two prompts, two steps with guidance
    assert 'validate 2 times, and the base model once: 6 images of 2 prompts' in plan
    # 24 of 2 steps x 4 pairs x 8
    assert '24 passes forward (37.5% of those of training)' in plan
    assert 'stop early when lively < -9 for 2' in plan
    assert not out.exists()
    told = run(*words)
    assert f'page: {out / "index.html"}' in told
    assert f'best by validation: {out / "best"}' in told
    assert [row['step'] for row in validations(out)] == [1, 2]
    assert 'a red cat' in (out / 'index.html').read_text()
    # another run, which every gain is reason enough to stop
    stopping = ('--stop-when', 'mean < 99 for 1', '--out', tmp_path / 'short')
    told = run(*words, *stopping)
    assert 'stopped after step 1: mean < 99 for 1 (mean gain' in told
    assert len(validations(tmp_path / 'short')) == 1
    # the settings, as a file says them, find the run finished
    kept = tmp_path / 'run.yaml'
    kept.write_text(run(*words, '--print-config'))
    made = (out / 'validation.jsonl').stat().st_mtime_ns
    run('train', '--config', kept)
    assert (out / 'validation.jsonl').stat().st_mtime_ns == made


def test_align_is_watched_from_both_doors(tmp_path, run, scorers):
    words = 'align BalancedDPO --model icons --pairs icons --limit 8 --device cpu'.split()
    short = dict(max_steps=1, batch_size=4, micro_batch_size=4)
    words += [f'--{name.replace("_", "-")}={v}' for name, v in short.items()]
    watch = ('--validation-prompts', 'icons:tuning', '--validation-limit', 2, *WATCH, *scorers)
    told = run(*words, *watch, '--out', tmp_path / 'a')
    assert told.index('validate 1 times') < told.index('best by validation')
    config = AlignConfig(
        validation_prompts='icons:tuning',
        validation_limit=2,
        validate_every=1,
        validation_steps=2,
        validation_scorers=('bright', 'lively'),
    )
    pairs = PairSource('icons', limit=8)
    align = dict(pairs=pairs, config=config, out=tmp_path / 'b', device='cpu', **short)
    pipeline.align('BalancedDPO', 'icons', **align)
    ((ours,), (theirs,)) = (validations(tmp_path / name) for name in 'ab')
    assert ours | {'seconds': 0} == theirs | {'seconds': 0}
    assert ours['gain'].keys() == {'bright', 'lively'}


@pytest.mark.parametrize(
    'words, says',
    [
        ('--stop-when mean', 'stop_when is no rule'),
        ('--validation-prompts {w}/prompts.txt --stop-when no_such<0', 'stop_when is no rule'),
        ('--validation-prompts nowhere.txt', 'no such file of prompts'),
        ('--validation-prompts icons:tunning', "no prompts 'tunning': did you mean tuning?"),
        ('--validation-prompts icons:tuning --validation-scorers hsp', 'did you mean hps?'),
        ('--validation-prompts icons:tuning --validation-steps 2000', '2000 steps are more'),
        ('--validation-prompts icons:tuning --validation-limit 1', 'two pictures or more'),
        ('--best-by median', 'did you mean mean?'),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, words, says):
    assert says.lower() in refused(f'align BalancedDPO --model icons --pairs icons {words}')
