"What an alignment will take, from a little of every stage."

import json
import os
from dataclasses import replace

import pytest
from watchers import two_scorers

from balanceddpo.data.prompts import prompts_of
from balanceddpo.data.sources import PairSource
from balanceddpo.evaluation.live_drawing import LiveDrawer
from balanceddpo.evaluation.validation import Judges
from balanceddpo.pipeline import trials
from balanceddpo.pipeline.trials import Trial, duration, pairs_needed, tell_trial, try_recipe
from balanceddpo.recipes.config import AlignConfig
from balanceddpo.recipes.settings import settings_of
from balanceddpo.recipes.table import recipe_named
from balanceddpo.training.config import TrainConfig

TRIAL = Trial(20, 0.8, 3, labelling=0.1, encoding=0.2, step=3.0, memory=2 * 10**9)


@pytest.mark.parametrize(
    ('visits', 'count', 'all_pairs', 'needed'),
    [
        (400, 10_000, False, (500, 400)),  # of 500 pairs 400 have a winner
        (400, None, False, (500, 400)),  # a stream does not tell how many there are
        (400, 300, False, (300, 240)),  # all there are
        (40, 300, True, (300, 300)),
        (40, None, True, (50, 50)),
    ],
)
def test_as_many_pairs_are_needed_as_give_the_visits(visits, count, all_pairs, needed):
    assert pairs_needed(TRIAL, visits, count, all_pairs) == needed


def test_what_it_takes_is_added_up():
    settings = TrainConfig('icons', max_steps=1200, batch_size=1)
    told = tell_trial(TRIAL, settings, 10_000)
    assert told[0] == 'tried here: 20 pairs, of which 80% have a winner, and 3 steps'
    assert told[1:4] == [
        'labelling: 0.1 s a pair, 1500 pairs: 2.5 minutes',
        'encoding: 0.2 s a pair, 1200 pairs: 4.0 minutes',
        'training: 3 s a step, 1200 steps: 60.0 minutes',
    ]
    assert told[4] == 'together about 66.5 minutes, and at most 2 GB of memory'
    drawn = tell_trial(Trial(**vars(TRIAL) | dict(drawing=60.0, labelling=0.0)), settings, 10)
    assert drawn[1:3] == [
        'drawing and scoring: 60 s a group, 10 groups: 10.0 minutes',
        'encoding: 0.2 s a pair, 1200 pairs: 4.0 minutes',  # another pair at each visit
    ]
    given = tell_trial(replace(TRIAL, given=True), settings, 500)
    assert given[1:3] == [
        'scoring: 0.1 s a pair, 500 pairs: 50 seconds',  # all of them
        'encoding: 0.2 s a pair, 1200 pairs: 4.0 minutes',
    ]
    watched = replace(TRIAL, validating=1.5)
    told = tell_trial(watched, settings, 10_000, pictures=80, done=200, how='rehearsed')
    assert told[0].startswith('rehearsed: 20 pairs')
    assert told[3:] == [
        'training: 3 s a step, 1000 steps: 50.0 minutes',  # 200 of them are done
        'validation: 1.5 s a picture, 80 pictures: 2.0 minutes',
        'together about 58.5 minutes, and at most 2 GB of memory',
    ]
    assert len(tell_trial(watched, settings, 10_000)) == 5  # no pictures, no line


def test_units_of_time():
    assert [duration(s) for s in (0.04, 89, 91, 5399, 5400, 130_000)] == [
        '0.04 seconds',
        '89 seconds',
        '1.5 minutes',
        '90.0 minutes',
        '1.5 hours',
        '1.5 days',
    ]


def test_what_is_done_once_is_left_out(tmp_path):
    rows = [dict(seconds=s) for s in (90.0, 2.0, 4.0)]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
    assert trials.seconds_a_step(tmp_path / 'metrics.jsonl') == (2, 3.0)
    assert trials.slope(4, 30.0, 20, 38.0) == 0.5
    assert trials.slope(4, 30.0, 20, 28.0) == 1.4  # the second time was faster: it tells more
    assert trials.slope(4, 30.0, 4, 30.0) == 7.5


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    return tmp_path / 'runs'


SHORT = dict(batch_size=2, micro_batch_size=2, device='cpu')


def test_a_trial_does_a_little_of_each_stage_and_keeps_nothing(runs):
    recipe = recipe_named('BalancedDPO')
    settings = settings_of(recipe, 'icons', **SHORT)
    trial = try_recipe(recipe, settings, PairSource('icons'), size=(4, 1))
    assert (trial.pairs, trial.steps) == (8, 1)
    assert 0 < trial.decided <= 1
    assert min(trial.labelling, trial.encoding, trial.step) > 0
    assert trial.memory > 10**8
    assert os.environ['BALANCEDDPO_RUNS'] == str(runs)
    assert list(runs.iterdir()) == []
    few = try_recipe(recipe, settings, PairSource('icons', limit=5), size=(4, 1))
    assert few.pairs == 5  # there are no more
    assert few.validating == 0.0


def test_a_picture_of_validation_is_drawn_and_judged_as_in_a_run(runs, monkeypatch):
    drawn, judged, drawing, judging = [], [], LiveDrawer.draw, Judges.score

    def draw(drawer, model):
        images = drawing(drawer, model)
        drawn.append([(image.size, drawer.config.steps) for image in images])
        return images

    def score(judges, images, *words):
        judged.append((len(images), judges.names))
        return judging(judges, images, *words)

    monkeypatch.setattr(LiveDrawer, 'draw', draw)
    monkeypatch.setattr(Judges, 'score', score)
    monkeypatch.setattr(trials, 'timed', lambda work: (work(), 24.0))
    recipe = recipe_named('BalancedDPO')
    settings = settings_of(recipe, 'icons', **SHORT)
    config = AlignConfig(
        validation_prompts='icons:tuning',
        validation_limit=20,
        validation_images=2,
        validation_steps=1,
        stop_when='brightness < 9 for 1',
    )
    voters = two_scorers()
    trial = try_recipe(recipe, settings, PairSource('icons'), None, voters, config, (8, 1))
    # the first time is not counted; of eight pictures four prompts have two each
    assert drawn == 2 * [8 * [((64, 64), 1)]]
    assert judged == 2 * [(8, ['brightness', 'contrast'])]
    assert trial.validating == 24.0 / 8
    assert trial.steps == 1  # the rule has stopped nothing, as no validation was made


def test_a_trial_of_a_method_that_draws_its_pairs(runs):
    recipe = recipe_named('CaPO')
    settings = settings_of(recipe, 'icons', **SHORT)
    prompts = prompts_of(['an icon of an apple', 'an icon of a cat', 'an icon of a key'], 'three')
    config = AlignConfig(images_per_prompt=4, steps=2)
    trial = try_recipe(recipe, settings, None, prompts, config=config, size=(4, 1))
    assert trial.drawing > 0
    assert trial.labelling == 0
    assert trial.steps == 1
    assert list(runs.iterdir()) == []


def test_a_trial_of_a_method_of_groups_whose_images_are_there(runs):
    recipe = recipe_named('Borda')
    settings = settings_of(recipe, 'icons', **SHORT)
    trial = try_recipe(recipe, settings, PairSource('icons'), size=(4, 1))
    # each pair of the icon world is a group of its own
    assert 0 < trial.pairs <= 8
    assert trial.given
    assert trial.labelling > 0
    assert trial.drawing == 0
    assert list(runs.iterdir()) == []
