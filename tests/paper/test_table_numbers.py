"What is counted beside Tables III, IV and VI, on tables of which every number is known."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.spread import variance_within
from balanceddpo.evaluation.win_rates import compare, mean_win_rates, score_grid
from balanceddpo.paper.numbers import TABLE_3
from balanceddpo.paper.scales import ICONS, SMOKE
from balanceddpo.paper.table_numbers import (
    own_and_others,
    own_scorers,
    parts_of_models,
    printed_own_and_others,
    unlike_labels,
    variance_shares,
)
from figure_checks import SCORERS, made_up_scores


def test_labels_are_unlike_where_both_decide_and_differ():
    labels = pd.DataFrame({'a': [1, 1, -1, 0, -1], 'b': [1, -1, 1, 1, 0], 'c': [0, 0, 0, 0, 1]})
    found = unlike_labels(labels)
    assert found.loc['a', 'b'] == pytest.approx(200 / 3)
    assert found.loc['a', 'c'] == 100
    assert np.isnan(found.loc['b', 'c'])
    pd.testing.assert_frame_equal(found, found.T)
    assert np.diag(found).tolist() == [0, 0, 0]


def test_the_own_scorer_is_the_labels_or_the_best():
    rates = pd.DataFrame(
        {
            'model_a': ['CLIP', 'sum', 'CLIP', 'sum', 'CLIP', 'sum'],
            'scorer': ['hps', 'hps', 'clip', 'clip', 'aesthetic', 'aesthetic'],
            'win_rate': [0.9, 0.6, 0.4, 0.7, 0.5, 0.7],
        }
    )
    assert own_scorers(rates, {'CLIP': 'clip'}) == {'CLIP': 'clip', 'sum': 'clip'}
    assert own_scorers(rates, {}) == {'CLIP': 'hps', 'sum': 'clip'}


def test_own_and_others_are_the_cells_of_two_tables():
    scores = made_up_scores(('base', 'CLIP', 'sum'), sets=('pickapic',))
    pairs = [('sum', 'base'), ('CLIP', 'base'), ('sum', 'CLIP')]
    rates = compare(scores, pairs, SCORERS)
    spots = own_and_others(rates, scores, {'CLIP': 'clip'}).set_index('labels')
    assert spots.index.tolist() == ['sum', 'CLIP']
    assert spots.kind.tolist() == ['other labels', 'labels of one scorer']
    own = rates.set_index(['model_a', 'model_b', 'scorer']).loc['CLIP', 'base', 'clip']
    found = spots.loc['CLIP', ['own_win_rate', 'own_low', 'own_high']].tolist()
    assert found == pytest.approx([100 * own.win_rate, 100 * own.low, 100 * own.high])
    three = [k for k in SCORERS if k != 'clip']
    others = mean_win_rates(scores, [('CLIP', 'base')], three).iloc[0]
    found = spots.loc['CLIP', ['win_rate', 'low', 'high']].tolist()
    assert found == pytest.approx([100 * others.win_rate, 100 * others.low, 100 * others.high])


def test_the_papers_own_and_others_are_its_printed_cells():
    single = {'HPS': 'hps', 'CLIP': 'clip', 'PickScore': 'pickscore', 'Aesthetic': 'aesthetic'}
    found = printed_own_and_others(single).set_index('labels')
    assert found.index.tolist() == [a for (a,) in TABLE_3.rows]
    # 89.90 49.49 56.90 14.48: HPS, CLIP, PickScore, Aesthetic
    assert found.own['HPS'] == 89.9
    assert found.others['HPS'] == pytest.approx((49.49 + 56.9 + 14.48) / 3)
    assert found.kind.value_counts()['labels of one scorer'] == 4


def test_parts_are_those_of_the_recipe_with_its_changes():
    models = {
        'annotators': ('DiffusionDPO', {}),
        'one': ('HPS', {'refresh_every': 0}),
        'both': ('BalancedDPO', {}),
    }
    found = parts_of_models(ICONS, models)
    assert found['labels'].tolist() == ['annotators', 'HPS alone', 'majority of four']
    assert found['several metrics'].tolist() == [False, False, True]
    assert found['refresh every'].tolist() == [0, 0, 25]
    assert parts_of_models(SMOKE, models)['refresh every'].tolist() == [0, 0, 2]
    with pytest.raises(InputError):
        parts_of_models(SMOKE, {'unknown': ('nothing', {})})


def test_shares_are_of_each_prompt_set_and_scorer():
    scores = made_up_scores(('base',), sets=('hpd', 'pickapic'))
    found = variance_shares(scores, ('clip', 'hps'))
    assert found[['prompt_set', 'scorer']].values.tolist() == [
        ['hpd', 'clip'],
        ['hpd', 'hps'],
        ['pickapic', 'clip'],
        ['pickapic', 'hps'],
    ]
    grid = score_grid(scores[scores.prompt_set == 'pickapic'], 'hps')
    assert found.iloc[3, 2:].tolist() == list(variance_within(grid))
