"""Callbacks are told of a run in its order, cannot change what it trains, and cost it nothing when
they fail."""

import json

import pytest
import torch
from two_processes import two_processes
from watchers import Drawing, Noting

from balanceddpo.core.errors import InputError
from balanceddpo.training.callbacks import Callback
from balanceddpo.training.checkpoints import newest_checkpoint
from short_runs import assert_equal_runs, go, metrics

RUN = dict(max_steps=4, refresh_every=2)


def test_the_moments_come_in_their_order(made, tmp_path):
    noting = Noting()
    go(made(), tmp_path / 'a', callbacks=[noting], checkpoint_every=3, **RUN)
    steps = [('step', 1), ('refresh', 2), ('step', 2), ('step', 3), ('save', 3)]
    last = [('refresh', 4), ('step', 4), ('save', 4), ('end', 'model')]
    assert noting.told == [('base', 0), ('start', 0), *steps, *last]
    noting = Noting()
    go(made(), tmp_path / 'a', callbacks=[noting], checkpoint_every=3, max_steps=5, refresh_every=2)
    # loaded as the base model, taken up at its checkpoint
    assert noting.told[:3] == [('base', 0), ('start', 4), ('step', 5)]


def test_a_step_is_told_as_its_row_is_written(made, tmp_path):
    rows = []

    class Rows(Callback):
        def on_step(self, run, row):
            rows.append({k: v for k, v in row.items() if k != 'seconds'})

    go(made(), tmp_path / 'a', callbacks=[Rows()], **RUN)
    for told, written in zip(rows, metrics(tmp_path / 'a'), strict=True):
        assert told == {name: written[name] for name in told}


def test_numbers_that_a_callback_draws_change_nothing(made, tmp_path):
    go(made(), tmp_path / 'a', **RUN)
    go(made(), tmp_path / 'b', callbacks=[Drawing()], **RUN)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')


class Failing(Callback):
    "Fails at a moment, after the third step."

    def __init__(self, moment):
        setattr(self, moment, self.fail)

    def fail(self, run, *facts):
        if run.step == 3:
            raise KeyError('mine')


@pytest.mark.parametrize('moment', ['on_step', 'on_refresh', 'on_save'])
def test_a_callback_that_fails_is_named_and_costs_no_step(made, tmp_path, moment):
    changes = dict(max_steps=5, refresh_every=3, checkpoint_every=3)
    after = Noting()
    with pytest.raises(
        InputError, match=rf'callback Failing \({moment}, after step 3\).*mine'
    ) as e:
        go(made(), tmp_path / 'b', callbacks=[Failing(moment), after], **changes)
    assert '\n' not in str(e.value)
    assert 'test_callbacks.py' in str(e.value)
    assert newest_checkpoint(tmp_path / 'b' / 'checkpoints').step == 3
    assert after.told[-1] == ('end', None)
    assert not (tmp_path / 'b' / 'model').exists()
    go(made(), tmp_path / 'b', **changes)
    go(made(), tmp_path / 'a', **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')


class Stopping(Callback):
    "Stops a run after two steps."

    def __init__(self, rule=''):
        self.rule = rule

    def on_step(self, run, row):
        if row['step'] == 2:
            run.stop('two are *enough*', self.rule)


@pytest.mark.parametrize('rule', ['', 'two steps'])
def test_a_stopped_run_ends_as_any_other_and_says_why(made, tmp_path, rule):
    out = go(made(), tmp_path / 'b', callbacks=[Stopping(rule)], max_steps=4)
    text = (out / 'README.md').read_text()
    assert 'It was to take 4 steps, and ended before: two are \\*enough\\*.' in text
    assert json.loads((out / 'training.json').read_text())['stopped']['why'] == 'two are *enough*'
    go(made(), tmp_path / 'a', max_steps=2)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    # whoever has the rule finds it finished
    noting = Noting()
    go(made(), tmp_path / 'b', callbacks=[Stopping(rule), noting], max_steps=4)
    told = [] if rule else [('base', 0), ('start', 2), ('step', 3), ('step', 4), ('save', 4)]
    assert noting.told == [*told, ('end', 'model')] * bool(told)
    # whoever has not takes the other steps
    go(made(), tmp_path / 'b', max_steps=4)
    go(made(), tmp_path / 'whole', max_steps=4)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'b')
    assert 'ended before' not in (out / 'README.md').read_text()


@pytest.mark.parametrize('what', ['FailsOnSecond', 'StopsOnSecond'])
def test_what_one_process_does_all_of_them_hear(made, tmp_path, what):
    more = dict(mode='lora', batch_size=4, max_steps=4, callbacks=[f'watchers:{what}'])
    ended = two_processes(made(), [tmp_path / 'run'] * 2, **more)
    assert newest_checkpoint(tmp_path / 'run' / 'checkpoints').step == 2
    if what == 'StopsOnSecond':
        assert [code for code, _, _ in ended] == [0, 0], ended[0][2][-2000:]
        assert (tmp_path / 'run' / 'model').is_dir()
    else:
        assert all(code for code, _, _ in ended)
        assert all('on the second; step 2 is kept' in err for _, _, err in ended)


def test_the_average_is_what_it_was_after_it_has_drawn(made, tmp_path):
    "A policy that draws by its average, in between, trains on as without."
    from balanceddpo.evaluation.live_drawing import drawing_weights

    class Looking(Callback):
        def on_step(self, run, row):
            before = [p.detach().clone() for p in run.parameters]
            with drawing_weights(run):
                assert not all(map(torch.equal, before, run.parameters))
            assert all(map(torch.equal, before, run.parameters))

    go(made(), tmp_path / 'a', ema=0.9, **RUN)
    go(made(), tmp_path / 'b', ema=0.9, callbacks=[Looking()], **RUN)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
