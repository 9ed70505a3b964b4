"Numbers and sentences about the icon world, from tables of which every number is known."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.icon_world.annotators import POPULATIONS
from balanceddpo.paper import world_findings as findings

rng = np.random.default_rng(0)


def test_numbers_of_pictures_are_named_by_model_and_part():
    named = {'icons': [0.9, 0.8, 0.7], 'icons-xl': [1, 1, 0.5]}
    assert findings.numbers_of_pictures(named, {'icons': 0.1, 'icons-xl': 0.05}) == {
        'icons: recogniser names concept': 0.9,
        'icons: recogniser names style': 0.8,
        'icons: recogniser names background': 0.7,
        'icons-xl: recogniser names concept': 1,
        'icons-xl: recogniser names style': 1,
        'icons-xl: recogniser names background': 0.5,
        'icons: distance to the true render (rms, 0..1)': 0.1,
        'icons-xl: distance to the true render (rms, 0..1)': 0.05,
    }


def test_populations_are_alike_where_they_prefer_the_same_picture():
    worth = pd.DataFrame(rng.normal(size=(200, len(POPULATIONS))), columns=list(POPULATIONS))
    found = findings.same_preferences(worth)
    a, b, *_ = POPULATIONS
    pairs = range(0, 200, 2)
    same = [(worth[a][i] > worth[a][i + 1]) == (worth[b][i] > worth[b][i + 1]) for i in pairs]
    assert found[f'{a} and {b} prefer the same picture'] == pytest.approx(np.mean(same))
    assert len(found) == len(POPULATIONS) * (len(POPULATIONS) - 1) / 2


def test_votes_are_compared_scorer_by_scorer():
    "Annotators, who are in the table of labels too, do not count."
    votes = {'hps': [1, 1, 1, 1], 'clip': [1, 1, 1, -1], 'pickscore': [-1, -1, 1, 1]}
    votes |= {'aesthetic': [-1, -1, -1, -1]}
    labels = pd.DataFrame({f'vote_{name}': signs for name, signs in votes.items()})
    labels = labels.assign(human=[1, 1, 1, 1], s=[0, 0, 1, 0], w0=[0, 0, 1, 0], w1=0)
    found = findings.numbers_of_votes(labels)
    assert [*found.values()] == [0, 0.75, 0.75]


def test_a_table_of_numbers_has_three_decimals():
    assert findings.markdown_of_numbers({'a share': 0.12345, 'minutes': 7}) == (
        '| measured in the icon world | |\n| --- | ---: |\n'
        '| a share | 0.123 |\n| minutes | 7.000 |\n'
    )


def test_what_is_recognised_is_told_in_percent():
    assert findings.tell_recognised([0.996, 0.5, 0.004]) == (
        "The held-out recogniser names the base model's samples right, for captions like the "
        'training ones: concept 100 %, style 50 %, background 0 %.'
    )


def task_rows(model, overall, **tasks):
    "Differences of a model from base: task -> (difference, low, high)."
    rows = [*tasks.items(), ('overall', overall)]
    return pd.DataFrame(
        [
            (model, 'base', task.replace('_', ' '), 10 * (1 + (task == 'overall')), 0.5 + d, 0.5, d)
            + (low, high)
            for task, (d, low, high) in rows
        ],
        columns=['model_a', 'model_b', 'task', 'n', 'score_a', 'score_b', 'difference']
        + ['low', 'high'],
    )


FOUND = pd.concat(
    [
        task_rows('A', (0.1, 0.05, 0.15), one=(0.2, 0.1, 0.3), all_three=(0.0, -0.1, 0.1)),
        task_rows('B', (-0.25, -0.3, -0.2), one=(-0.5, -0.6, -0.4), all_three=(0.0, 0.0, 0.1)),
    ]
)


def test_tasks_are_counted_beyond_their_interval_on_either_side():
    assert findings.tell_tasks(FOUND) == (
        'Over 20 prompts of 2 tasks, base has all that was asked for in 50.0 % of images '
        '(mean of tasks), A 60.0 % (+10.0 points [+5.0, +15.0]), '
        'B 25.0 % (-25.0 points [-30.0, -20.0]); '
        '2 of 4 differences by task lie beyond their interval.'
    )


def test_the_bound_is_the_overall_score_of_true_renders():
    told = findings.tell_tasks(FOUND, pd.DataFrame({'score': [0.5, 0.5, 0.875]}))
    assert told.endswith('interval; the recogniser names 87.5 % of true renders right.')
