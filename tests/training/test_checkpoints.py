"""Checkpoints: states survive bit for bit, a crash at any moment leaves a whole one, damage is
found and named."""

import builtins
import os
import pickle
import resource
import shutil
import signal
import warnings
from contextlib import suppress

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import verify_manifest
from balanceddpo.training.checkpoints import (
    checkpoints,
    load_state,
    newest_checkpoint,
    pack,
    random_state,
    restore_random_state,
    save_state,
    set_aside,
    write_checkpoint,
)


def parts(step):
    "Three parts whose values tell the step they belong to."
    return {
        'policy': {'w': torch.full((64,), float(step))},
        'optimizer': {
            'state': {0: {'step': torch.tensor(float(step))}},
            'param_groups': [{'lr': 1e-6}],
        },
        'progress': {'step': step, 'window': []},
    }


def whole(checkpoint):
    "Whether every part is there and belongs to the checkpoint's step."
    verify_manifest(checkpoint.folder)
    return (
        (checkpoint.load('policy')['w'] == checkpoint.step).all()
        and checkpoint.load('progress')['step'] == checkpoint.step
        and checkpoint.load('optimizer')['state'][0]['step'] == checkpoint.step
    )


# --- states


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize('kind', ['adamw', 'adafactor'])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, kind):
    from transformers.optimization import Adafactor

    make = {
        'adamw': lambda p: torch.optim.AdamW(p, lr=0.1),
        'adafactor': lambda p: Adafactor(p, lr=0.1, scale_parameter=False, relative_step=False),
    }[kind]

    def steps(p, optimizer, n):
        for _ in range(n):
            ((p**3).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()

    straight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    optimizer = make([straight])
    steps(straight, optimizer, 5)
    first = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    optimizer = make([first])
    steps(first, optimizer, 2)
    save_state(optimizer.state_dict(), tmp_path / 'o.safetensors')
    loaded = load_state(tmp_path / 'o.safetensors')
    assert equal(loaded, optimizer.state_dict())
    second = torch.nn.Parameter(first.detach().clone())
    optimizer = make([second])
    optimizer.load_state_dict(loaded)
    steps(second, optimizer, 3)
    assert torch.equal(second, straight)


def test_shapes_and_types_survive(tmp_path):
    odd = {
        'floats': [1e-6, float('inf'), -0.0, 0.1 + 0.2],
        'n': 2**70,
        'none': None,
        'yes': True,
        'nested': ((), [], {}, {3: (1, 'é')}),
        'scalar': torch.tensor(2.5),
        'bf16': torch.randn(3).bfloat16(),
        'bytes': torch.arange(5, dtype=torch.uint8),
        'view': torch.arange(12.0).view(3, 4).t(),
        'empty': torch.zeros(0, 4),
    }
    save_state(odd, tmp_path / 's.safetensors')
    assert equal(load_state(tmp_path / 's.safetensors'), odd)
    assert str(load_state(tmp_path / 's.safetensors')['floats'][2]) == '-0.0'


def test_two_tensors_of_one_dotted_name_are_refused():
    with pytest.raises(TypeError, match='a.b'):
        pack({'a.b': torch.zeros(1), 'a': {'b': torch.ones(1)}}, {})


def test_a_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'canary'),))

    (tmp_path / 'policy.safetensors').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match='policy.safetensors'):
        load_state(tmp_path / 'policy.safetensors')
    torch.save({'w': Bomb()}, tmp_path / 'other.safetensors')
    with pytest.raises(InputError, match='other.safetensors'):
        load_state(tmp_path / 'other.safetensors')
    assert not (tmp_path / 'canary').exists()


def test_random_streams_go_on(tmp_path):
    import random

    state = random_state()
    expected = (random.random(), torch.rand(3))
    save_state(state, tmp_path / 'r.safetensors')
    restore_random_state(load_state(tmp_path / 'r.safetensors'))
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(3), expected[1])


def test_streams_of_other_devices_are_left_and_the_rest_is_restored():
    import random

    state = random_state() | {'cuda': [torch.zeros(16, dtype=torch.uint8)] * 9}
    expected = (random.random(), torch.rand(3))
    with pytest.warns(UserWarning, match='9 CUDA devices, and here are'):
        restore_random_state(state)
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(3), expected[1])


@pytest.mark.parametrize(
    'spoil',
    [
        lambda s: s.pop('torch'),
        lambda s: s.update(torch=torch.zeros(3, dtype=torch.uint8)),
        lambda s: s.pop('cuda'),
        lambda s: s.update(python=(3, (1, 2), None)),
    ],
)
def test_missing_or_garbled_streams_are_an_error(spoil):
    state = random_state()
    spoil(state)
    with pytest.raises(InputError):
        restore_random_state(state)


# --- crashes


class Crash(BaseException):
    pass


DISK_CALLS = [
    (os, 'replace'),
    (os, 'fsync'),
    (os, 'mkdir'),
    (os, 'open'),
    (os, 'unlink'),
    (os, 'rmdir'),
    (builtins, 'open'),
]


def at_call(n, act, monkeypatch):
    "Make the n-th disk call from now on `act()` first; returns the counter."
    count = [0]

    def wrapped(real):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == n:
                act()
            return real(*args, **kwargs)

        return call

    for module, name in DISK_CALLS:
        monkeypatch.setattr(module, name, wrapped(getattr(module, name)))
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, 'save_file', wrapped(safetensors.torch.save_file))
    return count


@pytest.fixture
def quick_disk(monkeypatch):
    """No real flushes: what is tested is the order of the calls, and a killed process keeps what it
    has written."""
    monkeypatch.setattr(os, 'fsync', lambda fd: None)


def disk_calls(tmp_path, keep):
    "The number of disk calls of a save, and a folder with two checkpoints to copy."
    with pytest.MonkeyPatch.context() as patch:
        for step in (1, 2):
            write_checkpoint(tmp_path / 'before', step, parts(step), keep=keep)
        shutil.copytree(tmp_path / 'before', tmp_path / 'count')
        count = at_call(-1, None, patch)
        write_checkpoint(tmp_path / 'count', 3, parts(3), keep=keep)
    return count[0]


def check_after_crash(folder):
    "A whole checkpoint is there, at most one interval old, and saving goes on."
    found = newest_checkpoint(folder)
    assert found.step in (2, 3)
    assert whole(found)
    # nothing partial has a checkpoint's name
    for left in checkpoints(folder):
        verify_manifest(left.folder)
    write_checkpoint(folder, 3, parts(3), keep=1)
    write_checkpoint(folder, 4, parts(4), keep=1)
    assert newest_checkpoint(folder).step == 4
    assert sorted(p.name for p in folder.iterdir()) == ['step-00000004']
    return found.step


@pytest.mark.parametrize('keep', [1, 2])
def test_an_error_at_every_disk_call(tmp_path, keep, quick_disk):
    n, seen = disk_calls(tmp_path, keep), set()
    assert n > 15
    for k in range(1, n + 1):
        folder = tmp_path / str(k)
        shutil.copytree(tmp_path / 'before', folder)

        def crash():
            raise Crash

        with pytest.MonkeyPatch.context() as patch:
            at_call(k, crash, patch)
            with suppress(Crash):
                write_checkpoint(folder, 3, parts(3), keep=keep)
        seen.add(check_after_crash(folder))
        shutil.rmtree(folder)
    assert seen == {2, 3}


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_kill_at_every_disk_call(tmp_path, quick_disk):
    n, seen = disk_calls(tmp_path, 1), set()
    for k in range(1, n + 1):
        folder = tmp_path / str(k)
        shutil.copytree(tmp_path / 'before', folder)
        if not (child := os.fork()):
            try:
                at_call(k, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
                write_checkpoint(folder, 3, parts(3), keep=1)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        seen.add(check_after_crash(folder))
        shutil.rmtree(folder)
    assert seen == {2, 3}


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_full_disk_is_loud_and_harmless(tmp_path):
    write_checkpoint(tmp_path / 'run', 1, parts(1), keep=1)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
            write_checkpoint(tmp_path / 'run', 2, {'policy': {'w': torch.zeros(4096)}}, keep=1)
        except OSError as e:
            os.write(writer, str(e).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as f:
        message = f.read()
    assert 'policy.safetensors' in message
    assert '16384 bytes' in message
    assert [c.step for c in checkpoints(tmp_path / 'run')] == [1]
    assert whole(newest_checkpoint(tmp_path / 'run'))


# --- damage


def empty(p):
    p.write_bytes(b'')


def half(p):
    p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])


def flip(p):
    content = bytearray(p.read_bytes())
    content[len(content) // 2] ^= 1
    p.write_bytes(content)


def missing(p):
    p.unlink()


FILES = ('policy.safetensors', 'optimizer.safetensors', 'progress.safetensors', 'manifest.json')
# its hashes: the next test
HARM = [
    (name, spoil)
    for name in FILES
    for spoil in (empty, half, flip, missing)
    if (name, spoil) != ('manifest.json', flip)
]


@pytest.mark.parametrize('name,spoil', HARM)
def test_a_damaged_newest_is_named_and_passed_over(tmp_path, name, spoil):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, parts(step), keep=3)
    spoil(tmp_path / 'step-00000003' / name)
    with pytest.warns(UserWarning, match=f'step 3 not used: .*step-00000003/{name}') as seen:
        found = newest_checkpoint(tmp_path)
    assert len(seen) == 1
    assert found.step == 2
    assert whole(found)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert newest_checkpoint(tmp_path).step == 2  # told once


def test_a_hash_in_the_manifest_is_compared(tmp_path):
    for step in (1, 2):
        write_checkpoint(tmp_path, step, parts(step))
    manifest = tmp_path / 'step-00000002' / 'manifest.json'
    text = manifest.read_text()
    sha = text.split('"sha256": "')[1][:64]
    manifest.write_text(text.replace(sha, sha[::-1]))
    with pytest.warns(UserWarning, match='step 2 not used'):
        assert newest_checkpoint(tmp_path).step == 1


def test_two_damaged_ones_are_both_passed_over(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, parts(step), keep=3)
    for step in (2, 3):
        flip(tmp_path / f'step-0000000{step}' / 'policy.safetensors')
    with pytest.warns(UserWarning) as seen:
        assert newest_checkpoint(tmp_path).step == 1
    assert len(seen) == 2


def test_nothing_whole_is_an_error_and_stays_as_it_is(tmp_path):
    for step in (1, 2):
        write_checkpoint(tmp_path, step, parts(step))
        half(tmp_path / f'step-0000000{step}' / 'policy.safetensors')
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*'))
    with pytest.raises(InputError, match='no checkpoint in .* is whole .*policy.safetensors'):
        newest_checkpoint(tmp_path)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*')) == before


def test_a_damaged_one_never_costs_a_good_one(tmp_path):
    """With keep=1 and a damaged checkpoint of a later step, the good one must not be the one that
    goes."""
    for step in (8, 12):
        write_checkpoint(tmp_path, step, parts(step), keep=2)
    flip(tmp_path / 'step-00000012' / 'policy.safetensors')
    with pytest.warns(UserWarning):
        assert newest_checkpoint(tmp_path).step == 8
    write_checkpoint(tmp_path, 10, parts(10), keep=1)
    assert [c.step for c in checkpoints(tmp_path)] == [10]
    assert whole(newest_checkpoint(tmp_path))
    write_checkpoint(tmp_path, 12, parts(12), keep=1)  # its place can be taken again
    assert whole(newest_checkpoint(tmp_path))
    assert newest_checkpoint(tmp_path).step == 12


def test_a_second_damage_of_one_step_replaces_the_first(tmp_path):
    for _ in range(2):
        for step in (1, 2):
            write_checkpoint(tmp_path, step, parts(step))
        set_aside(checkpoints(tmp_path)[-1])
    assert (tmp_path / 'step-00000002.damaged').is_dir()
    assert [c.step for c in checkpoints(tmp_path)] == [1]


def test_other_files_are_left_alone(tmp_path):
    for name in ('step-notes', 'notes.txt', 'step-00000001 (copy)'):
        (tmp_path / name).mkdir()
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, parts(step), keep=1)
    assert newest_checkpoint(tmp_path).step == 3
    assert {p.name for p in tmp_path.iterdir()} == {
        'step-notes',
        'notes.txt',
        'step-00000001 (copy)',
        'step-00000003',
    }


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000):
        write_checkpoint(tmp_path, step, parts(1), keep=2)
    assert newest_checkpoint(tmp_path).step == 100_000_000


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(InputError, match='keep_checkpoints'):
        write_checkpoint(tmp_path, 1, parts(1), keep=0)
    assert not list(tmp_path.iterdir())
