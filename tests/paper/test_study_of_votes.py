"What the study of elections counts and says, from groups and gains that are known."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.paper import study_of_votes as study
from balanceddpo.recipes.groups import Groups
from balanceddpo.voting.elections import RANK_RULES

rng = np.random.default_rng(0)


def test_scores_of_groups_come_back_from_their_table():
    scores = rng.normal(size=(5, 4, 3)).astype('float32').astype('float64')
    ids = [f'prompt {k}' for k in (3, 1, 4, 0, 2)]
    table = study.table_of_groups(Groups(ids, scores, ('hps', 'clip', 'pickscore'), store=None))
    assert table.prompt_id.tolist() == [i for i in ids for _ in range(4)]
    assert table.image_index.tolist() == [0, 1, 2, 3] * 5
    assert table.dtypes[['hps', 'clip']].astype(str).tolist() == ['float32'] * 2
    np.testing.assert_array_equal(
        study.scores_of_groups(table, ['hps', 'clip', 'pickscore']), scores
    )


def test_two_rules_are_alike_where_first_and_last_are_the_same():
    taken = {
        'a': np.array([[0, 1], [2, 3], [-1, -1], [0, 2]]),
        'b': np.array([[0, 1], [3, 2], [-1, -1], [0, 1]]),
    }
    same = study.same_pairs(taken)
    assert same.loc['a', 'b'] == same.loc['b', 'a'] == 50
    assert same.loc['a', 'a'] == 100
    assert study.groups_decided(taken) == {'a': 3, 'b': 3}


def test_every_rule_takes_a_pair_where_all_scorers_agree():
    scores = np.tile(np.arange(4.0)[::-1, None], (2, 1, 3))
    taken = study.pairs_by_rule(scores)
    assert taken.keys() == RANK_RULES.keys()
    assert all(pairs.tolist() == [[0, 3]] * 2 for pairs in taken.values())


def test_gains_are_means_over_the_seeds_and_blank_where_there_are_none():
    gains = pd.DataFrame(
        [
            (model, scorer, seed, base + seed + 10 * (scorer == 'clip'))
            for model, base in (('Borda', 1.0), ('plain', 2.0))
            for scorer in ('hps', 'clip')
            for seed in (0, 1, 2)
        ],
        columns=['model_a', 'scorer', 'seed', 'difference'],
    )
    both = {'over base': gains, 'over plain': gains[gains.model_a == 'Borda']}
    table = study.gain_table(both, ['plain', 'Borda'], ['clip', 'hps'])
    assert table.index.tolist() == ['plain', 'Borda']
    assert table['over base'].loc['plain'].tolist() == [13, 3]
    assert table['over plain'].loc['Borda'].tolist() == [12, 2]
    assert table['over plain'].loc['plain'].isna().all()
    assert table.columns.tolist()[0] == ('over base', 'clip')


@pytest.mark.parametrize(
    'p, told',
    [
        ((0.01, 0.04, 0.2), '1 are better beyond the seeds (Holm) (Copeland) and 1 worse (Borda)'),
        ((0.2, 0.2, 0.2), '0 are better beyond the seeds (Holm) and 0 worse'),
    ],
)
def test_the_finding_names_who_is_better_and_worse(p, told):
    order = pd.DataFrame(
        {
            'model_a': ['Borda', 'Copeland', 'Kemeny'],
            'mean': [-0.2, 0.1, 0.125],
            'low': [-0.3, 0.0, -0.075],
            'high': [-0.1, 0.2, 0.325],
            'p_holm': p,
        }
    )
    # three scorers who go round in a circle, and three who agree
    circle, clear = [[3, 1, 2], [2, 3, 1], [1, 2, 3]], [[3] * 3, [2] * 3, [1] * 3]
    plain = pd.Series({'mean': 0.5, 'low': 0.25, 'high': 0.75})
    assert study.tell_votes(plain, order, np.array([circle, clear], 'float64')) == (
        f'The majority of pairs gains +0.50 [+0.25, +0.75] s.d. over base; '
        f'of 3 other labels {told}; the best, Kemeny, is +0.12 [-0.07, +0.33] s.d. from it; '
        '1 of 2 groups have a Condorcet winner, 1 a circle.'
    )
