"Work ahead in threads keeps its order, its bound and the place of an error."

import os
import threading

import pytest

from balanceddpo.core.parallel import ahead_in_threads, in_threads


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


@pytest.mark.parametrize(('cores', 'threads'), [(1, 1), (2, 1), (6, 5), (64, 8)])
def test_threads_are_as_many_as_the_cores_that_the_process_may_use_but_one(
    monkeypatch, cores, threads
):
    monkeypatch.setattr(os, 'cpu_count', lambda: 128)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(cores), raising=False)
    together = threading.Barrier(threads, timeout=10)

    def name(i):
        together.wait()
        return threading.current_thread().name

    seen = in_threads(name, range(8 * threads)) if threads > 1 else in_threads(name, range(80))
    assert len({*seen}) == threads
    assert (threading.current_thread().name in seen) == (threads == 1)
