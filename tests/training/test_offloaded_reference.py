"""A reference in main memory: a run is the same to the bit with it and without. On a CPU all that a
GPU would do is done; on a GPU nobody has run it yet."""

import pytest
import torch
from torch import nn

from balanceddpo.core import offloading
from balanceddpo.core.errors import InputError
from balanceddpo.training import reference as references
from balanceddpo.training.reference import CopyReference, blend_, blend_apart_, make_reference
from random_networks import TINY, make_unet
from short_runs import assert_equal_runs, begin, go, metrics

RUN = dict(mode='full', max_steps=4, checkpoint_every=1, refresh_every=2, refresh_alpha=0.6)


@pytest.fixture
def elsewhere(monkeypatch):
    "What the run does where main memory is not the device's: weights are copied, and blended so."
    fetched = []

    def clone(weight, device):
        return weight.detach().clone()

    def fetch(weight, device):
        fetched.append(weight)
        return clone(weight, device)

    def blend(reference, policy, alpha=1.0):
        with torch.no_grad():
            blend_apart_(reference, policy, alpha)

    monkeypatch.setattr(offloading, 'on_device', fetch)
    monkeypatch.setattr(references, 'on_device', clone)
    monkeypatch.setattr(references, 'blend_', blend)
    return fetched


@pytest.mark.parametrize(
    ('kind', 'changes'),
    [
        ('sd15', dict(ema=0.5)),
        ('sd15', dict(precision='bf16', channels_last=True, gradient_checkpointing=True)),
        ('sdxl', dict(refresh_alpha=1.0)),
    ],
    ids=['ema', 'bf16', 'sdxl'],
)
def test_a_run_is_the_same_to_the_bit(made, tmp_path, elsewhere, monkeypatch, kind, changes):
    """Also one that stops and goes on, with the reference now here and now there; the last refresh
    lies behind the checkpoint that the fourth step starts from."""
    inputs, changes = made(kind), RUN | changes
    with monkeypatch.context() as patch:
        patch.setattr(references, 'blend_', blend_)
        go(inputs, tmp_path / 'a', **changes)
    assert not elsewhere
    for steps, offload in ((1, True), (2, False), (3, True), (4, True)):
        before = len(elsewhere)
        go(inputs, tmp_path / 'b', **changes | dict(max_steps=steps, offload_reference=offload))
        assert (len(elsewhere) > before) == offload
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [row['refreshed'] for row in metrics(tmp_path / 'b')] == [False, True, False, True]


def test_the_weights_are_in_main_memory_but_while_the_reference_predicts(made, tmp_path, elsewhere):
    run = begin(made(), tmp_path / 'run', **RUN, offload_reference=True)
    model, held = run.reference.model, run.reference.tensors()
    assert held.keys() == dict(run.policy.named_parameters()).keys()  # all are trained
    assert not {t.data_ptr() for t in held.values()} & {p.data_ptr() for p in run.parameters}
    names, used = {id(m): n for n, m in model.named_modules()}, set()

    def look(module, args, out):
        for name, p in module.named_parameters(recurse=False):
            name = f'{names[id(module)]}.{name}'.lstrip('.')
            used.add(name)
            assert p is not held[name]
            assert torch.equal(p, held[name])

    def predict(m):
        for module in m.modules():
            module.register_forward_hook(look, prepend=True)
        return m(torch.randn(2, 4, 4, 4), torch.tensor([1, 2]), torch.randn(2, 5, 32)).sample

    run.reference.predict(predict)
    assert used == held.keys()
    assert all(run.reference.tensors()[n] is t for n, t in held.items())


def test_what_waits_for_another_device_asks_for_no_gradient():
    "There autocast would keep a copy of each in half precision: those of all layers at once."
    reference = CopyReference(make_unet(TINY), offload=True)
    flags = []

    def look(module, args, out):
        flags.extend((p.device.type, p.requires_grad) for p in module.parameters(recurse=False))

    def predict(model):
        for module in model.modules():
            module.register_forward_hook(look, prepend=True)
        inputs = torch.empty(2, 4, 4, 4), torch.tensor([1, 2]), torch.empty(2, 5, 32)
        return model(*(x.to(reference.device) for x in inputs)).sample

    for device, asks in (('cpu', True), ('meta', False)):
        reference.device = torch.device(device)
        flags.clear()
        assert reference.predict(predict).device.type == device
        assert set(flags) >= {(device, asks)}
        assert (device, not asks) not in flags
        assert not any(t.requires_grad for t in reference.tensors().values())


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.5, 0.6, 1.0])
def test_it_is_refreshed_to_the_same_bits(elsewhere, alpha):
    g = torch.Generator().manual_seed(0)
    ref, pol = ([torch.randn(n, generator=g) for n in (7, 1000)] for _ in range(2))
    other = [t.clone() for t in ref]
    where = [t.data_ptr() for t in other]
    blend_(ref, pol, alpha)
    blend_apart_(other, pol, alpha)
    assert all(map(torch.equal, ref, other))
    assert [t.data_ptr() for t in other] == where


def test_a_state_is_written_only_when_nothing_is_on_its_way(monkeypatch):
    reference, seen = CopyReference(nn.Linear(1, 1), offload=True), []
    before = reference.model.weight.item()
    monkeypatch.setattr(
        references,
        'wait_for_fetches',
        lambda device: seen.append((device.type, reference.model.weight.item())),
    )
    reference.load_state_dict({'weight': torch.tensor([[before + 1]]), 'bias': torch.zeros(1)})
    assert seen == [('cpu', before)]
    assert reference.model.weight.item() == before + 1


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (
            dict(mode='lora'),
            'not for mode lora, .* set mode to full, or offload_reference to false',
        ),
        (dict(method='mapo', refresh_every=0), 'mapo has no reference that could be offloaded'),
        (dict(sharding='fsdp'), 'not for sharding fsdp, .* set sharding to no, or'),
        (dict(compiled='blocks'), 'not for compiled blocks, .* set compiled to no, or'),
    ],
    ids=['lora', 'no reference', 'fsdp', 'compiled'],
)
def test_where_it_would_do_nothing_or_harm_it_is_refused_at_once(made, tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        go(made(), tmp_path / 'run', **RUN | changes | dict(offload_reference=True))
    assert not (tmp_path / 'run').exists()


def test_an_adapter_is_not_offloaded():
    policy = nn.Linear(1, 1)
    policy.peft_config = {'default': None}
    with pytest.raises(InputError, match='there is nothing to offload'):
        make_reference(policy, offload=True)
