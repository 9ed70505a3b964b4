"""Two processes of one run, as torchrun starts them, on two machines that may share no disk: what
they train is what one process trains, and what does not fit is refused instead of mixed."""

import pytest
import torch
from accelerate import Accelerator
from two_processes import two_processes

from balanceddpo.core.errors import InputError
from balanceddpo.training import loop, resume
from balanceddpo.training.checkpoints import newest_checkpoint, pack
from balanceddpo.voting.labels import write_labels
from short_runs import go, metrics, same

RUN = dict(mode='lora', batch_size=5, refresh_every=2, max_steps=4)


@pytest.fixture(scope='module')
def together(made, tmp_path_factory):
    "The folder that two processes have shared for four steps, and what each said after each step."
    folder = tmp_path_factory.mktemp('together')
    ended = two_processes(made(), [folder / 'run'] * 2, **RUN)
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2][-2000:]
    said = [[line for line in out.splitlines() if 'after step' in line] for _, out, _ in ended]
    return folder / 'run', said


def test_two_processes_train_what_one_trains(made, together, tmp_path):
    "Batches of 5 are shared 3 to 2; after each step, and each refresh, both have the same bits."
    folder, (first, second) = together
    assert first == second
    assert len({*first}) == 4
    go(made(), tmp_path / 'one', **RUN)
    two, one = (newest_checkpoint(p / 'checkpoints') for p in (folder, tmp_path / 'one'))
    for part in ('policy', 'reference'):
        ours, alone = {}, {}
        assert pack(two.load(part), ours) == pack(one.load(part), alone)
        for name, v in alone.items():
            torch.testing.assert_close(ours[name], v, rtol=1e-4, atol=1e-6)
    for ours, alone in zip(metrics(folder), metrics(tmp_path / 'one'), strict=True):
        assert ours['loss'] == pytest.approx(alone['loss'], rel=1e-5)


def test_a_machine_without_the_checkpoint_goes_on_from_the_others(made, together, tmp_path):
    "Two machines without a shared disk: only the first one has checkpoints."
    nodes = [tmp_path / 'node 0' / 'run', tmp_path / 'node 1' / 'run']
    for steps in (2, 4):
        both = two_processes(made(), nodes, **RUN | dict(max_steps=steps))
        assert [code for code, _, _ in both] == [0, 0], both[1][2][-2000:]
    assert newest_checkpoint(nodes[1] / 'checkpoints') is None
    resumed, straight = (newest_checkpoint(p / 'checkpoints') for p in (nodes[0], together[0]))
    assert resumed.step == straight.step == 4
    for part in ('policy', 'reference', 'optimizer'):
        assert same(resumed.load(part), straight.load(part)), part


def test_weights_that_processes_disagree_on_are_not_published(made, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'take_steps', lambda run, progress: None)
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda self: 2))
    monkeypatch.setattr(resume, 'gather_object', lambda mine: [*mine, 'another digest'])
    for module in (loop, resume):
        monkeypatch.setattr(module, 'told_by_first', lambda accelerator, value: value)
    monkeypatch.setattr(resume, 'check_same_inputs', lambda accelerator, inputs: None)
    with pytest.raises(InputError, match='process 1 has trained other weights than process 0'):
        go(made(), tmp_path / 'run', **RUN)
    assert not (tmp_path / 'run' / 'model').exists()


def test_processes_with_other_labels_are_refused(made, tmp_path):
    inputs = made()
    other = inputs.labels.assign(w0=inputs.labels.w1, w1=inputs.labels.w0)
    files = [inputs.file, tmp_path / 'other.parquet']
    write_labels(files[1], other, inputs.label_config)
    both = two_processes(inputs, [tmp_path / 'a', tmp_path / 'b'], files, **RUN)
    assert all(code for code, _, _ in both)
    assert all('process 1 would train with labels.w0' in err for _, _, err in both)
    assert not (tmp_path / 'a' / 'checkpoints').exists()
