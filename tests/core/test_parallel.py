"""Processes side by side give what a loop gives, and stop after the first failure."""

import json
import shutil

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import read_json
from balanceddpo.core.parallel import ahead_in_threads, side_by_side


@pytest.fixture
def jobs(tmp_path):
    "For `read_json`: files that hold 0, 1, 2, 3."
    for k in range(4):
        (tmp_path / f'{k}.json').write_text(json.dumps(k))
    return [dict(path=tmp_path / f'{k}.json') for k in range(4)]


def test_side_by_side_gives_what_one_after_the_other_gives_in_the_same_order(jobs):
    jobs = [jobs[k] for k in (2, 0, 3, 1)]
    assert side_by_side(read_json, jobs, 2) == side_by_side(read_json, jobs) == [2, 0, 3, 1]
    assert side_by_side(read_json, [], 2) == []


def test_an_error_side_by_side_is_the_error(jobs, tmp_path):
    jobs[1] = dict(path=tmp_path / 'nowhere.json')
    for workers in (1, 2):
        with pytest.raises(InputError, match='nowhere.json'):
            side_by_side(read_json, jobs, workers)


def test_after_a_failure_side_by_side_starts_nothing_more(jobs, tmp_path):
    sources = [tmp_path / 'nowhere', tmp_path / 'nowhere', jobs[0]['path'], jobs[1]['path']]
    copies = [dict(src=s, dst=tmp_path / f'copy{k}') for k, s in enumerate(sources)]
    with pytest.raises(FileNotFoundError, match='nowhere'):
        side_by_side(shutil.copyfile, copies, 2)
    assert not list(tmp_path.glob('copy*'))
    with pytest.raises(InputError, match='at least 1, not 0'):
        side_by_side(shutil.copyfile, [], 0)


def test_work_ahead_keeps_the_order_its_bound_and_the_place_of_an_error():
    begun = []

    def f(i):
        begun.append(i)
        if i == 7:
            raise ValueError('the seventh')
        return i

    stream = ahead_in_threads(f, iter(range(1000)), ahead=5)
    seen = [next(stream) for _ in range(7)]
    assert seen == list(range(7))
    assert max(begun) <= 7 + 5
    with pytest.raises(ValueError, match='the seventh'):
        next(stream)
    assert list(ahead_in_threads(str, range(3), ahead=10)) == ['0', '1', '2']
    assert list(ahead_in_threads(str, [])) == []
