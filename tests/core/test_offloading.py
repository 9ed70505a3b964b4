"""Weights that lie in main memory: each layer has its own on the device while it runs, and nothing
else is there or stays there."""

import copy

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from balanceddpo.core import offloading
from balanceddpo.core.offloading import in_main_memory, most_at_once, weights_as_needed
from balanceddpo.models.families import load_family
from balanceddpo.models.shapes import folder_shapes, inputs_on_meta
from tiny_models import FLOW_KINDS, KINDS, SIZE, tiny_folder

META = torch.device('meta')


class OneDevice(TorchDispatchMode):
    "Every operation but a copy has all its tensors on one device, as a GPU asks for."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()]
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.detach.default)
        assert moves or len({x.device for x in there}) < 2, func
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    return {kind: tiny_folder(root / kind, kind) for kind in (*KINDS, *FLOW_KINDS)}


def family_in_main_memory(folder):
    """A family whose denoiser's weights are on the CPU and its buffers on 'meta', and inputs there.
    Shapes alone: what is computed is lost."""
    family = load_family(folder, device='cpu', components=('denoiser',))
    family.model.requires_grad_(False).eval()
    for module in family.model.modules():
        for name, b in module._buffers.items():
            module._buffers[name] = b if b is None else b.to(META)
    return family, inputs_on_meta(folder_shapes(folder), 2, SIZE)


@pytest.mark.parametrize('kind', [*KINDS, *FLOW_KINDS])
def test_every_operation_of_a_denoiser_finds_all_it_needs_on_the_device(folders, kind):
    family, inputs = family_in_main_memory(folders[kind])
    model, weights = family.model, list(family.model.parameters())
    with weights_as_needed(model, weights, META), OneDevice(), torch.no_grad():
        out = family.predict(model, *inputs, SIZE)
    assert out.device == META
    assert all(p is q for p, q in zip(model.parameters(), weights, strict=True))
    assert {p.device.type for p in model.parameters()} == {'cpu'}
    # a weight that nobody brings is noticed
    left = weights_as_needed(model, weights[:-1], META)
    with pytest.raises((AssertionError, RuntimeError)), left, OneDevice(), torch.no_grad():
        family.predict(model, *inputs, SIZE)


def largest_by_names(model):
    "The same as `most_at_once`, from the names of weights: a module's own and those above it."
    own = {}
    for name, p in model.named_parameters():
        place = name.rpartition('.')[0]
        own[place] = own.get(place, 0) + p.numel() * p.element_size()
    above = {
        place: sum(
            n for other, n in own.items() if not other or f'{place}.'.startswith(f'{other}.')
        )
        for place in own
    }
    return max(above.values())


@pytest.fixture
def fetched(monkeypatch):
    """A device of its own in main memory: what is fetched is another tensor. The bytes that were
    there at each fetch, and the storages."""
    told, storages = [], []

    def clone(weight, device):
        new = weight.detach().clone()
        storages.append((StorageWeakRef(new.untyped_storage()), new.untyped_storage().nbytes()))
        told.append(sum(n for there, n in storages if not there.expired()))
        return new

    monkeypatch.setattr(offloading, 'on_device', clone)
    return told, storages


@pytest.mark.parametrize('kind', ['sd15', 'sdxl', 'sd35'])
def test_no_more_is_on_the_device_than_is_counted_and_nothing_stays(folders, fetched, kind):
    told, storages = fetched
    family = load_family(folders[kind], device='cpu', components=('denoiser',))
    model = family.model.requires_grad_(False).eval()
    inputs = [
        torch.randn(x.shape) if x.is_floating_point() else torch.zeros(x.shape, dtype=x.dtype)
        for x in inputs_on_meta(folder_shapes(folders[kind]), 2, SIZE)[:2]
    ]
    texts = inputs_on_meta(folder_shapes(folders[kind]), 2, SIZE)[2]
    texts = {name: torch.randn(text.shape) for name, text in texts.items()}
    with torch.no_grad():
        expected = family.predict(model, *inputs, texts, SIZE)
        with weights_as_needed(model, model.parameters(), torch.device('cpu')):
            found = family.predict(model, *inputs, texts, SIZE)
    assert torch.equal(found, expected)
    assert max(told) == most_at_once(model) == largest_by_names(model)
    assert len(storages) >= len(list(model.parameters()))
    assert all(there.expired() for there, _ in storages)


def test_after_an_error_or_a_ctrl_c_all_is_as_before():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    weights = list(model.parameters())
    for error in (ValueError, KeyboardInterrupt):

        def fail(*_, error=error):
            raise error

        handle = model[2].register_forward_hook(fail, prepend=True)
        with pytest.raises(error), weights_as_needed(model, weights, META):
            assert model[2].weight is weights[2]
            model(torch.empty(1, 2, device=META))
        handle.remove()
        assert all(p is q for p, q in zip(model.parameters(), weights, strict=True))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copy_in_main_memory_has_the_layout_of_the_weight_and_a_place_of_its_own():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    held = in_main_memory(weight)
    assert torch.equal(held, weight)
    assert held.stride() == weight.stride() != torch.empty(4, 3, 2, 2).stride()
    assert held.data_ptr() != weight.data_ptr()
    assert not held.requires_grad
    # and so a deep copy takes it as it is
    assert copy.deepcopy([weight], {id(weight): held})[0] is held
