"""Runs of which each process holds a part (`sharding` fsdp), in two processes on a CPU: they train
what processes with all weights train, and go on in any number of them."""

import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from two_processes import job, start_two

from balanceddpo.core.errors import InputError
from balanceddpo.training.checkpoints import newest_checkpoint, save_shards
from balanceddpo.training.loop import micro_batch_ends
from balanceddpo.training.run import check_shares, trained_state
from short_runs import begin, go, metrics, same, settings

# Resumed runs stop after the first step, where the reference is not the policy. The gradient is
# clipped so far that Adam's epsilon counts: a gradient that is rounding alone makes no step.
RUN = dict(max_steps=3, refresh_every=2, learning_rate=1e-3, beta=50.0, clip=1e-5)
WHOLE = dict(mode='full')
PARTS = dict(mode='full', sharding='fsdp')
LORA = dict(mode='lora', refresh_alpha=0.5, ema=0.2)
# name -> what both processes train, one after the other
TOGETHER = {
    'full, whole': [WHOLE],
    'full': [PARTS],
    'lora, whole': [LORA],
    'lora': [LORA | dict(sharding='fsdp')],
    'stopped': [PARTS | dict(max_steps=1), PARTS],
    'were two': [PARTS | dict(max_steps=1)],
    'were one': [PARTS],
    'shared 3 to 2': [PARTS | dict(max_steps=1, batch_size=5)],
}


@pytest.fixture(scope='module')
def runs(made, tmp_path_factory):
    "The folder of all runs, and what either process said of each: name -> lines."
    folder, inputs = tmp_path_factory.mktemp('runs'), made()
    go(inputs, folder / 'were one', **RUN | PARTS | dict(max_steps=1))
    jobs = [
        job(inputs, folder / name, **RUN | changes)
        for name, steps in TOGETHER.items()
        for changes in steps
    ]
    apart = RUN | PARTS | dict(may_fail=True)
    mine = [[*jobs, job(inputs, folder / f'disk {i}' / 'run', **apart)] for i in (0, 1)]
    ended = start_two(*mine)
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2][-2000:] + ended[1][2][-2000:]
    said = []
    for _, out, _ in ended:
        parts = [part.splitlines() for part in out.split(f'run {folder}/')[1:]]
        said.append({name: lines for name, *lines in parts})
    # and one process alone
    go(inputs, folder / 'one', **RUN | PARTS)
    go(inputs, folder / 'were two', **RUN | PARTS)
    return folder, said


def weights(out, part='policy'):
    "Name -> tensor of a part of the newest checkpoint of a run."
    return newest_checkpoint(out / 'checkpoints').load(part)


def apart(out, other, start, part='policy'):
    "How far two runs ended from each other, relative to how far the second went from `start`."
    ours, theirs = weights(out, part), weights(other, part)
    assert ours.keys() == theirs.keys() == start.keys()

    def size(difference):
        return torch.cat([difference(n).flatten() for n in start]).norm()

    moved = size(lambda n: theirs[n] - start[n])
    return (size(lambda n: ours[n] - theirs[n]) / moved).item()


def start_of(inputs, out, **changes):
    "The weights from which a run starts."
    run = begin(inputs, out, **RUN | changes)
    return {name: p.detach().clone() for name, p in trained_state(run).items()}


@pytest.mark.parametrize(('mode', 'changes'), [('full', WHOLE), ('lora', LORA)])
def test_parts_train_what_whole_weights_train(made, runs, tmp_path, mode, changes):
    "With a refresh within the run, whole or half way."
    folder, _ = runs
    start = start_of(made(), tmp_path / 'start', **changes)
    assert apart(folder / mode, folder / f'{mode}, whole', start) < 3e-5  # rounding
    if mode == 'lora':
        assert apart(folder / mode, folder / f'{mode}, whole', start, 'average') < 3e-5
    rows = metrics(folder / mode), metrics(folder / f'{mode}, whole')
    assert [row['refreshed'] for row in rows[0]] == [False, True, False]
    for ours, theirs in zip(*rows, strict=True):
        assert ours['grad_norm'] > RUN['clip']
        for name in ('loss', 'grad_norm', 'distance'):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-9), name


def test_each_process_holds_half_of_policy_reference_and_optimizer(runs):
    _, said = runs
    for mode in ('full', 'lora'):
        first, second = (process[mode] for process in said)
        whole = said[0][f'{mode}, whole']
        assert len(first) == len(second) == len(whole) == 6

        def held(line):
            return [int(n) for n in line.removeprefix('holds ').strip('[]').split(', ')]

        for i in range(0, 6, 2):  # what both put together is the same
            assert first[i] == second[i]
            assert first[i].startswith('after step')
        for i in range(1, 6, 2):
            shares = zip(held(first[i]), held(second[i]), held(whole[i]), strict=True)
            assert all(2 * a == 2 * b == all_ for a, b, all_ in shares)


def test_shares_of_other_sizes_are_cut_into_as_many_micro_batches(made, runs, tmp_path):
    "Of 5 pairs a process has 3 and the other 2; of 17 they have 9 and 8, in two pieces each."
    folder, _ = runs
    changes = RUN | WHOLE | dict(max_steps=1, batch_size=5)
    go(made(), tmp_path / 'one', **changes)
    (ours,), (alone,) = metrics(folder / 'shared 3 to 2'), metrics(tmp_path / 'one')
    for name in ('grad_norm', 'winner_error', 'distance'):
        assert ours[name] == pytest.approx(alone[name], rel=1e-5), name
    run = SimpleNamespace(
        config=settings(made(), batch_size=17, micro_batch_size=8),
        accelerator=SimpleNamespace(num_processes=2),
        sharded=True,
    )
    assert [micro_batch_ends(run, n) for n in (9, 8)] == [[0, 4, 9], [0, 4, 8]]
    run.sharded = False
    assert [micro_batch_ends(run, n) for n in (9, 8)] == [[0, 8, 9], [0, 8]]
    config = settings(made(), batch_size=5, micro_batch_size=1, sharding='fsdp')
    with pytest.raises(InputError, match='5 pairs cannot be shared so by 2'):
        check_shares(config, 2)
    check_shares(config, 5)


def test_a_run_goes_on_in_two_processes_and_in_one(made, runs, tmp_path):
    folder, _ = runs
    start = start_of(made(), tmp_path / 'start', **WHOLE)
    for part in ('policy', 'reference', 'optimizer'):
        assert same(weights(folder / 'stopped', part), weights(folder / 'full', part)), part
    assert apart(folder / 'were two', folder / 'full', start) < 1e-5
    assert apart(folder / 'were one', folder / 'one', start) < 1e-5
    # one process alone has nobody to share with
    assert (folder / 'one/checkpoints/step-00000003/policy.safetensors').is_file()


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_the_result_is_a_plain_model(runs, mode):
    folder, _ = runs
    ours, plain = folder / mode / 'model', folder / f'{mode}, whole' / 'model'
    files = [sorted(p.relative_to(m) for p in m.rglob('*.*')) for m in (ours, plain)]
    assert files[0] == files[1]
    name = 'pytorch_lora_weights' if mode == 'lora' else 'unet/diffusion_pytorch_model'
    result, like = (load_file(m / f'{name}.safetensors') for m in (ours, plain))
    assert {n: v.shape for n, v in result.items()} == {n: v.shape for n, v in like.items()}
    trained = weights(folder / mode)
    assert sum(v.numel() for v in result.values()) == sum(v.numel() for v in trained.values())
    if mode == 'full':
        assert same(result, trained)
        assert (ours / 'unet/config.json').read_bytes() == (plain / 'unet/config.json').read_bytes()


def test_a_damaged_part_is_not_used(runs, tmp_path):
    folder, _ = runs
    place = shutil.copytree(folder / 'stopped' / 'checkpoints', tmp_path / 'checkpoints')
    newest = place / 'step-00000003'
    second = sorted((newest / 'optimizer').glob('*.safetensors'))[1]
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with pytest.warns(UserWarning, match='step 3 not used: .*optimizer.*going on from step 1'):
        assert newest_checkpoint(place).step == 1
    assert sorted(p.name for p in place.glob('step-*')) == [
        'step-00000001',
        'step-00000003.damaged',
    ]
    min((place / 'step-00000001' / 'policy').glob('*.safetensors')).unlink()
    with pytest.raises(InputError, match='no checkpoint in .* is whole .*policy.* is missing'):
        newest_checkpoint(place)


def test_a_part_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'policy').write_text('in the way')
    dist.init_process_group('gloo', rank=0, world_size=1, store=dist.HashStore())
    first = SimpleNamespace(is_main_process=True)
    try:
        with pytest.raises(OSError, match='process 0 cannot write its part of .*policy'):
            save_shards(first, {'w': torch.ones(2)}, tmp_path / 'policy')
    finally:
        dist.destroy_process_group()


def test_processes_that_do_not_see_one_disk_are_told(runs):
    folder, said = runs
    for process, lines in enumerate(said):
        assert len(lines[f'disk {process}/run']) == 1
        assert 'refused process 1 does not see' in lines[f'disk {process}/run'][0]
        assert not (folder / f'disk {process}' / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize(
    'changes',
    [
        dict(optimizer='adafactor'),
        dict(precision='fp16'),
        dict(method='smpo'),
        dict(compiled='blocks'),
        dict(channels_last=True),
    ],
    ids=str,
)
def test_what_a_model_in_parts_cannot_do_is_refused(made, changes):
    name = 'noise' if 'method' in changes else min(changes)
    with pytest.raises(InputError, match=f'sharding fsdp is not for {name} .*: set {name} to'):
        settings(made(), sharding='fsdp', **changes)
    settings(made(), **changes)


@pytest.mark.parametrize(
    ('way', 'said'), [('DEEPSPEED', 'is not taken'), ('FSDP', '--sharding fsdp')]
)
def test_a_launchers_way_to_cut_a_model_is_refused_at_once(made, tmp_path, monkeypatch, way, said):
    monkeypatch.setenv(f'ACCELERATE_USE_{way}', 'true')
    with pytest.raises(InputError, match=said):
        go(made(), tmp_path / 'run', **PARTS)
    assert not (tmp_path / 'run').exists()
