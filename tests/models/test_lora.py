"""A LoRA file is loaded whole or refused: names that do not fit, a part that does not, damage."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from balanceddpo.core.errors import InputError
from balanceddpo.models import sampling
from balanceddpo.models.config import SampleConfig
from balanceddpo.models.lora import load_lora, lora_weights
from tiny_models import FLOW_KINDS, KINDS, diffusers_pipeline

LORA = 'pytorch_lora_weights.safetensors'


@pytest.fixture
def files(loras):
    "kind -> the file of a LoRA for the tiny pipeline of that kind."
    return {kind: folder / LORA for kind, folder in loras.items()}


def changed(file, target, change):
    "A copy of a LoRA file at `target` after `change` of the dict of its tensors."
    tensors = load_file(file)
    save_file(change(tensors) or tensors, target)
    return target


def peft_name(name):
    "The name of a LoRA weight without its network, with PEFT's words for its two sides."
    name = name.split('.', 1)[1]
    return name.replace('lora.down', 'lora_A').replace('lora.up', 'lora_B')


def peft_names(tensors):
    return {f'base_model.model.{peft_name(n)}': t for n, t in tensors.items()}


def refused(folder, file, says):
    with pytest.raises(InputError, match=says) as error:
        load_lora(diffusers_pipeline(folder), file)
    assert '\n' not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize('kind', [*KINDS, *FLOW_KINDS])
def test_every_key_of_ours_finds_its_place(folders, files, kind):
    pipeline = diffusers_pipeline(folders[kind])
    load_lora(pipeline, files[kind])
    assert len(lora_weights(pipeline)) == len(load_file(files[kind]))


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
@pytest.mark.parametrize('kept', [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_of_another_precision_fits(folders, files, tmp_path, dtype, kept):
    file = changed(
        files['sd15'], tmp_path / LORA, lambda ts: {n: t.to(kept) for n, t in ts.items()}
    )
    config = SampleConfig(model=str(folders['sd15']), lora=str(file), dtype=dtype, device='cpu')
    _, pipeline = sampling.load_generator(config)
    assert len(lora_weights(pipeline)) == len(load_file(file))


@pytest.mark.parametrize('layout', ['new', 'kohya'])
def test_other_layouts_that_the_library_knows_are_loaded(folders, files, tmp_path, layout):
    def new(name):
        return f'unet.{peft_name(name)}'

    def kohya(name):
        module, side, _ = peft_name(name).rsplit('.', 2)
        side = {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[side]
        return f'lora_unet_{module.replace(".", "_")}.{side}.weight'

    rename = {'new': new, 'kohya': kohya}[layout]
    file = changed(files['sd15'], tmp_path / LORA, lambda ts: {rename(n): t for n, t in ts.items()})
    pipeline = diffusers_pipeline(folders['sd15'])
    load_lora(pipeline, file)
    assert len(lora_weights(pipeline)) == len(load_file(file))


def test_a_lora_of_the_text_encoder_finds_its_place(folders, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = diffusers_pipeline(folders['sd15'])
    encoder = pipeline.text_encoder
    encoder.add_adapter(LoraConfig(r=2, target_modules=['q_proj', 'v_proj']))
    state = get_peft_model_state_dict(encoder, adapter_name='default')
    pipeline.save_lora_weights(tmp_path, text_encoder_lora_layers=state)
    again = diffusers_pipeline(folders['sd15'])
    load_lora(again, tmp_path)
    assert len(lora_weights(again)) == len(state) == len(load_file(tmp_path / LORA))


@pytest.mark.parametrize('kind', ['sd15', 'sdxl', 'sd3', 'flux'])
def test_names_of_peft_are_refused_and_not_drawn_without_the_lora(folders, files, tmp_path, kind):
    "Not a single key fits: the library loads nothing and says so in its log only."
    file = changed(files[kind], tmp_path / LORA, peft_names)
    n = len(load_file(file))
    # FLUX's loader takes the file for another layout, and misses a key of that
    says = 'KeyError' if kind == 'flux' else f'{n} of its {n} weights have no place'
    refused(folders[kind], file, rf'does not fit this model.*{says}.*base_model\.model\..*lora_A')


@pytest.fixture
def named(files):
    "The tensors of the SD1.5 LoRA by PEFT's names, and the first of its layers."
    tensors = {f'unet.{peft_name(n)}': t for n, t in load_file(files['sd15']).items()}
    return tensors, min(tensors).removesuffix('.lora_A.weight')


def test_a_layer_that_the_denoiser_does_not_have_is_refused(folders, named, tmp_path):
    tensors, layer = named
    elsewhere = layer.replace('to_', 'to_x')
    save_file({n.replace(layer, elsewhere): t for n, t in tensors.items()}, tmp_path / LORA)
    says = rf'2 of its 64 weights have no place in it, the first is {elsewhere}\.lora_A'
    refused(folders['sd15'], tmp_path / LORA, says)


def test_half_of_a_layer_is_refused(folders, named, tmp_path):
    tensors, layer = named
    for side in ('lora_A', 'lora_B'):
        half = {n: t for n, t in tensors.items() if not n.startswith(f'{layer}.{side}')}
        save_file(half, tmp_path / LORA)
        refused(folders['sd15'], tmp_path / LORA, 'does not fit this model')
        save_file({n: t for n, t in tensors.items() if side not in n}, tmp_path / LORA)
        refused(folders['sd15'], tmp_path / LORA, 'does not fit this model')


def test_dora_is_refused_and_not_loaded_without_its_magnitudes(folders, named, tmp_path):
    tensors, layer = named
    save_file(tensors | {f'{layer}.dora_scale': torch.ones(4)}, tmp_path / LORA)
    refused(folders['sd15'], tmp_path / LORA, 'DoRA is not supported .*dora_scale')


def test_a_lora_of_another_model_is_refused(folders, files):
    for kind, other in (('sd15', 'sdxl'), ('sdxl', 'sd3'), ('sd3', 'sd15'), ('flux', 'sd3')):
        refused(folders[kind], files[other], 'does not fit this model')


@pytest.mark.parametrize('n', [0, 5, 200, -10])
def test_a_damaged_file_is_one_line(folders, files, tmp_path, n):
    file = tmp_path / LORA
    file.write_bytes(files['sd15'].read_bytes()[:n])
    refused(folders['sd15'], file, 'is damaged, or no safetensors file')


def test_a_file_without_weights_is_refused(folders, tmp_path):
    save_file({}, tmp_path / LORA)
    refused(folders['sd15'], tmp_path / LORA, 'does not fit this model')


def test_what_is_loaded_changes_the_denoiser(folders, files):
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 16, 32)
    pipeline = diffusers_pipeline(folders['sd15'])
    with torch.no_grad():
        before = pipeline.unet(*inputs)[0]
        load_lora(pipeline, files['sd15'])
        after = pipeline.unet(*inputs)[0]
    assert np.abs(before - after).max() > 1e-3


def test_a_lora_that_was_never_trained_is_told(folders, files, tmp_path):
    "Every key has its place, and the pictures are the base model's."

    def untrained(tensors):
        return {n: t * ('lora.up' not in n) for n, t in tensors.items()}

    file = changed(files['sd15'], tmp_path / LORA, untrained)
    with pytest.warns(UserWarning, match='changes nothing'):
        load_lora(diffusers_pipeline(folders['sd15']), file)
