"Votes and gradients compared: counts and sentences of which every number is known."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.evaluation.dependence import rates_by_quantile
from balanceddpo.paper import scorer_agreement
from balanceddpo.voting.agreement import agreement, cohen_kappa, vote_splits
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs
from balanceddpo.voting.votes import votes as votes_of

SCORERS = ('hps', 'clip', 'pickscore', 'aesthetic')


@pytest.fixture(scope='module')
def scores():
    "Scores of 300 pairs by four scorers that share half of their opinion."
    draw, n = np.random.default_rng(0), 300
    drawn = draw.normal(size=(n, 2, 1)) + draw.normal(size=(n, 2, 4))
    rows = pd.DataFrame({'pair_id': np.repeat([f'p{i}' for i in range(n)], 2)})
    rows['slot'] = np.tile([0, 1], n)
    rows['label_0'] = np.repeat(draw.choice([0.0, 0.5, 1.0], n), 2)
    return rows.join(pd.DataFrame(drawn.reshape(-1, 4), columns=SCORERS))


def test_a_square_of_agreement_is_symmetric_and_holds_every_pair_once(scores):
    found = agreement(label_pairs(scores))
    square = scorer_agreement.agreement_matrix(found, 'kappa')
    assert list(square.index) == list(square.columns)
    assert set(square) == {*SCORERS, 'human', 'consensus'}
    assert np.allclose(square, square.T, equal_nan=True)
    assert np.isnan(np.diag(square)).all()
    for row in found.itertuples():
        assert square.loc[row.b, row.a] == row.kappa


def test_only_scorers_are_asked_for_who_agrees_most():
    found = pd.DataFrame(
        [('hps', 'clip', 0.2), ('hps', 'aesthetic', 0.3), ('hps', 'consensus', 0.9)],
        columns=['a', 'b', 'kappa'],
    )
    said = scorer_agreement.say_closest(found, SCORERS)
    assert said == 'HPS and Aesthetic agree most'


def test_tied_pairs_are_those_of_the_even_split(scores):
    cast = votes_of(scores[list(SCORERS)].to_numpy().reshape(-1, 2, 4))
    tied = scorer_agreement.tied_pairs(cast)
    assert tied.sum() == vote_splits(cast).set_index('split').n['2-2']
    assert 0 < tied.sum() < len(tied)


def test_votes_that_cancel_are_no_tie_if_a_scorer_is_silent():
    assert scorer_agreement.tied_pairs([[1, -1, 0, 0], [0, 0, 0, 0]]).tolist() == [False, False]


def test_ties_are_told_of_all_and_of_the_closest():
    hits = [True] * 3 + [False] * 7
    by_margin = rates_by_quantile(np.linspace(0.1, 1, 10), hits, bins=5)
    assert scorer_agreement.say_ties(by_margin) == ('30 % of all pairs, 100 % of the closest fifth')
    assert scorer_agreement.name_parts(by_margin).part.iloc[1] == '0.30 to 0.40'


def test_rules_differ_only_on_tied_pairs(scores):
    rules = ('drop', 'human', 'first', 'margin')
    ruled = {r: label_pairs(scores, LabelConfig('majority', ties=r)) for r in rules}
    labels = ruled['drop']
    tied = (labels.s == 0).to_numpy()
    effects = scorer_agreement.rule_effects(ruled, tied)
    assert list(effects.index) == list(rules)
    assert effects.loc['drop', 'no label'] == tied.sum()
    assert np.isnan(effects.loc['drop', 'with_human_on_ties'])
    assert effects.loc['human', 'with_human_on_ties'] == 1
    assert effects.loc['human', 'no label'] == (tied & (labels.human == 0)).sum()
    ahead = effects['image 0 wins']
    assert ahead['first'] == ahead['drop'] + tied.sum()
    assert (effects[['image 0 wins', 'image 1 wins', 'no label']].sum(axis=1) == 300).all()
    both = ruled['margin'].query('s != 0 and human != 0')
    assert effects.loc['margin', 'kappa_with_human'] == cohen_kappa(both.s, both.human)
    assert effects.loc['margin', 'with_human'] == (both.s == both.human).mean()


VOTERS = {'voters': 2.011, 'voters_low': 1.926, 'voters_high': 2.1}


def splits(*rows):
    columns = ['split', 'n', 'share', 'low', 'high', 'independent']
    return pd.DataFrame(rows, columns=columns)


def comparison(a, b, scorer, win_rate, p_holm):
    names = {'model_a': f'ties: {a}', 'model_b': f'ties: {b}', 'scorer': scorer}
    return names | {'win_rate': win_rate, 'p_holm': p_holm}


def test_agreement_is_told_with_the_rules_that_differ_the_winner_first():
    ends = splits(('4-0', 60, 0.6, 0.5, 0.7, 0.125), ('2-2', 40, 0.4, 0.31, 0.499, 0.375))
    against = pd.DataFrame(
        [
            comparison('human', 'drop', 'pickscore', 0.7, 0.01),
            comparison('first', 'drop', 'aesthetic', 0.3, 0.049),
            comparison('margin', 'drop', 'hps', 0.7, 0.05),
        ]
    )
    assert scorer_agreement.tell_agreement(VOTERS, ends, against, 4) == (
        'The 4 scorers count as 2.01 independent voters [1.93, 2.10]; '
        '40.0 % of 100 pairs split 2-2 [31.0, 49.9], where 37.5 % would if they were independent; '
        'of 3 comparisons between models of tie rules, one training seed each, '
        '2 are significant (Holm): human over drop by PickScore, drop over first by Aesthetic.'
    )


def test_without_ties_the_closest_elections_are_told_and_without_differences_nobody():
    ends = splits(('4-0', 3, 0.75, 0.3, 0.95, 0.125), ('3-1', 1, 0.25, 0.05, 0.7, 0.5))
    against = pd.DataFrame([comparison('human', 'drop', 'hps', 0.5, 1.0)])
    said = scorer_agreement.tell_agreement(VOTERS, ends, against, 4)
    assert '25.0 % of 4 pairs split 3-1 [5.0, 70.0], where 50.0 % would' in said
    assert said.endswith('one training seed each, 0 are significant (Holm).')


COSINES = pd.DataFrame(
    [
        (0, 'hps', 'hps', 1.0, 0.5),
        (0, 'hps', 'clip', 0.5, -0.25),
        (0, 'hps', 'aesthetic', -0.1, 0.25),
        (0, 'clip', 'clip', 1.0, 0.25),
        (0, 'clip', 'aesthetic', 0.86, 0.75),
        (0, 'aesthetic', 'aesthetic', 1.0, 0.0),
        (0, 'aesthetic', 'consensus', 0.9, -0.9),
        (0, 'consensus', 'consensus', 1.0, 0.9),
    ],
    columns=['step', 'a', 'b', 'same', 'other'],
)


def test_curves_are_of_two_different_scorers():
    two = scorer_agreement.cosines_of_scorers(COSINES, ('hps', 'clip', 'aesthetic'))
    assert two.pair.tolist() == ['HPS, CLIP', 'HPS, Aesthetic', 'CLIP, Aesthetic']
    assert two.other.tolist() == [-0.25, 0.25, 0.75]


NORMS = pd.DataFrame(
    {
        'step': [0, 20],
        'sum_share': [0.8, 0.7],
        'sum_orthogonal': [0.6, 0.6],
        'consensus_share': [0.9, 0.66],
        'consensus_orthogonal': [0.5, 0.4],
        'sum_consensus': [0.98, 0.77],
    }
)


def test_norms_have_the_same_numbers_as_curves_and_as_a_table():
    curves = scorer_agreement.norm_curves(NORMS)
    table = scorer_agreement.norm_table(NORMS)
    assert curves.kind.unique().tolist() == [
        'sum of losses',
        'consensus',
        'sum, by votes',
        'consensus, by votes',
    ]
    assert curves[curves.kind == 'consensus, by votes'].share.tolist() == [0.5, 0.4]
    assert table.index.tolist() == [0, 20]
    assert table.loc[20].tolist() == [0.7, 0.6, 0.66, 0.4, 0.77]
    assert table.columns.is_unique


def test_a_conflict_is_told_of_scorers_alone():
    assert scorer_agreement.tell_conflict(COSINES, NORMS, ('hps', 'clip', 'aesthetic')) == (
        'Over 2 points of a training and 3 pairs of scorers, '
        "the cosine of two scorers' gradients is 0.42 (from -0.10 to 0.86) on the same pairs; "
        'on different pairs it is below zero in 33 % of cases, in the mean 0.25 '
        '(a scorer with itself: 0.25); '
        "the sum of losses keeps 75 % of a single scorer's norm, the consensus 78 %, "
        'and the cosine between the two is 0.88 (from 0.77 to 0.98).'
    )
