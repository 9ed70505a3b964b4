"""The memory that is counted of a step is what autograd keeps of a real one."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from balanceddpo.core.devices import pick_dtype
from balanceddpo.models.families import load_family, lora_targets
from balanceddpo.models.shapes import folder_shapes, inputs_on_meta, published_shapes
from balanceddpo.training.config import TrainConfig
from balanceddpo.training.memory import (
    AsOnDevice,
    Kept,
    activations,
    counted_memory,
    memory_of_step,
    prepare_policy,
)
from tiny_models import KINDS, SIZE, tiny_folder

CASES = [(kind, mode, p) for kind in KINDS for mode in ('full', 'lora') for p in ('fp32', 'bf16')]
CASES += [('sd3', 'lora', 'fp32'), ('flux', 'lora', 'fp32'), ('flux', 'full', 'fp32')]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    return {kind: tiny_folder(root / kind, kind) for kind in (*KINDS, 'sd3', 'flux')}


def settings(folder, mode, precision='fp32', **more):
    return TrainConfig(
        str(folder),
        mode=mode,
        precision=precision,
        resolution=SIZE,
        micro_batch_size=3,
        lora_targets=lora_targets(folder),
        **more,
    )


def real_policy(folder, config):
    "The family with its denoiser as a run of `config` trains it, on the CPU."
    dtype = config.precision if config.mode == 'lora' else 'fp32'
    family = load_family(folder, dtype, 'cpu', components=('denoiser',))
    prepare_policy(family.model, config, torch.device('cpu'))
    return family


def real_inputs(folder, config):
    shapes = folder_shapes(folder)
    noisy, timesteps, texts = inputs_on_meta(shapes, 2 * config.micro_batch_size, SIZE)
    texts = {name: torch.randn(text.shape) for name, text in texts.items()}
    return torch.randn(noisy.shape), torch.zeros(len(timesteps), dtype=torch.int64), texts


def real_bytes(folder, config):
    "What autograd keeps of a forward pass on the CPU, without the weights."
    family = real_policy(folder, config)
    model, (noisy, timesteps, texts) = family.model, real_inputs(folder, config)
    kept, half = Kept([*model.parameters(), *model.buffers()]), config.precision != 'fp32'
    with torch.autocast('cpu', pick_dtype(config.precision)) if half else nullcontext():
        kept.during(family.predict, model, noisy, timesteps, texts, SIZE)
    return kept.bytes


def shapes_of(folder, config):
    "The same on the device 'meta'."
    family = folder_shapes(folder)
    with torch.device('meta'):
        if config.mode == 'lora':
            torch.nn.Module.to(family.model, pick_dtype(config.precision))
        prepare_policy(family.model, config, torch.device('meta'))
    return family


def counted_bytes(folder, config):
    "What autograd keeps of a forward pass on the device 'meta', without the weights."
    family = shapes_of(folder, config)
    model, inputs = family.model, inputs_on_meta(family, 2 * config.micro_batch_size, SIZE)
    kept = Kept([*model.parameters(), *model.buffers()])
    with AsOnDevice('cpu', pick_dtype(config.precision), model.parameters()):
        kept.during(family.predict, model, *inputs, SIZE)
    return kept.bytes


@pytest.fixture
def plain(monkeypatch):
    "No linear layers by oneDNN, whose own function keeps other things."
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', 'plain')


@pytest.mark.parametrize(('kind', 'mode', 'precision'), CASES)
def test_what_is_counted_is_what_is_kept(folders, plain, kind, mode, precision):
    config = settings(folders[kind], mode, precision)
    # in half precision the CPU has the statistics of its norms in other types than other devices
    room = 0.005 if precision == 'bf16' else 0.0
    counted = counted_bytes(folders[kind], config)
    assert counted == pytest.approx(real_bytes(folders[kind], config), rel=room, abs=0)
    found = activations(shapes_of(folders[kind], config), config, 'cpu')
    # the copies of weights that autocast makes are counted apart, also those that are not kept
    assert found.kept <= counted <= found.kept + found.copies
    assert (found.copies > 0) == (precision == 'bf16')
    assert found.made_again == 0


@pytest.mark.parametrize('kind', ['sd15', 'sdxl'])
def test_with_checkpoints_what_goes_into_blocks_is_counted_and_the_largest_inside(
    folders, plain, kind
):
    without = settings(folders[kind], 'full')
    config = settings(folders[kind], 'full', gradient_checkpointing=True)
    found = activations(shapes_of(folders[kind], config), config, 'cpu')
    all_kept = activations(shapes_of(folders[kind], without), without, 'cpu').kept
    assert found.kept == real_bytes(folders[kind], config)
    assert found.kept < found.kept + found.made_again < all_kept


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_weights_gradients_and_moments_are_those_of_a_run(folders, mode):
    config = settings(folders['sd15'], mode, optimizer='adamw')
    model = real_policy(folders['sd15'], config).model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    found = memory_of_step(folder_shapes(folders['sd15']), config, 'cpu')
    assert found.weights == 4 * (everything + trained)  # the reference has the others with it
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    assert found.copies == 0
    alone = settings(folders['sd15'], mode, method='mapo', ema=0.9)
    found = memory_of_step(folder_shapes(folders['sd15']), alone, 'cpu')
    assert found.weights == 4 * (everything + trained)  # no reference, but an average


def test_a_reference_in_main_memory_has_one_layer_on_the_gpu(folders):
    config = settings(folders['sd15'], 'full', offload_reference=True, ema=0.9)
    model = real_policy(folders['sd15'], config).model
    layers = [list(m.parameters(recurse=False)) for m in model.modules()]
    largest = max(sum(4 * p.numel() for p in own) for own in layers)
    n = sum(p.numel() for p in model.parameters())
    found = memory_of_step(folder_shapes(folders['sd15']), config, 'cuda')
    assert found.weights == 4 * n + 4 * n + largest  # policy, average, a layer of the reference
    powers = [2**k for k in range(40)]
    rounded = [min(k for k in powers if k >= 4 * p.numel()) for p in model.parameters()]
    assert found.main_memory == sum(rounded)
    there = memory_of_step(folder_shapes(folders['sd15']), replace(config, offload_reference=False))
    assert there.total - found.total == 4 * n - largest
    assert there.main_memory == 0
    on_cpu = memory_of_step(folder_shapes(folders['sd15']), config, 'cpu')
    assert (on_cpu.weights, on_cpu.main_memory) == (there.weights, 0)


def test_twice_the_pairs_keep_twice_as_much(folders):
    config = settings(folders['sdxl'], 'full')
    one = activations(shapes_of(folders['sdxl'], config), config).kept
    more = settings(folders['sdxl'], 'full', 'fp32')
    object.__setattr__(more, 'micro_batch_size', 2 * config.micro_batch_size)
    two = activations(shapes_of(folders['sdxl'], more), more).kept
    assert 0 <= 2 * one - two < 0.01 * two  # what does not depend on the pairs is small


def test_half_precision_keeps_more_on_cuda_than_on_the_cpu_as_its_norms_are_in_fp32(folders):
    config = settings(folders['sd15'], 'full', 'bf16')
    cuda, cpu = (
        activations(shapes_of(folders['sd15'], config), config, kind) for kind in ('cuda', 'cpu')
    )
    assert cuda.copies == cpu.copies
    assert cuda.kept > cpu.kept


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [('sd15', 859_520_964), ('sd21', 865_910_724), ('sdxl', 2_567_463_684)],
)
def test_published_sizes_are_those_of_the_published_weights(name, parameters):
    assert sum(p.numel() for p in published_shapes(name).model.parameters()) == parameters


def test_a_published_model_is_counted_without_its_folder():
    config = TrainConfig('sd15', mode='full', resolution=512, micro_batch_size=1, precision='fp32')
    found = counted_memory('sd15', config)
    assert found.weights == pytest.approx(2 * 4 * 859_520_964, rel=1e-6)
    assert 3e9 < found.activations < 6e9
    away = counted_memory('sd15', replace(config, offload_reference=True))
    # the largest layer is a 3x3 convolution from 2560 to 1280 channels
    assert away.weights == 4 * (859_520_964 + 9 * 2560 * 1280 + 1280)
    assert 4 * 859_520_964 < away.main_memory < 8 * 859_520_964
