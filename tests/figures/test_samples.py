"""Votes and outcomes at the same seed: worked by hand, against an independent way, and drawn as the
tables say."""

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.win_rates import score_table
from balanceddpo.figures.samples import (
    difference_text,
    first_of_each,
    first_split,
    plot_vote,
    same_seed_outcomes,
    score_texts,
    vote_title,
)
from balanceddpo.figures.style import PAGE, Look, save_figure
from figure_checks import SCORERS, SETS, picture, texts_outside


def test_the_first_split_is_the_first_for_either_image_and_with_abstentions_none():
    votes = np.array([[1, 1, 0, 1], [1, -1, -1, 1], [-1, -1, -1, 1], [1, 1, 1, -1], [-1] * 4])
    assert [first_split(votes, s) for s in ('3-0', '2-2', '3-1', '1-3', '4-0')] == [0, 1, 2, 2, 4]
    with pytest.raises(InputError, match='split 3-1; they split 2-2'):
        first_split(votes[1:2], '3-1')


@pytest.mark.parametrize(
    'votes,title',
    [
        ([1, 1, -1], '2 of 3 scorers vote for image 0'),
        ([-1, 0, -1, 1], '2 of 4 scorers vote for image 1'),
        ([1, -1], '1 of 2 scorers vote for each image: a tie'),
    ],
)
def test_a_vote_in_words(votes, title):
    assert vote_title(votes) == title


def test_scores_get_the_decimals_that_tell_them_apart():
    pairs = {
        (0.95371, 0.95374): ('0.95371', '0.95374'),
        (6.066, 6.066): ('6.066', '6.066'),
        (-13.431, 12.3): ('-13.43', '12.30'),
        (1.0, 1 + 1e-9): ('1.000000', '1.000000'),
    }
    assert [score_texts(*p) for p in pairs] == list(pairs.values())
    assert [difference_text(2.0, b, 4.0) for b in (2.0, 1.0, 2.01)] == [
        'equal: counts for image 0',
        'by 0.25 s.d.',
        'by less than 0.01 s.d.',
    ]


@pytest.mark.parametrize(
    'scores,count,winner',
    [
        # equal scores vote for image 0, Eq. 6
        (
            {
                'hps': (0.28, 0.27),
                'clip': (0.31, 0.36),
                'pickscore': (21.4, 20.9),
                'aesthetic': (5.6, 5.6),
            },
            ['3', '1'],
            0,
        ),
        (
            {
                'hps': (0.27, 0.28),
                'clip': (0.31, 0.36),
                'pickscore': (21.4, 21.9),
                'aesthetic': (5.7, 5.6),
            },
            ['1', '3'],
            1,
        ),
        (
            {
                'hps': (0.27, 0.28),
                'clip': (0.31, 0.36),
                'pickscore': (21.4, 20.9),
                'aesthetic': (5.7, 5.6),
            },
            ['2', '2'],
            None,
        ),
    ],
)
@pytest.mark.parametrize('width', [4.5, PAGE])
def test_the_figure_of_a_vote_counts_as_equations_6_and_7(scores, count, winner, width):
    fig = plot_vote(
        [picture(64), picture(64, color='blue')],
        scores,
        r'a prompt with a $ and a \ in it',
        dict.fromkeys(SCORERS, 0.1),
        human=0,
        look=Look(width=width),
    )
    texts = [t.get_text() for t in fig.texts]
    assert texts_outside(fig) == []
    assert texts[texts.index('votes') + 2 :][0] == count[0]
    at = texts.index('votes')
    assert [t for t in texts[at:] if t.isdigit()] == count
    arrows = [texts.count(x) for x in '◀▶']
    assert arrows == [int(n) + (winner == i) for i, n in enumerate(count)]
    assert [ax.get_xlabel() for ax in fig.axes] == [
        f'image {i}' + ' wins' * (winner == i) for i in (0, 1)
    ]
    # .01 and .05 in units of .1
    assert 'by 0.10 s.d.' in texts
    assert 'by 0.50 s.d.' in texts
    assert texts[-1].endswith('annotator: a tie')


def test_figures_of_a_vote_are_the_same_bytes(tmp_path):
    def make():
        return plot_vote([picture(64)] * 2, {k: (1.0, 2.0) for k in SCORERS})

    assert [p.read_bytes() for p in save_figure(make(), tmp_path / 'a')] == [
        p.read_bytes() for p in save_figure(make(), tmp_path / 'b')
    ]


def test_outcomes_against_a_loop_and_the_first_of_each():
    rng = np.random.default_rng(3)
    a, b = (
        pd.concat(
            [
                score_table(
                    m,
                    {'recognised': rng.integers(0, 2, (9, 3))},
                    prompt_set=s,
                    seeds=np.arange(27).reshape(9, 3),
                )
                for s in SETS
            ]
        )
        for m in ('x', 'y')
    )
    found = same_seed_outcomes(a, b.sample(frac=1, random_state=0))
    for row in found.itertuples():
        u, v = (
            t[
                (t.prompt_set == row.prompt_set)
                & (t.prompt_id == row.prompt_id)
                & (t.image_index == row.image_index)
            ].recognised.item()
            for t in (a, b)
        )
        assert (
            row.outcome
            == {(1, 0): 'x only', (0, 1): 'y only', (1, 1): 'both', (0, 0): 'neither'}[u, v]
        )
    picks, order = first_of_each(found, 2, index=1), ['x only', 'y only', 'both', 'neither']
    by_hand = [
        (r.prompt_set, r.prompt_id, o)
        for o in order
        for r in found[(found.outcome == o) & (found.image_index == 1)][:2].itertuples()
    ]
    assert picks == by_hand
    assert len(picks) == 8


def test_other_seeds_or_prompts_are_refused():
    a, b = (score_table(m, {'recognised': [[1, 0]]}) for m in 'ab')
    for other in (b.assign(seed=b.seed + 1), b[:1], b.assign(prompt_id='7')):
        with pytest.raises(InputError, match='differ in their prompts or seeds'):
            same_seed_outcomes(a, other)
