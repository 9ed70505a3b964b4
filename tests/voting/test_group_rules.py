"""Rules of groups take the pairs that their papers mean."""

import numpy as np
import pytest

from balanceddpo.voting.elections import RANK_LABELS, RANK_RULES, rank_labels
from balanceddpo.voting.group_rules import GROUP_RULES, visit_tables
from balanceddpo.voting.groups import calibrated_rewards, capo_labels, frontiers

SCORERS = ('hps', 'clip', 'pickscore', 'aesthetic')
SCALE = [100.0, 100.0, 1.0, 1.0]
IDS = ['a', 'b', 'c', 'd', 'e']


@pytest.fixture
def scores():
    "Five groups of four images under four scorers; no two scores are equal."
    return np.random.default_rng(0).normal(size=(5, 4, 4)) / SCALE


def rules(name):
    return GROUP_RULES[name](SCORERS)


def test_capo_pairs_the_frontiers_with_the_difference_of_rewards(scores):
    (rule,) = rules('frontiers')
    table = rule(scores, IDS, 3)
    expected = capo_labels(scores, IDS, SCALE, step=3)
    np.testing.assert_array_equal(table.to_numpy(object), expected.to_numpy(object))
    rewards = calibrated_rewards(scores, SCALE).mean(axis=2)
    upper, lower = frontiers(scores)
    for g, row in enumerate(table.itertuples()):
        assert upper[g, row.i]
        assert lower[g, row.j]
        assert row.w0 - row.w1 == pytest.approx(rewards[g, row.i] - rewards[g, row.j], abs=1e-6)


def test_target_one_is_one(scores):
    (rule,) = rules('frontiers_target_one')
    table = rule(scores, IDS, 0)
    assert set(table.w0[table.i >= 0]) == {1.0}
    assert set(table.w1) == {0.0}


def test_sum_takes_the_ends_of_the_sum_and_soup_those_of_each_scorer(scores):
    (rule,) = rules('sum')
    table, total = rule(scores, IDS, 0), scores @ SCALE
    assert table.i.tolist() == total.argmax(axis=1).tolist()
    assert table.j.tolist() == total.argmin(axis=1).tolist()
    each = rules('each_scorer')
    assert len(each) == 4
    for k, rule in enumerate(each):
        table = rule(scores, IDS, 0)
        assert table.i.tolist() == scores[..., k].argmax(axis=1).tolist()
        assert table.j.tolist() == scores[..., k].argmin(axis=1).tolist()


@pytest.mark.parametrize(
    'name, rule, label',
    [('condorcet', 'condorcet', 'hard'), ('borda_margin', 'borda', 'margin')],
)
def test_elections_take_the_pairs_that_their_rules_choose(scores, name, rule, label):
    (made,) = rules(name)
    expected = rank_labels(scores, IDS, rule, label)
    np.testing.assert_array_equal(made(scores, IDS, 5).to_numpy(object), expected.to_numpy(object))
    elections = {*RANK_RULES} | {f'borda_{label}' for label in RANK_LABELS if label != 'hard'}
    assert elections <= {*GROUP_RULES}


def test_the_plain_majority_votes_on_a_pair_of_each_group(scores):
    (rule,) = rules('majority')
    seen = set()
    for visit in range(40):
        for g, row in enumerate(rule(scores, IDS, visit).itertuples()):
            if row.i < 0:
                assert row.w0 == row.w1 == 0
                continue
            lead = np.sign(scores[g, row.i] - scores[g, row.j]).sum()
            assert row.i < row.j
            assert lead != 0
            assert (row.w0, row.w1) == ((1, 0) if lead > 0 else (0, 1))
            seen.add((row.i, row.j))
    assert len(seen) > 3


@pytest.mark.parametrize(
    'name, tables', [('sum', 1), ('borda', 1), ('majority', 7), ('frontiers', 7)]
)
def test_a_rule_that_says_the_same_at_each_visit_is_asked_once(scores, name, tables):
    assert len(visit_tables(rules(name)[0], scores, IDS, 7)) == tables


def test_no_vote_is_asked_about_an_image_that_is_not_there():
    "A group with two images among groups of eight has a pair at every visit."
    scores = np.full((2, 8, 1), np.nan)
    scores[0, :, 0], scores[1, :2, 0] = np.arange(8), [0, 1]
    (rule,) = GROUP_RULES['majority'](['hps'])
    for table in visit_tables(rule, scores, ['many', 'two'], 9):
        assert table.loc[1, ['i', 'j', 'w0', 'w1']].tolist() == [0, 1, 0, 1]
        assert table.i[0] < table.j[0]
