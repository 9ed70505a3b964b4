"""Jobs are done in an order that keeps all busy, each after what it needs; in a rehearsal they are
only written down; processes side by side give what a loop gives."""

import json
import os
import shutil
import signal
import time
from importlib.util import find_spec

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import read_json
from balanceddpo.core.jobs import (
    Job,
    NotMadeYet,
    ToBeMade,
    ask,
    gpu_names,
    is_rehearsal,
    jobs_of_slurm,
    longest_first,
    processes_here,
    rehearsal,
    run_jobs,
    side_by_side,
)
from balanceddpo.core.processes import ProcessFailed

needs_submitit = pytest.mark.skipif(
    find_spec('submitit') is None, reason='submitit is missing: pip install "balanceddpo[slurm]"'
)


@pytest.fixture
def files(tmp_path):
    "For `read_json`: files that hold 0, 1, 2, 3."
    for k in range(4):
        (tmp_path / f'{k}.json').write_text(json.dumps(k))
    return [dict(path=tmp_path / f'{k}.json') for k in range(4)]


def test_side_by_side_gives_what_one_after_the_other_gives_in_the_same_order(files):
    jobs = [files[k] for k in (2, 0, 3, 1)]
    assert side_by_side(read_json, jobs, 2) == side_by_side(read_json, jobs) == [2, 0, 3, 1]
    assert side_by_side(read_json, [], 2) == []


def test_an_error_side_by_side_is_the_error(files, tmp_path):
    files[1] = dict(path=tmp_path / 'nowhere.json')
    for workers in (1, 2):
        with pytest.raises(InputError, match='nowhere.json'):
            side_by_side(read_json, files, workers)


def test_after_a_failure_nothing_more_starts_and_the_error_tells_the_job(files, tmp_path):
    sources = [tmp_path / 'nowhere', tmp_path / 'nowhere', files[0]['path'], files[1]['path']]
    copies = [dict(src=s, dst=tmp_path / f'copy{k}') for k, s in enumerate(sources)]
    with pytest.raises(FileNotFoundError, match='nowhere') as e:
        side_by_side(shutil.copyfile, copies, 2)
    assert e.value.__notes__ in (['model 0'], ['model 1'])
    assert not list(tmp_path.glob('copy*'))
    with pytest.raises(InputError, match='at least 1, not 0'):
        side_by_side(shutil.copyfile, [], 0)


# graphs


def graph(**costs):
    "Jobs `a`, and `ab` after `a`, with their costs."
    return {
        key: Job(key, pow, {}, after=key[:-1] or None, cost=cost) for key, cost in costs.items()
    }


def test_the_longest_way_to_the_end_comes_first():
    "By hand: a 1 + ab 5 + abc 1 = 7, b 6, c 2 + cd 1 = 3."
    jobs = graph(c=2, cd=1, b=6, a=1, ab=5, abc=1)
    assert longest_first(jobs) == ['a', 'b', 'ab', 'c', 'cd', 'abc']


def test_a_job_gets_the_result_of_the_one_before_it():
    jobs = {
        'second': Job('', pow, {'exp': 2}, after='first', takes='base'),
        'first': Job('', pow, {'base': 2, 'exp': 3}),
    }
    assert run_jobs(jobs, 2) == {'first': 8, 'second': 64}


def test_what_is_done_and_what_runs_is_told_at_the_start_and_after_each():
    told = []
    jobs = {
        'first': Job('', pow, {'base': 2, 'exp': 3}, cost=9),
        'second': Job('', pow, {'exp': 2}, after='first', takes='base'),
        'third': Job('', pow, {'base': 1, 'exp': 1}, cost=5),
    }
    run_jobs(jobs, 1, tell=lambda done, running: told.append((sorted(done), list(running))))
    assert told == [
        ([], ['first']),
        (['first'], ['third']),
        (['first', 'third'], ['second']),
        (['first', 'second', 'third'], []),
    ]


def test_each_process_sees_one_gpu_of_several(tmp_path):
    jobs = {f'{k}': Job('', _gpu_when_both_run, {'mine': tmp_path / f'{k}'}) for k in range(2)}
    found = run_jobs(jobs, 2, place=processes_here(2, ['3', '5']))
    assert sorted(found.values()) == ['3', '5']
    ours = os.environ.get('CUDA_VISIBLE_DEVICES')
    assert {*run_jobs(jobs, 2, place=processes_here(2, ['3'])).values()} == {ours}


def _gpu_when_both_run(mine):
    "What the process of a job sees, when the other job runs in another one."
    mine.touch()
    until = time.monotonic() + 120
    while len(list(mine.parent.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return os.environ.get('CUDA_VISIBLE_DEVICES')


def test_the_gpus_in_sight_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,GPU-7')
    assert gpu_names() == ['2', 'GPU-7']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert gpu_names() == []


def test_a_process_that_is_killed_is_told_in_a_line():
    with pytest.raises(ProcessFailed, match='a process was killed; the same command goes on'):
        run_jobs({'x': Job('training of x', _die, {})}, 1)


@needs_submitit
def test_slurm_does_the_same_jobs_and_raises_their_errors(tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    jobs = {
        'second': Job('', pow, {'exp': 2}, after='first', takes='base'),
        'first': Job('', pow, {'base': 2, 'exp': 3}),
    }
    assert run_jobs(jobs, 2, place=jobs_of_slurm('cluster=local')) == {'first': 8, 'second': 64}
    nowhere = Job('training of x', read_json, {'path': tmp_path / 'nowhere.json'})
    with pytest.raises(InputError, match='nowhere.json') as e:
        run_jobs({'x': nowhere}, 1, place=jobs_of_slurm('cluster=local'))
    assert e.value.__notes__ == ['training of x']


@needs_submitit
def test_a_job_that_slurm_has_ended_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    with pytest.raises(ProcessFailed, match='ended without a result; .*; see .*slurm'):
        run_jobs({'x': Job('', _die, {})}, 1, place=jobs_of_slurm('cluster=local'))


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


# rehearsals


def want(key):
    if is_rehearsal():
        ask(key, Job(key, want, {'key': key}))
        return ToBeMade()
    return key


def want_and_look(key):
    return want(key).folder


def test_a_rehearsal_asks_for_each_once_and_does_nothing():
    with rehearsal() as asked:
        found = [want('a'), want('b'), want('a')]
    assert list(asked) == ['a', 'b']
    with pytest.raises(NotMadeYet):
        found[0].folder  # noqa: B018
    assert run_jobs(asked, 1) == {'a': 'a', 'b': 'b'}
    assert want('a') == 'a'


def test_side_by_side_in_a_rehearsal_lets_all_ask_and_starts_no_process():
    with rehearsal() as asked, pytest.raises(NotMadeYet):
        side_by_side(want_and_look, [dict(key='a'), dict(key='b')], 2)
    assert list(asked) == ['a', 'b']
