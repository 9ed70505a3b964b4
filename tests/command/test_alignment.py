"""balanceddpo align and methods."""

import json
import re

import pytest

from balanceddpo import pipeline
from balanceddpo.data.sources import PairSource
from balanceddpo.recipes.recipe import KINDS


def test_align_from_the_command_line_is_align_from_python(tmp_path, run):
    words = 'align BalancedDPO --model icons --pairs icons --limit 8 --device cpu'.split()
    short = dict(max_steps=1, batch_size=4, micro_batch_size=4)
    words += [f'--{name.replace("_", "-")}={v}' for name, v in short.items()]
    told = run(*words)
    pairs = PairSource('icons', limit=8)
    model = pipeline.align('BalancedDPO', 'icons', pairs, device='cpu', **short)
    assert f'model: {model.folder}' in told


def test_methods_tells_each_value_and_its_source(run):
    table = run('methods')
    assert re.search(r'BalancedDPO +majority +dpo +random +replaced', table)
    page = run('methods', 'BalancedDPO')
    assert re.search(r'refresh_every +100 +IV-A: every 100 steps', page)
    assert page.count('learning_rate') == len(KINDS)  # one for each kind of base model
    # and what still differs from the code whose values they are, of every kind that has such code
    assert page.count('differs: ') == len(KINDS) - 1
    assert 'fp16-fix' in page


def test_the_plan_says_where_groups_come_from(run):
    words = 'align CaPO --model icons --dry-run'.split()
    given = run(*words, '--pairs', 'icons', '--limit', '8')
    assert 'label pairs from groups of the images of each prompt of icons with hps, clip' in given
    drawn = run(*words, '--prompt', 'fox', '--images-per-prompt', '3')
    assert 'label pairs from groups of 3 images for 1 prompts with hps, clip' in drawn


@pytest.mark.parametrize(
    'words, says',
    [
        (
            'align none --model icons --pairs icons',
            "recipe 'none': `balanceddpo methods` lists them",
        ),
        ('align --pairs icons', 'recipe'),
        ('align BalancedDPO --pairs icons', '--model'),
        ('align BalancedDPO --model icons', 'learns from preference pairs: name them'),
        (
            'align CaPO --model icons',
            'the prompts to draw groups of images for, with --prompts',
        ),
        (
            'align CaPO --model icons --pairs icons --prompt fox',
            'or a source whose images are the groups, with --pairs',
        ),
        (
            'align BalancedDPO --model icons --pairs icons --refresh-every 0',
            "BalancedDPO has the reference 'replaced', and these settings make it 'fixed'",
        ),
        ('align BalancedDPO --model icons --pairs icons --method ipo', '--method'),
        (
            'align SmPO-Diffusion --model icons --pairs icons --scorers icons:hps',
            "no scorer is called 'pickscore'",
        ),
        ('methods none', "there is no recipe 'none'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, words, says):
    assert says.lower() in refused(words)


def test_the_plan_comes_first_and_a_rehearsal_ends_after_it(tmp_path, run, monkeypatch):
    from balanceddpo.pipeline import trials

    asked = []
    trial = trials.Trial(20, 0.5, 3, labelling=0.1, encoding=0.2, step=3.0, memory=10**9)
    monkeypatch.setattr(trials, 'try_recipe', lambda *words: asked.append(words) or trial)
    monkeypatch.setattr(pipeline, 'run_recipe', lambda *_: pytest.fail('it went on'))
    words = 'align BalancedDPO --model icons --pairs icons --max-steps 10 --batch-size 4'.split()
    told = run(*words, '--rehearse')
    assert told.index('as many as 40 visits need') < told.index('rehearsed: nothing of it is kept')
    assert 'labelling: 0.1 s a pair, 80 pairs: 8 seconds' in told
    # of 40 pairs: two images, two moments of 16 channels of 8 x 8 in two bytes each
    assert '328 kB of latents' in told
    assert ', for 40 pairs' in told
    assert 'kB of latents' not in run(*words, '--lazily', '--dry-run')
    assert asked[0][2] == PairSource('icons')


def test_a_run_that_is_there_is_told(tmp_path, run):
    words = 'align BalancedDPO --model icons --pairs icons --dry-run --out'.split()
    for step in ('step-00000002', 'step-00000010', 'step-00000004.damaged'):
        (tmp_path / 'a' / 'checkpoints' / step).mkdir(parents=True)
    assert f'go on from step 10 in {tmp_path / "a"}' in run(*words, tmp_path / 'a')
    (tmp_path / 'a' / 'model').mkdir()
    assert 'holds a finished run' in run(*words, tmp_path / 'a')


def test_align_lazily_keeps_no_latents_and_trains_the_same(tmp_path, run, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    words = 'align BalancedDPO --model icons --pairs icons --limit 8 --device cpu --log-every 1'
    words += ' --max-steps 1 --batch-size 4 --micro-batch-size 4'
    told = run(*words.split(), '--lazily', '--out', tmp_path / 'lazy')
    assert 'encode those that are decided when a step asks for them' in told
    kept = sum(f.stat().st_size for f in (tmp_path / 'runs' / 'encode').rglob('*.safetensors'))
    assert kept < 1000
    run(*words.split(), '--out', tmp_path / 'kept')
    losses = [
        json.loads((tmp_path / name / 'metrics.jsonl').read_text())['loss']
        for name in ('lazy', 'kept')
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
