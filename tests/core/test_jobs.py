"""Jobs are done in an order that keeps all busy, each after what it needs; in a rehearsal they are
only written down; processes side by side give what a loop gives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec

import psutil
import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import read_json
from balanceddpo.core.jobs import (
    Job,
    NotMadeYet,
    ToBeMade,
    ask,
    gpu_names,
    gpus_of_process,
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


@pytest.mark.parametrize(
    'number, each, part', [(0, 1, '0'), (5, 1, '5'), (9, 1, '1'), (0, 4, '0123'), (1, 4, '4567')]
)
def test_a_process_sees_as_many_gpus_as_its_trainings_share(number, each, part):
    assert [*gpus_of_process([*'01234567'], number, each)] == [*part]


def test_gpus_that_are_too_few_for_one_part_are_shared_out_again():
    "Of three, two processes that need two both see the first two."
    assert [gpus_of_process([*'012'], n, 2) for n in (0, 1)] == [['0', '1']] * 2
    with pytest.raises(InputError, match='4 processes needs as many GPUs: 3 in sight'):
        run_jobs({}, 1, place=processes_here(1, [*'012'], 4))


def test_a_training_is_shared_by_processes_that_know_each_other(tmp_path):
    "Images are drawn by one."
    training = Job('', _sum_of_ranks, {'folder': tmp_path}, makes='model')
    images = Job('', _sum_of_ranks, {'folder': tmp_path}, makes='images')
    place = processes_here(1, each=2)
    found = run_jobs({'training': training, 'images': images}, 1, place=place)
    assert found == {'training': [0, 3.0], 'images': [0, 1.0]}


def _sum_of_ranks(folder):
    "The number of this process, and the sum of 1 and 2 over those that share the work."
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    mine = torch.tensor(rank + 1.0)
    if world > 1:
        torch.distributed.init_process_group('gloo')
        torch.distributed.all_reduce(mine)
        torch.distributed.destroy_process_group()
    return [rank, mine.item()]


@pytest.mark.parametrize(
    'how, error, says',
    [('raise', InputError, 'no such weights'), ('kill', ProcessFailed, 'one of 2 processes was')],
)
def test_when_one_of_several_processes_fails_the_others_end(tmp_path, how, error, says):
    job = Job('training of x', _the_second_fails, {'folder': tmp_path, 'how': how}, makes='model')
    with pytest.raises(error, match=says) as e:
        run_jobs({'x': job}, 1, place=processes_here(1, each=2))
    assert e.value.__notes__ == ['training of x']
    _wait_until_gone(int((tmp_path / 'first').read_text()))


def _the_second_fails(folder, how):
    "The first process would wait for ever."
    if os.environ['RANK'] == '0':
        (folder / 'writing').write_text(str(os.getpid()))
        (folder / 'writing').rename(folder / 'first')
        time.sleep(600)
    while not (folder / 'first').exists():
        time.sleep(0.05)
    if how == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    raise InputError('no such weights')


def _wait_until_gone(pid):
    until = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, f'process {pid} goes on'
        time.sleep(0.1)


WAITS = """
import os, signal, sys, time

def wait(number):
    def stop(*_):
        open(f'saved-{number}', 'w').close()
        raise SystemExit(143)

    if number == 1:  # as a training does
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    open(f'waits-{number}-{os.getpid()}', 'w').close()
    time.sleep(600)

if __name__ == '__main__':
    from balanceddpo.core.jobs import Job, processes_here, run_jobs
    import waits
    jobs = {k: Job('', waits.wait, {'number': k}, makes='model') for k in (0, 1)}
    run_jobs(jobs, 2, place=processes_here(2, each=int(sys.argv[1])))
"""


@pytest.mark.parametrize('each', [1, 2])
def test_processes_end_with_a_caller_that_is_killed_and_save_what_they_have(tmp_path, each):
    (tmp_path / 'waits.py').write_text(WAITS)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
    caller = subprocess.Popen(
        [sys.executable, 'waits.py', str(each)],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': paths},
    )
    until = time.monotonic() + 120
    while len(waiting := [*tmp_path.glob('waits-*')]) < 2 * each:
        assert time.monotonic() < until and caller.poll() is None
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    while not (tmp_path / 'saved-1').exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    for number, pid in (path.name.split('-')[1:] for path in waiting):
        if number == '0':
            _wait_until_gone(int(pid))
        else:  # it has a minute to end
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


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
