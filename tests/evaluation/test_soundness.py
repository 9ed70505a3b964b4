"""Counting the images that cannot be judged, and refusing too many of them."""

from pathlib import Path

import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.soundness import (
    check_share,
    count_unsound,
    refuse_unsound,
    unsound_lines,
)
from balanceddpo.models.image_store import ImageStore


def store(flagged, constant):
    return ImageStore(Path('o'), {}, pd.DataFrame({'flagged': flagged, 'constant': constant}))


def test_an_image_that_is_both_is_counted_once():
    drawn = [
        ('a', 'p', store([True, True, False], [True, False, False])),
        ('b', 'p', store([False] * 3, [False] * 3)),
        ('c', 'p', ImageStore(Path('o'), {}, pd.DataFrame({'seed': [1, 2]}))),  # nothing is known
    ]
    counts = count_unsound(drawn)
    assert counts.to_numpy().tolist() == [
        ['a', 'p', 3, 2, 1, 2],
        ['b', 'p', 3, 0, 0, 0],
        ['c', 'p', 2, 0, 0, 0],
    ]
    assert unsound_lines(counts) == [
        'a, p: 2 of 3 images cannot be judged (2 flagged by the safety checker, 1 of a single'
        ' colour)'
    ]


def test_more_than_the_share_is_refused_and_as_much_is_not():
    counts = count_unsound([('a', 'p', store([True] + [False] * 19, [False] * 20))])
    refuse_unsound(counts, 0.05)
    with pytest.raises(InputError, match='a, p: 1 of 20 images .* more than the share 0.04'):
        refuse_unsound(counts, 0.04)
    refuse_unsound(count_unsound([]), 0)


@pytest.mark.parametrize('share', [-0.1, 1.1, float('nan')])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(InputError, match='from 0 to 1'):
        check_share(share)
