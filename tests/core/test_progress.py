"""What a stage says of how far it is: lines of a log by a clock that is set by hand, and which of
several processes says it."""

import logging

import pytest

from balanceddpo.core import progress as module
from balanceddpo.core.errors import InputError
from balanceddpo.core.progress import LOG, SECONDS, Progress, as_job, is_log_line, log_to_stderr


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines(monkeypatch):
    "The lines of the log, and no bar."
    monkeypatch.setattr(module, 'on_terminal', lambda: False)
    monkeypatch.setattr(module, 'memory_told', lambda: 'M')
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelname, record.getMessage()))
    level = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    yield said
    LOG.removeHandler(handler)
    LOG.setLevel(level)


def texts(lines):
    return [text for _, text in lines]


def test_a_line_at_the_start_at_the_end_and_every_half_minute(lines):
    clock = Clock()
    with Progress('encoding', 1200, 'pair', clock=clock) as told:
        for second in range(1, 61):
            clock.now = float(second)
            told.update(10)
    assert texts(lines) == [
        'encoding: begins, 1 200 pairs, M',
        'encoding: 300 of 1 200 pairs, 10 pairs/s, 1.5 minutes left, M',
        'encoding: 600 of 1 200 pairs, 10 pairs/s, 60 seconds left, M',
        'encoding: ended with 600 pairs after 60 seconds, M',
    ]


def test_what_was_done_before_is_not_counted_as_fast(lines):
    clock = Clock()
    told = Progress('training', 100, 'step', 90, clock=clock)
    clock.now = 40.0
    told.update(4)
    told.tell(loss='0.5')
    told.close()
    assert texts(lines) == [
        'training: begins, 100 steps, 90 of them done before, M',
        'training: 94 of 100 steps, 10 s/step, 60 seconds left, M',
        'training: ended with 94 steps after 40 seconds, loss 0.5, M',
    ]


def test_the_rate_is_that_of_the_last_ten_lines(lines, monkeypatch):
    monkeypatch.setenv(SECONDS, '1')
    clock = Clock()
    told = Progress('scoring', 10_000, 'pair', clock=clock)
    for second in range(1, 21):
        clock.now = float(second)
        told.update(1000 if second <= 5 else 2)  # the first shards were there already
    assert '5 030 of 10 000 pairs, 2 pairs/s' in lines[-1][1]


def test_what_is_at_hand_is_counted_once(lines, monkeypatch):
    monkeypatch.setenv(SECONDS, '1')
    clock = Clock()
    told = Progress('scoring', 8, 'pair', clock=clock)
    for done in (lambda: told.within(3), lambda: told.update(4), lambda: told.within(1)):
        clock.now += 1
        done()
    assert [text.split(' of ')[0] for text in texts(lines)[1:]] == [
        'scoring: 3',
        'scoring: 4',
        'scoring: 5',
    ]


def test_who_waits_says_so_and_a_total_may_be_unknown(lines):
    clock = Clock()
    told = Progress('models', unit='model', clock=clock)
    told.tell(now='training of x')
    clock.now = 30.0
    told.beat()
    assert texts(lines) == ['models: begins, M', 'models: 0 models, now training of x, M']


def test_an_error_is_told_as_a_stop_and_a_stage_of_nothing_is_silent(lines):
    with pytest.raises(ZeroDivisionError), Progress('images', 4, 'image', clock=Clock()) as told:
        told.update()
        raise ZeroDivisionError
    assert texts(lines)[-1] == 'images: stopped at 1 image after 0 seconds, M'
    before = len(lines)
    for done, shown in ((4, True), (0, False)):
        with Progress('images', 4, 'image', done, shown) as told:
            told.update()
    assert len(lines) == before


def test_of_several_processes_the_first_speaks_aloud(lines, monkeypatch):
    for share, says in (('0/3', ('INFO', 'x (1 of 3)')), ('2/3', ('DEBUG', 'x (3 of 3)'))):
        monkeypatch.setenv('BALANCEDDPO_SHARE', share)
        Progress('x', 1)
        assert (lines[-1][0], lines[-1][1].split(':')[0]) == says


def test_the_lines_of_a_job_name_it(lines):
    with as_job('training of BalancedDPO, seed 3'):
        Progress('training', 5)
    assert lines[-1][1].startswith('training of BalancedDPO, seed 3: training: begins, 5 steps')


def test_a_library_says_nothing_until_it_is_asked(capfd, monkeypatch):
    monkeypatch.setattr(module, 'on_terminal', lambda: False)
    Progress('quiet', 1).close()
    assert capfd.readouterr() == ('', '')
    handlers = [*LOG.handlers]
    with log_to_stderr():
        Progress('seen', 1).close()
        with log_to_stderr('off'):
            Progress('quiet', 1).close()
    said = capfd.readouterr().err.splitlines()
    assert [is_log_line(line) for line in said] == [True, True]
    assert 'INFO seen: begins, 1 step' in said[0]
    assert (LOG.handlers, LOG.propagate) == (handlers, True)


def test_seconds_that_are_none_are_refused(monkeypatch):
    monkeypatch.setenv(SECONDS, 'often')
    monkeypatch.setattr(module, 'on_terminal', lambda: False)
    with pytest.raises(InputError, match="BALANCEDDPO_LOG_SECONDS must be a number.*'often'"):
        Progress('x')
