"""Votes, majority and ties: identities, a loop over pairs, awkward scores."""

import itertools

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.voting.agreement import vote_splits
from balanceddpo.voting.labels import shared_weights
from balanceddpo.voting.votes import break_ties, majority, tie_probability, votes
from made_scores import loop_votes, make_scores

# votes and majority


@pytest.mark.parametrize('K', [1, 2, 3, 4, 5, 8])
def test_votes_and_majority_against_a_loop(K):
    x = make_scores(K=K, seed=K)
    x[:20, 1] = x[:20, 0]  # planted equal scores
    v = votes(x)
    assert v.dtype == np.int8
    assert np.array_equal(v, loop_votes(x))
    expected = [(sum(row) > 0) - (sum(row) < 0) for row in loop_votes(x).tolist()]
    assert majority(v).tolist() == expected


def test_missing_scores_never_vote():
    for bad in (np.nan, np.inf, -np.inf):
        for slot in (0, 1):
            x = np.ones((1, 2, 3))
            x[0, slot, 1] = bad
            assert votes(x).tolist() == [[1, 0, 1]]


def test_swapping_the_pair_reverses_every_vote_but_those_of_equal_scores():
    x = make_scores()
    x[:10, 1, 2] = x[:10, 0, 2]
    there, back = votes(x), votes(x[:, ::-1])
    equal = np.isfinite(x).all(1) & (x[:, 0] == x[:, 1])
    assert equal[:10, 2].any()
    assert np.array_equal(there[~equal], -back[~equal])
    assert (there[equal] == 1).all()
    assert (back[equal] == 1).all()


def test_votes_do_not_depend_on_a_scorers_scale():
    x = make_scores()
    assert np.array_equal(
        votes(x), votes(x.astype(float) * [1e-3, 7.0, 1e4, 2.0] + [5.0, -1.0, 0.0, 100.0])
    )


def test_weights():
    v = np.array(list(itertools.product([-1, 0, 1], repeat=3)))
    assert np.array_equal(majority(v), majority(v, [2.5, 2.5, 2.5]))
    assert np.array_equal(majority(v, [1, 0, 0]), v[:, 0])
    # .1 + .2 - .3 is not 0 in floating point
    assert (
        majority([[1, 1, -1], [1, 1, -1]], [0.1, 0.2, 0.3]).tolist()
        == majority([[1, -1, -1]], [7e9, 3e9, 4e9]).tolist() * 2
        == [0, 0]
    )
    assert shared_weights([[1, 1, -1], [-1, 0, 1]], [1, 2, 5]).tolist() == [
        [0.375, 0.625],
        [0.625, 0.125],
    ]
    # the first has a veto
    assert np.array_equal(
        majority(v, [3, 1, 1]), np.where(v[:, 0], v[:, 0], np.sign(v[:, 1:].sum(1)))
    )
    for bad in ([1, 1], [1, 1, -1], [0, 0, 0], [1, 1, np.nan]):
        with pytest.raises(InputError, match='weights'):
            majority(v, bad)


def test_wrong_shapes_are_refused():
    for shape in ((4, 3), (4, 3, 2), (2,)):
        with pytest.raises(InputError, match='shape'):
            votes(np.zeros(shape))


# ties


@pytest.mark.parametrize('K', [1, 2, 3, 4, 5, 6])
def test_tie_probability_by_enumeration(K):
    every = np.array(list(itertools.product([1, -1], repeat=K)))
    assert tie_probability(K) == np.mean(majority(every) == 0)
    p = 0.7
    chance = np.where(every > 0, p, 1 - p).prod(1)
    assert tie_probability(K, p) == pytest.approx(chance[majority(every) == 0].sum())
    splits = vote_splits(every)
    assert splits.share.tolist() == pytest.approx(splits.independent.tolist())
    assert splits.n.sum() == 2**K


def test_tie_rules_touch_only_ties():
    s = np.array([1, -1, 0, 0, 0])
    human = np.array([-1, 1, 1, -1, 0])
    margins = np.array([-3.0, 3.0, 0.1, -0.1, np.nan])
    assert break_ties(s, 'drop').tolist() == [1, -1, 0, 0, 0]
    assert break_ties(s, 'first').tolist() == [1, -1, 1, 1, 1]
    assert (
        break_ties(s, 'human', human).tolist()
        == break_ties(s, 'margin', margins=margins).tolist()
        == [1, -1, 1, -1, 0]
    )
    with pytest.raises(InputError, match='unknown tie rule'):
        break_ties(s, 'coin')
    with pytest.raises(InputError, match='human labels'):
        break_ties(s, 'human')
