"""Stopping and going on: a killed, stopped or damaged run goes on bit for bit, and a folder holds
one run."""

import signal
import time

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.training import loop as training
from balanceddpo.training.checkpoints import checkpoints, newest_checkpoint
from balanceddpo.training.resume import match_weight_layout, restore
from short_runs import N, assert_equal_runs, begin, go, metrics, spawn


@pytest.mark.parametrize('first', [True, False], ids=['channels_last', 'as they were'])
def test_a_run_with_channels_last_goes_on_to_the_same_bits(made, tmp_path, first):
    """A checkpoint keeps no layout, and a fused AdamW walks through weights and moments side by
    side: they must be laid out alike again."""
    changes = dict(optimizer='adamw', refresh_every=2, beta=50.0)
    if first:
        go(made(), tmp_path / 'a', max_steps=4, channels_last=True, **changes)
    else:  # the same two steps in each layout, without a stop between them
        run = begin(made(), tmp_path / 'a', max_steps=4, **changes)
        for _ in range(2):
            training.update(run)
            run.step += 1
            training.refresh(run)
        for model in (run.policy, run.reference.model):
            model.to(memory_format=torch.channels_last)
        match_weight_layout(run.optimizer)
        for _ in range(2):
            training.update(run)
            run.step += 1
            training.refresh(run)
    for steps, layout in ((2, first), (4, True)):
        go(made(), tmp_path / 'b', max_steps=steps, channels_last=layout, **changes)
    kept = newest_checkpoint(tmp_path / 'b' / 'checkpoints').load('policy')
    ours = (
        newest_checkpoint(tmp_path / 'a' / 'checkpoints').load('policy')
        if first
        else {n: p.detach() for n, p in run.policy.named_parameters()}
    )
    for k in ours:
        assert torch.equal(ours[k], kept[k]), k


def visited(monkeypatch, run_it):
    "Step -> pair ids of all micro-batches."
    seen, real = {}, training.micro_batch

    def spy(run, *places):
        batch = real(run, *places)
        seen.setdefault(run.step, []).extend(batch.pair_ids)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(training, 'micro_batch', spy)
        run_it()
    return seen


# in the middle of epoch 0, and of epoch 1 (ten pairs, four a step)
@pytest.mark.parametrize('stop', [1, 4])
def test_a_stop_within_an_epoch_loses_and_repeats_no_pair(made, tmp_path, monkeypatch, stop):
    inputs = made()
    straight = visited(monkeypatch, lambda: go(inputs, tmp_path / 'a', max_steps=6))
    first = visited(monkeypatch, lambda: go(inputs, tmp_path / 'b', max_steps=stop))
    second = visited(
        monkeypatch, lambda: go(inputs, tmp_path / 'b', max_steps=6, micro_batch_size=4)
    )
    assert first | second == straight
    assert list(second) == list(range(stop, 6))
    epoch = sum((straight[s] for s in range(5)), [])
    assert sorted(epoch[:N]) == sorted(epoch[N:]) == sorted(set(epoch))
    assert len(set(epoch)) == N


def test_a_killed_run_goes_on_to_the_same_bits(made, tmp_path):
    """Twelve steps; and twelve steps killed (-9) between two micro-steps of the tenth, with the
    last checkpoint at the seventh."""
    inputs = made()
    changes = dict(
        refresh_every=5, checkpoint_every=7, log_every=4, optimizer='adamw', warmup_steps=3
    )
    child = spawn(inputs, tmp_path / 'b', kill_at=20, **changes)
    go(inputs, tmp_path / 'a', **changes)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL, errors
    assert [c.step for c in checkpoints(tmp_path / 'b' / 'checkpoints')] == [7]
    assert [r['step'] for r in metrics(tmp_path / 'b')] == [4, 8]
    go(inputs, tmp_path / 'b', **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [(r['step'], r['refreshed']) for r in metrics(tmp_path / 'b')] == [
        (4, False),
        (8, True),
        (12, True),
    ]


@pytest.mark.parametrize(
    'changes',
    [
        dict(mode='lora', optimizer='adamw'),
        dict(optimizer='adafactor', precision='bf16'),
        dict(optimizer='adamw8bit'),
    ],
    ids=['lora', 'adafactor-bf16', 'adamw8bit'],
)
def test_a_stopped_run_goes_on_to_the_same_bits(made, tmp_path, changes):
    """Also where the last refresh lies behind the checkpoint: the reference is neither the base
    model nor the policy of the checkpoint."""
    changes |= dict(refresh_every=3)
    go(made(), tmp_path / 'a', max_steps=7, **changes)
    for n in (1, 5, 7):
        go(made(), tmp_path / 'b', max_steps=n, **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [r['step'] for r in metrics(tmp_path / 'b') if r['refreshed']] == [3, 6]
    # of step 5, refreshed at 3
    reference, policy = (
        checkpoints(tmp_path / 'b' / 'checkpoints')[0].load(part)
        for part in ('reference', 'policy')
    )
    assert any(not torch.equal(reference[k], v) for k, v in zip(reference, policy.values()))


def test_a_damaged_checkpoint_costs_one_interval_and_is_named(made, tmp_path):
    inputs = made()
    go(inputs, tmp_path / 'a', max_steps=6, checkpoint_every=2)
    go(inputs, tmp_path / 'b', max_steps=4, checkpoint_every=2)
    weights = tmp_path / 'b' / 'checkpoints' / 'step-00000004' / 'reference.safetensors'
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.warns(UserWarning, match='step 4 not used: .*reference.safetensors'):
        go(inputs, tmp_path / 'b', max_steps=6, checkpoint_every=2, keep_checkpoints=1)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [c.step for c in checkpoints(tmp_path / 'b' / 'checkpoints')] == [6]


# Python ends by the signal it was interrupted by; or with 1, where torch, as it does if tabulate is
# installed, evaluates something at exit
@pytest.mark.parametrize(
    'number, codes, says',
    [
        (signal.SIGTERM, (128 + signal.SIGTERM,), ''),
        (signal.SIGINT, (-signal.SIGINT, 1), 'KeyboardInterrupt'),
    ],
)
def test_a_signal_writes_a_checkpoint_and_a_second_process_is_refused(
    made, tmp_path, number, codes, says
):
    inputs, out = made(), tmp_path / 'run'
    child = spawn(inputs, out, max_steps=100_000)
    try:
        while (
            not (out / 'metrics.jsonl').exists()
            or len((out / 'metrics.jsonl').read_text().splitlines()) < 2
        ):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.05)
        with pytest.raises(InputError, match=f'in use by process {child.pid}'):
            go(inputs, out, max_steps=100_000)
        asked = time.monotonic()
        child.send_signal(number)
        assert child.wait(60) in codes
        assert says in child.stderr.read()
    finally:
        child.kill()
        child.communicate()
    step = newest_checkpoint(out / 'checkpoints').step
    assert step == metrics(out)[-1]['step'] >= 2
    assert not (out / 'model').exists()
    assert time.monotonic() - asked < 60
    go(inputs, out, max_steps=step + 1)  # and it goes on
    assert [r['step'] for r in metrics(out)] == list(range(1, step + 2))


def test_a_finished_run_is_returned_and_can_be_prolonged(made, tmp_path, monkeypatch):
    inputs = made()
    out = go(inputs, tmp_path / 'a', max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(training, 'start', lambda *a: pytest.fail('trained again'))
        assert go(inputs, tmp_path / 'a', max_steps=2) == out
    # written anew from the checkpoint
    (out / 'README.md').write_text('damaged')
    go(inputs, tmp_path / 'a', max_steps=2)
    assert 'balanceddpo' in (out / 'README.md').read_text()
    go(inputs, tmp_path / 'a', max_steps=3)
    go(inputs, tmp_path / 'b', max_steps=3)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(InputError, match='already at step 3: max_steps 1 is behind it'):
        go(inputs, tmp_path / 'a', max_steps=1)


def test_another_run_in_the_same_folder_is_refused_by_name(made, tmp_path):
    inputs = made()
    go(inputs, tmp_path / 'a', max_steps=1)
    with pytest.raises(InputError, match='training.learning_rate = 0.001, not 0.002'):
        go(inputs, tmp_path / 'a', max_steps=2, learning_rate=2e-3)
    with pytest.raises(InputError, match='step 1: resume it'):
        go(inputs, tmp_path / 'a', max_steps=2, resume=False)
    inputs.labels.loc[0, ['w0', 'w1']] = inputs.labels.loc[0, ['w1', 'w0']].to_numpy()
    with pytest.raises(InputError, match='labels.w0'):
        go(inputs, tmp_path / 'a', max_steps=2)
    with pytest.raises(InputError, match='base|pairs'):
        go(made('sd21'), tmp_path / 'a', max_steps=2)
    assert [c.step for c in checkpoints(tmp_path / 'a' / 'checkpoints')] == [1]


def test_a_method_without_a_reference_keeps_none_and_resumes(made, tmp_path):
    inputs = made()
    changes = dict(method='mapo', beta=None, checkpoint_every=2)
    go(inputs, tmp_path / 'whole', max_steps=4, **changes)
    go(inputs, tmp_path / 'cut', max_steps=2, **changes)
    go(inputs, tmp_path / 'cut', max_steps=4, **changes)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')
    assert newest_checkpoint(tmp_path / 'cut/checkpoints').load('reference') == {}


def test_the_state_of_an_optimizer_is_laid_out_as_its_weights():
    weight = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).weight
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[weight].items()}
    optimizer.state[weight] = {k: v.contiguous() for k, v in optimizer.state[weight].items()}
    assert optimizer.state[weight]['exp_avg'].stride() != weight.stride()
    match_weight_layout(optimizer)
    assert (
        optimizer.state[weight]['exp_avg'].stride()
        == optimizer.state[weight]['exp_avg_sq'].stride()
        == weight.stride()
    )
    for k, v in before.items():
        assert torch.equal(v, optimizer.state[weight][k])


def test_checkpoints_that_a_killed_process_did_not_remove_go(made, tmp_path):
    "It was killed between writing one and removing the oldest."
    go(made(), tmp_path, max_steps=3, checkpoint_every=1, keep_checkpoints=9)
    places = tmp_path / 'checkpoints'
    assert [c.step for c in checkpoints(places)] == [1, 2, 3]
    damaged = next((places / 'step-00000003').glob('*.safetensors'))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run = begin(made(), tmp_path, max_steps=4, keep_checkpoints=1)
    with pytest.warns(UserWarning, match='step 3 not used'):
        restore(run)
    assert run.step == 2
    assert [c.step for c in checkpoints(places)] == [2]
