"""balanceddpo align and methods."""

import json
import re
from datetime import date

import pytest

from balanceddpo import pipeline
from balanceddpo.core.stages import runs_root
from balanceddpo.data.sources import PairSource
from balanceddpo.pipeline import trials
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
    asked = []
    trial = trials.Trial(20, 0.5, 3, labelling=0.1, encoding=0.2, step=3.0, memory=10**9)
    monkeypatch.setattr(trials, 'try_recipe', lambda *words: asked.append(words) or trial)
    monkeypatch.setattr(pipeline, 'run_recipe', lambda *_: pytest.fail('it went on'))
    words = 'align BalancedDPO --model icons --pairs icons --max-steps 10 --batch-size 4'.split()
    told = run(*words, '--rehearse')
    assert told.index('as many as 40 visits need') < told.index('rehearsed: the plan of')
    assert 'labelling: 0.1 s a pair, 80 pairs: 8 seconds' in told
    # of 40 pairs: two images, two moments of 16 channels of 8 x 8 in two bytes each
    assert '328 kB of latents' in told
    assert ', for 40 pairs' in told
    assert 'kB of latents' not in run(*words, '--lazily', '--dry-run')
    assert asked[0][2] == PairSource('icons')


HOURS = 'hours: not measured yet; the same command with --rehearse says them'
ICONS = 'align BalancedDPO --model icons --pairs icons --batch-size 4 --device cpu'.split()


@pytest.fixture
def rehearsed(monkeypatch):
    "What a rehearsal finds, which nobody has made."
    found = trials.Trial(20, 0.5, 3, 0.1, 0.2, 3.0, memory=10**9, validating=2.0)
    monkeypatch.setattr(trials, 'try_recipe', lambda *_: found)


def lines_of_hours(plan):
    "The lines of a plan from the one on that says when it was rehearsed."
    lines = [line.strip() for line in plan.splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith('rehearsed on'))
    return lines[first:]


def test_after_a_rehearsal_the_plan_tells_the_hours(run, rehearsed, monkeypatch):
    before = run(*ICONS, '--limit', 64, '--dry-run')
    assert HOURS in before
    told = run(*ICONS, '--rehearse')
    assert HOURS not in told
    assert 'tried here: 20 pairs, of which 50% have a winner, and 3 steps' in told
    counts, counting = [], PairSource.count
    monkeypatch.setattr(PairSource, 'count', lambda pairs: counts.append(1) or counting(pairs))
    # 1200 steps visit 4800 pairs: all 64 are labelled, of which 32 have a winner
    words = ('--limit', 64, '--max-steps', 1200, '--seed', 3, '--learning-rate', 1)
    plan = run(*ICONS, *words, '--dry-run')
    assert lines_of_hours(plan) == [
        f'rehearsed on {date.today()}: 20 pairs, of which 50% have a winner, and 3 steps',
        'labelling: 0.1 s a pair, 64 pairs: 6.4 seconds',
        'encoding: 0.2 s a pair, 32 pairs: 6.4 seconds',
        'training: 3 s a step, 1200 steps: 60.0 minutes',
        'together about 60.2 minutes, and at most 1 GB of memory',
    ]
    assert len(counts) == 1
    assert HOURS not in plan
    # and a run that is not dry tells them before anything is done
    monkeypatch.setattr(pipeline, 'run_recipe', lambda *_: pytest.fail('so far'))
    with pytest.raises(pytest.fail.Exception, match='so far'):
        run(*ICONS, *words)
    for other in (
        ('--precision', 'bf16'),
        ('--batch-size', 8),
        ('--share', 0.5),
        ('--dtype', 'bf16'),
        ('--scorers', 'icons:hps', 'icons:clip', 'icons:aesthetic'),
        ('--on', 'gpus', '--processes', 2),
        ('--device', 'cuda:77'),  # which is not here
    ):
        assert HOURS in run(*ICONS, *other, '--dry-run'), other


def test_validation_and_what_is_done_count(tmp_path, run, rehearsed):
    watched = ('--validation-prompts', 'icons:tuning', '--out', tmp_path / 'run', '--limit', 64)
    run(*ICONS, *watched, '--rehearse')
    words = (*ICONS, *watched, '--max-steps', 1000, '--dry-run')
    assert 'validation: 2 s a picture, 88 pictures: 2.9 minutes' in run(*words)
    assert HOURS in run(*ICONS, '--limit', 64, '--dry-run')  # nobody has drawn anything
    (tmp_path / 'run' / 'checkpoints' / 'step-00000450').mkdir(parents=True)
    # six validations are left, of eight pictures, and 550 steps
    assert lines_of_hours(run(*words))[3:] == [
        'training: 3 s a step, 550 steps: 27.5 minutes',
        'validation: 2 s a picture, 48 pictures: 1.6 minutes',
        'together about 29.3 minutes, and at most 1 GB of memory',
    ]
    assert 'training: 3 s a step, 1000 steps' in run(*words, '--no-resume')


def test_a_kept_trial_that_is_damaged_is_not_quoted(run, rehearsed):
    run(*ICONS, '--rehearse')
    (place,) = (runs_root() / 'trials').iterdir()
    assert 'rehearsed on' in run(*ICONS, '--dry-run')
    place.write_text(place.read_text().replace('"step": 3.0', '"step": NaN'))
    assert HOURS in run(*ICONS, '--dry-run')
    run(*ICONS, '--rehearse')  # which mends it
    assert 'rehearsed on' in run(*ICONS, '--dry-run')


def test_the_hours_of_a_method_that_draws_its_pairs(tmp_path, run, monkeypatch):
    prompts = tmp_path / 'prompts.txt'
    prompts.write_text('\n'.join(f'an icon of {n} apples' for n in range(30)))
    trial = trials.Trial(3, 1.0, 3, 0.0, 0.2, 3.0, memory=10**9, drawing=60.0)
    monkeypatch.setattr(trials, 'try_recipe', lambda *_: trial)
    words = f'align CaPO --model icons --prompts {prompts} --batch-size 4 --device cpu'.split()
    run(*words, '--rehearse')
    told = run(*words, '--max-steps', 100, '--dry-run')
    assert lines_of_hours(told)[1:4] == [
        'drawing and scoring: 60 s a group, 30 groups: 30.0 minutes',
        'encoding: 0.2 s a pair, 400 pairs: 80 seconds',
        'training: 3 s a step, 100 steps: 5.0 minutes',
    ]
    assert HOURS in run(*words, '--images-per-prompt', 4, '--dry-run')
    given = 'align CaPO --model icons --pairs icons --limit 40 --device cpu'.split()
    assert HOURS in run(*given, '--dry-run')
    run(*given, '--rehearse')
    assert 'rehearsed on' in run(*given, '--dry-run')


def test_a_run_that_is_there_is_told(tmp_path, run):
    words = 'align BalancedDPO --model icons --pairs icons --dry-run --out'.split()
    for step in ('step-00000002', 'step-00000010', 'step-00000004.damaged'):
        (tmp_path / 'a' / 'checkpoints' / step).mkdir(parents=True)
    assert f'go on from step 10 in {tmp_path / "a"}' in run(*words, tmp_path / 'a')
    assert 'go on' not in run(*words, tmp_path / 'a', '--no-resume')
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
