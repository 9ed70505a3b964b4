"A trial is kept, and found again by all that its numbers depend on, and by nothing else."

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from datetime import date

import pytest

from balanceddpo.core.numerics import numeric_path
from balanceddpo.data.prompts import prompts_of
from balanceddpo.data.sources import PairSource
from balanceddpo.pipeline import kept_trials
from balanceddpo.pipeline.kept_trials import keep_trial, kept_trial, trial_file, trial_inputs
from balanceddpo.pipeline.trials import Trial
from balanceddpo.recipes.config import AlignConfig
from balanceddpo.recipes.table import recipe_named
from balanceddpo.scoring.registry import ScorerSpec
from balanceddpo.training.config import TrainConfig

TRIAL = Trial(20, 0.8, 3, labelling=0.1, encoding=0.2, step=3.0, memory=2 * 10**9)
RECIPE = recipe_named('BalancedDPO')
SETTINGS = TrainConfig('icons', batch_size=8, micro_batch_size=4, device='cpu')
PAIRS = PairSource('icons')
SCORERS = [ScorerSpec('hps'), ScorerSpec('clip')]
AROUND = AlignConfig()


def inputs(settings=SETTINGS, pairs=PAIRS, scorers=SCORERS, around=AROUND, recipe=RECIPE, **more):
    return trial_inputs(recipe, settings, pairs, scorers, around, **more)


@pytest.mark.parametrize(
    'change',
    [
        dict(max_steps=9000, warmup_steps=10),
        dict(learning_rate=1.0, beta=7.0),
        dict(seed=1, data='mine'),
        dict(log_every=7, tracker='none', checkpoint_every=1, keep_checkpoints=9),
        dict(device='auto'),  # which is the CPU in this test
    ],
)
def test_a_longer_run_finds_the_trial(change, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.backends.mps.is_available', lambda: False)
    keep_trial(TRIAL, inputs())
    found = kept_trial(inputs(replace(SETTINGS, **change)))
    assert found == kept_trials.KeptTrial(TRIAL, date.today())


@pytest.mark.parametrize(
    'change',
    [
        dict(precision='bf16'),
        dict(batch_size=16),
        dict(micro_batch_size=2),
        dict(gradient_checkpointing=True),
        dict(mode='lora'),
        dict(lora_rank=4),
        dict(ema=0.9),
        dict(optimizer='adafactor'),
        dict(sharding='fsdp'),
        dict(compiled='blocks'),
        dict(resolution=128),
        dict(model='icons-xl'),
    ],
)
def test_another_setting_of_a_step_does_not(change):
    keep_trial(TRIAL, inputs())
    assert kept_trial(inputs(replace(SETTINGS, **change))) is None


@pytest.mark.parametrize(
    'change',
    [
        dict(recipe=recipe_named('MaPO')),
        dict(pairs=PairSource('icons', share=0.5)),
        dict(pairs=PairSource('others.parquet')),
        dict(pairs=PairSource('icons', limit=8)),  # fewer than a trial takes
        dict(scorers=SCORERS[:1]),
        dict(scorers=[*SCORERS[:1], ScorerSpec('clip', variant='l14')]),
        dict(around=AlignConfig(dtype='bf16')),
        dict(around=AlignConfig(lazily=True)),
        dict(around=AlignConfig(vae='other')),
        dict(around=AlignConfig(validation_prompts='icons:tuning')),
        dict(processes=2),
    ],
)
def test_other_work_does_not(change):
    keep_trial(TRIAL, inputs())
    assert kept_trial(inputs(**change)) is None


def test_how_much_of_it_there_is_to_do_does_not_matter():
    watched = AlignConfig(validation_prompts='icons:tuning')
    often = AlignConfig(
        validation_prompts='icons:hpd', validate_every=1, validation_limit=99, all_pairs=True
    )
    assert inputs(around=watched) == inputs(around=often)
    assert inputs(around=watched) != inputs(around=replace(watched, validation_steps=3))
    assert inputs(pairs=PairSource('icons', limit=1000, max_bad=0.5)) == inputs()
    drawn = recipe_named('CaPO')
    texts = [f'an icon of {what}' for what in ('a cat', 'a key', 'a bell', 'an owl')]
    some, same, others = (prompts_of(t, 'x') for t in (texts, texts[:3], texts[1:]))
    assert inputs(pairs=some, recipe=drawn) == inputs(pairs=same, recipe=drawn)
    assert inputs(pairs=some, recipe=drawn) != inputs(pairs=others, recipe=drawn)
    few = AlignConfig(images_per_prompt=4)
    assert inputs(pairs=some, recipe=drawn) != inputs(pairs=some, recipe=drawn, around=few)


def test_another_machine_does_not(monkeypatch):
    first = inputs()
    other = 'plain' if numeric_path('cpu') == 'onednn' else 'onednn'
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', other)
    assert inputs() != first
    monkeypatch.undo()
    monkeypatch.setattr(kept_trials, 'device_name', lambda _: 'Other CPU')
    assert inputs() != first
    monkeypatch.undo()
    monkeypatch.setattr('torch.__version__', '99.0')
    assert inputs() != first


def test_files_that_are_exchanged_are_other_work(tmp_path):
    weights, pairs, mine = (tmp_path / n for n in ('head.pt', 'pairs.parquet', 'mine.py'))
    for path in (weights, pairs, mine):
        path.write_bytes(b'1234')

    def named():
        spec = ScorerSpec('mine', str(weights))
        return inputs(pairs=PairSource(str(pairs)), scorers=[spec], register=mine)

    seen = [named()]
    weights.write_bytes(b'12345')
    seen.append(named())
    os.utime(pairs, (1, 1))
    seen.append(named())
    mine.write_bytes(b'4321')
    seen.append(named())
    assert all(a != b for k, a in enumerate(seen) for b in seen[:k])
    base = replace(SETTINGS, model=str(tmp_path))
    before = inputs(base)
    (tmp_path / 'more.safetensors').write_bytes(b'1')
    assert inputs(base) != before


def test_a_new_setting_is_in_the_key_until_it_is_left_out(monkeypatch):
    @dataclass(frozen=True)
    class NewTraining(TrainConfig):
        twice_as_fast: 'bool' = False

    @dataclass(frozen=True)
    class NewAround(AlignConfig):
        twice_as_large: 'bool' = False

    new = [NewTraining('icons', device='cpu', twice_as_fast=fast) for fast in (False, True)]
    assert inputs(new[0]) != inputs(new[1])
    monkeypatch.setattr(kept_trials, 'AlignConfig', NewAround)
    arounds = [NewAround(twice_as_large=large) for large in (False, True)]
    assert inputs(around=arounds[0]) != inputs(around=arounds[1])


def test_what_is_left_out_is_there():
    assert {f.name for f in fields(TrainConfig)} >= kept_trials.TRAINING_ASIDE
    assert {f.name for f in fields(AlignConfig)} >= kept_trials.AROUND_ASIDE


def changed(name, value):
    "What a kept trial of which one number is another is in its file."
    numbers = asdict(TRIAL) | {name: value}
    return json.dumps({'day': '2026-11-29', 'trial': numbers, 'of': inputs()})


SOUND = {'day': '2026-11-29', 'trial': asdict(TRIAL), 'of': inputs()}


@pytest.mark.parametrize(
    'text',
    [
        '',
        'no JSON',
        '[]',
        '[' * 100_000,
        json.dumps(SOUND)[:-9],
        changed('step', float('nan')),
        changed('step', float('inf')),
        changed('step', -1.0),
        changed('step', '3.0'),
        changed('step', None),
        changed('step', True),
        changed('memory', 10**400),
        changed('memory', 0.5),
        changed('decided', 1.5),
        changed('decided', 0),
        changed('more', 1),
        json.dumps(SOUND | {'trial': {'step': 3.0}}),
        json.dumps(SOUND | {'trial': [1, 2]}),
        json.dumps(SOUND | {'day': 'a day \x1b[31m'}),
        json.dumps(SOUND | {'day': 7}),
        json.dumps(SOUND | {'of': inputs(replace(SETTINGS, batch_size=4))}),
    ],
)
def test_a_file_that_is_not_sound_is_as_good_as_none(text):
    place = keep_trial(TRIAL, inputs())
    place.write_text(json.dumps(SOUND))
    assert kept_trial(inputs()).day == date(2026, 11, 29)
    place.write_text(text)
    assert kept_trial(inputs()) is None


def test_what_is_no_file_is_as_good_as_none():
    trial_file(inputs()).mkdir(parents=True)
    assert kept_trial(inputs()) is None
