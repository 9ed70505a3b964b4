"""A model in another form draws what it drew before: the form is loaded back by the library."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from balanceddpo.core.errors import InputError
from balanceddpo.models.exporting import (
    base_version,
    export,
    find_model,
    lora_layers,
)
from balanceddpo.models.lora import load_lora, lora_weights
from balanceddpo.models.saving import sets_sorted
from made_pairs import refused
from tiny_models import (
    FLOW_KINDS,
    KINDS,
    diffusers_pipeline,
    draw_array,
    tiny_folder,
)

LORA = 'pytorch_lora_weights.safetensors'


def drawn(folder, lora=None):
    "What a pipeline, with a LoRA or without, draws in two steps."
    pipeline = diffusers_pipeline(folder)
    if lora:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return draw_array(pipeline)


def head_of(file):
    with safe_open(file, framework='pt') as opened:
        return opened.metadata()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', ['kohya', 'comfyui'])
def test_a_lora_in_kohyas_keys_draws_the_same(folders, loras, tmp_path, kind, form):
    out = export(loras[kind], form, tmp_path / 'lora.safetensors')
    theirs = load_file(out)
    assert all(name.startswith('lora_unet_') for name in theirs)
    assert {name.rpartition('.')[2] for name in theirs} == {'weight', 'alpha'}
    assert {t.item() for name, t in theirs.items() if name.endswith('.alpha')} == {16}
    ours = drawn(folders[kind], loras[kind] / LORA)
    assert torch.equal(drawn(folders[kind], out), ours)
    # and it does something
    assert not torch.equal(drawn(folders[kind]), ours)


def test_each_tensor_is_there_once_under_its_name(loras, tmp_path):
    ours = load_file(loras['sd15'] / LORA)
    theirs = load_file(export(loras['sd15'], 'kohya', tmp_path / 'lora.safetensors'))
    for name, tensor in ours.items():
        module, side = name.removeprefix('unet.').removesuffix('.weight').rsplit('.lora.', 1)
        key = f'lora_unet_{module.replace(".", "_")}.lora_{side}.weight'
        assert torch.equal(theirs.pop(key), tensor)
    assert all(name.endswith('.alpha') for name in theirs)
    assert len(theirs) == len(ours) / 2


def test_the_head_says_what_is_known(loras, tmp_path):
    head = head_of(export(loras['sd15'], 'kohya', tmp_path / 'lora.safetensors'))
    assert head == {
        'format': 'pt',
        'ss_network_module': 'networks.lora',
        'ss_network_dim': '4',
        'ss_network_alpha': '16',
    }  # a tiny model is no version of Stable Diffusion
    again = export(loras['sd15'], 'kohya', tmp_path / 'again.safetensors')
    assert again.read_bytes() == (tmp_path / 'lora.safetensors').read_bytes()


def published(width, module='down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k'):
    "The tensors of a LoRA for a base model whose cross-attention is so wide."
    return {
        f'unet.{module}.lora.down.weight': torch.ones(2, width),
        f'unet.{module}.lora.up.weight': torch.ones(8, 2),
    }


@pytest.mark.parametrize(
    'width, version', [(768, 'sd_v1'), (2048, 'sdxl_base_v1-0'), (1024, None), (48, None)]
)
def test_a_published_base_is_told_by_the_width_of_its_cross_attention(tmp_path, width, version):
    save_file(published(width), tmp_path / LORA)
    head = head_of(export(tmp_path, 'kohya', tmp_path / 'out.safetensors'))
    assert head.get('ss_base_model_version') == version
    assert head['ss_network_alpha'] == head['ss_network_dim'] == '2'  # without settings: the rank


def test_the_two_versions_of_stable_diffusion_2_are_told_apart_by_their_scheduler(
    folders, tmp_path
):
    save_file(published(1024), tmp_path / LORA)
    layers = lora_layers(tmp_path / LORA)
    assert base_version(layers, str(folders['sd21'])) == 'sd_v2_v'
    assert base_version(layers, str(folders['sd15'])) == 'sd_v2'


def test_layers_with_alphas_of_their_own_keep_their_strength(folders, loras, tmp_path):
    "The scale of a layer is alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRAs."
    head = head_of(loras['sd15'] / LORA)
    settings = json.loads(head['lora_adapter_metadata'])
    settings |= {'unet.alpha_pattern': {'attn2.to_k': 2}, 'unet.use_rslora': True}
    (tmp_path / 'changed').mkdir()
    file = tmp_path / 'changed' / LORA
    metadata = head | {'lora_adapter_metadata': json.dumps(settings)}
    save_file(load_file(loras['sd15'] / LORA), file, metadata=metadata)
    for layer in lora_layers(file):
        assert layer.scale == (2 if layer.module.endswith('attn2.to_k') else 16) / 2
    out = export(file, 'kohya', tmp_path / 'lora.safetensors')
    assert head_of(out)['ss_network_alpha'] == '32'  # what most layers have: 16 / sqrt(4) x 4
    near = dict(rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(folders['sd15'], out), drawn(folders['sd15'], file), **near)


def with_text_lora(folder, out):
    "A LoRA of the text encoders of a folder, written by the library."
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline, layers = diffusers_pipeline(folder), {}
    for name in ('text_encoder', 'text_encoder_2'):
        encoder = getattr(pipeline, name, None)
        if encoder is None:
            continue
        config = LoraConfig(r=2, lora_alpha=6, target_modules=['q_proj', 'out_proj', 'fc1'])
        encoder.add_adapter(config)
        for n, p in encoder.named_parameters():
            if 'lora_B' in n:
                p.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
        layers[f'{name}_lora_layers'] = get_peft_model_state_dict(encoder)
        settings = sets_sorted(encoder.peft_config['default'].to_dict())
        layers[f'{name}_lora_adapter_metadata'] = settings
    pipeline.save_lora_weights(out, **layers)
    return out


@pytest.mark.parametrize('kind, prefixes', [('sd15', {'te'}), ('sdxl', {'te1', 'te2'})])
def test_a_lora_of_the_text_encoders_goes_along(folders, tmp_path, kind, prefixes):
    lora = with_text_lora(folders[kind], tmp_path / 'lora')
    out = export(lora, 'kohya', tmp_path / 'out.safetensors')
    names = set(load_file(out))
    assert {name.split('_')[1] for name in names} == prefixes
    # the names of the published text encoders, which other programs look for
    assert all('_text_model_encoder_layers_0_' in n or '_layers_1_' in n for n in names)
    near = dict(rtol=0, atol=1e-5)
    ours = drawn(folders[kind], lora / LORA)
    torch.testing.assert_close(drawn(folders[kind], out), ours, **near)
    assert not torch.allclose(drawn(folders[kind]), ours, **near)
    merged = export(f'{folders[kind]}+{lora}', 'merged', tmp_path / 'merged')
    torch.testing.assert_close(drawn(merged), ours, **near)


@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_a_transformers_lora_goes_to_comfyui_and_not_to_kohya(folders, loras, tmp_path, kind):
    says = refused(export, loras[kind], 'kohya', tmp_path / 'a.safetensors')
    assert 'no converter' in says
    assert not (tmp_path / 'a.safetensors').exists()
    out = export(loras[kind], 'comfyui', tmp_path / 'b.safetensors')
    ours, theirs = load_file(loras[kind] / LORA), load_file(out)
    assert theirs.keys() == ours.keys()
    # no alpha is told: it is in the weights, 16 / 4
    assert head_of(out) == {'format': 'pt'}
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name] * (4 if '.lora_B.' in name else 1))
    assert torch.equal(drawn(folders[kind], out), drawn(folders[kind], loras[kind] / LORA))


@pytest.mark.parametrize('kind', [*KINDS, 'sd3', 'flux'])
def test_a_merged_model_needs_no_lora(folders, loras, tmp_path, kind):
    out = export(f'{folders[kind]}+{loras[kind]}', 'merged', tmp_path / 'merged')
    assert not list(out.rglob('*lora*'))
    pipeline = diffusers_pipeline(out)
    assert not lora_weights(pipeline)
    near = dict(rtol=0, atol=1e-5)
    ours = drawn(folders[kind], loras[kind] / LORA)
    torch.testing.assert_close(draw_array(pipeline), ours, **near)
    denoiser = 'transformer' if kind in FLOW_KINDS else 'unet'
    for part in folders[kind].iterdir():  # the rest is as it was, to the byte
        files = [f for f in part.rglob('*') if f.is_file()] if part.name != denoiser else []
        for file in files:
            assert (out / file.relative_to(folders[kind])).read_bytes() == file.read_bytes()


def test_half_precision_is_the_rounded_model_in_files_of_the_variant(folders, tmp_path):
    from diffusers import DiffusionPipeline

    out = export(folders['sd15'], 'fp16', tmp_path / 'half')
    files = [f.relative_to(out).as_posix() for f in out.rglob('*.safetensors')]
    assert all(name.endswith('.fp16.safetensors') for name in files)
    half = DiffusionPipeline.from_pretrained(out, variant='fp16', torch_dtype=torch.float16)
    whole = diffusers_pipeline(folders['sd15'])
    for name in ('unet', 'vae', 'text_encoder'):
        theirs, ours = (dict(getattr(p, name).named_parameters()) for p in (half, whole))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(t, ours[n].half()) for n, t in theirs.items())
    assert str(tmp_path) not in (out / 'unet/config.json').read_text()


def test_half_precision_of_a_base_and_its_lora_is_that_of_the_merged_model(
    folders, loras, tmp_path
):
    source = f'{folders["sd15"]}+{loras["sd15"]}'
    export(source, 'merged', tmp_path / 'merged')
    export(source, 'fp16', tmp_path / 'half')
    merged, half = (
        load_file(tmp_path / name)
        for name in (
            'merged/unet/diffusion_pytorch_model.safetensors',
            'half/unet/diffusion_pytorch_model.fp16.safetensors',
        )
    )
    assert all(torch.equal(half[n], t.half()) for n, t in merged.items())
    assert {p.name for p in tmp_path.iterdir()} == {'merged', 'half'}


def test_a_weight_that_half_precision_cannot_hold_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / 'model')
    file = folder / 'unet/diffusion_pytorch_model.safetensors'
    tensors = load_file(file)
    tensors['conv_in.bias'][0] = 1e6
    save_file(tensors, file, metadata={'format': 'pt'})
    assert 'conv_in.bias is not finite in half' in refused(export, folder, 'fp16', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_run_is_named_by_its_folder_and_knows_a_base_that_others_have(
    folders, loras, tmp_path, monkeypatch
):
    shutil.copytree(loras['sd15'], tmp_path / 'run/model')
    facts = tmp_path / 'run/model/training.json'
    found = find_model(tmp_path / 'run')
    assert (found.base, found.lora) == (None, tmp_path / 'run/model' / LORA)
    assert 'name BASE+' in refused(export, tmp_path / 'run', 'merged', tmp_path / 'out')
    for told, base in [
        ('icons', 'icons'),
        ('owner/name', 'owner/name'),
        ('a folder', None),
        ('../../etc', None),
        ('../etc', None),
        (7, None),
    ]:
        facts.write_text(json.dumps({'config': {'model': told}}))
        assert find_model(tmp_path / 'run').base == base
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders['sd15'], 'icons')
    assert find_model('icons').base == 'icons'
    assert find_model('./icons').base == find_model(Path('icons')).base == './icons'
    full = tmp_path / 'full/model'
    shutil.copytree(folders['sd15'], full)
    assert find_model(tmp_path / 'full').base == str(full)
    both = find_model(f'{tmp_path}/full+{tmp_path}/run')
    assert (both.base, both.lora) == (str(full), tmp_path / 'run/model' / LORA)


def test_what_cannot_be_exported_is_refused_in_one_line(folders, loras, tmp_path):
    base, lora, out = folders['sd15'], loras['sd15'], tmp_path / 'out.safetensors'
    assert 'use kohya, comfyui' in refused(export, lora, 'onnx', out)
    assert 'has no LoRA' in refused(export, base, 'kohya', out)
    assert 'no LoRA to merge' in refused(export, base, 'merged', tmp_path / 'out')
    assert 'call it' in refused(export, lora, 'kohya', tmp_path / 'out')
    assert 'LoRA itself' in refused(export, f'{lora}/{LORA}+{lora}', 'merged', tmp_path / 'out')
    assert 'no such folder' in refused(export, tmp_path / 'none', 'fp16', tmp_path / 'out')
    export(lora, 'kohya', out)
    assert 'is there already' in refused(export, lora, 'kohya', out)
    assert "in kohya's keys already" in refused(export, out, 'kohya', tmp_path / 'b.safetensors')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('years of work')
    assert 'is there already' in refused(export, base, 'fp16', tmp_path / 'mine')
    assert (tmp_path / 'mine/thesis.txt').read_text() == 'years of work'


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda ts: ts | {'unet.conv_in.diff': torch.ones(2)}, 'has no place in other forms'),
        (lambda ts: ts | {'vae.a.lora.up.weight': torch.ones(2)}, "no LoRA in diffusers' form"),
        (lambda ts: dict(list(ts.items())[:1]), 'is not'),
    ],
)
def test_a_file_with_something_else_in_it_is_refused(tmp_path, change, says):
    save_file(change(published(8)), tmp_path / LORA)
    assert says in refused(export, tmp_path, 'kohya', tmp_path / 'out.safetensors')


def test_a_lora_that_does_not_fit_is_not_merged(folders, loras, tmp_path):
    with pytest.raises(InputError, match='does not fit this model'):
        export(f'{folders["sdxl"]}+{loras["sd15"]}', 'merged', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_loader_of_this_package_takes_an_exported_lora(folders, loras, tmp_path):
    out = export(loras['sd15'], 'kohya', tmp_path / 'lora.safetensors')
    pipeline = diffusers_pipeline(folders['sd15'])
    load_lora(pipeline, out)
    assert torch.equal(draw_array(pipeline), drawn(folders['sd15'], loras['sd15'] / LORA))
