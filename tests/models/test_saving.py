"""Saved models in plain diffusers: whole folders and LoRAs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.models.families import load_family, part_digests, plain_pipeline
from balanceddpo.models.saving import save_pipeline
from tiny_models import KINDS, diffusers_pipeline, draw_array, with_adapters


def draw(pipeline):
    return draw_array(pipeline, guidance_scale=3.0)


@pytest.mark.parametrize('kind', KINDS)
def test_a_saved_pipeline_is_plain_diffusers_with_the_new_denoiser(
    folders, kind, tmp_path, monkeypatch
):
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', 'plain')  # the kernels that plain diffusers takes
    family = load_family(folders[kind], device='cpu')
    with torch.no_grad():
        for p in family.model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    expected = draw(plain_pipeline(family, diffusers_pipeline(folders[kind]).scheduler))
    out = save_pipeline(folders[kind], family.model, tmp_path / 'out')
    assert torch.equal(draw(diffusers_pipeline(out)), expected)
    assert not torch.allclose(expected, draw(diffusers_pipeline(folders[kind])), atol=0.01)
    new, old = part_digests(out), part_digests(folders[kind])
    assert {k for k in old if new[k] != old[k]} == {'unet'}
    assert new.keys() == old.keys()
    # no path of the machine it was made on
    assert not any(str(tmp_path) in p.read_text() for p in out.rglob('*.json'))


def test_old_weights_stay_behind_and_links_become_files(folders, tmp_path):
    source = shutil.copytree(folders['sd15'], tmp_path / 'source')
    (source / 'vae' / 'diffusion_pytorch_model.bin').write_bytes(b'pickle')
    (source / 'v1-5.ckpt').write_bytes(b'pickle')
    weights = source / 'vae' / 'diffusion_pytorch_model.safetensors'
    weights.rename(tmp_path / 'blob')
    weights.symlink_to(tmp_path / 'blob')
    out = save_pipeline(source, load_family(source, device='cpu').model, tmp_path / 'out')
    assert not [p for p in out.rglob('*') if p.suffix in ('.bin', '.ckpt') or p.is_symlink()]
    assert torch.equal(draw(diffusers_pipeline(out)), draw(diffusers_pipeline(source)))


def test_a_trimmed_copy_is_saved_whole_and_one_that_lacks_more_is_refused(folders, tmp_path):
    "Many copies of SD1.5 name a safety checker that they do not bring."
    folder = shutil.copytree(folders['sd15'], tmp_path / 'trimmed')
    index = json.loads((folder / 'model_index.json').read_text())
    (folder / 'model_index.json').write_text(
        json.dumps(
            index
            | {
                'safety_checker': ['stable_diffusion', 'StableDiffusionSafetyChecker'],
                'feature_extractor': ['transformers', 'CLIPImageProcessor'],
            }
        )
    )
    family = load_family(folder, components=('denoiser',))
    saved = json.loads(
        (save_pipeline(folder, family.model, tmp_path / 'new') / 'model_index.json').read_text()
    )
    assert saved['safety_checker'] == saved['feature_extractor'] == [None, None]
    assert saved['unet'] == index['unet']
    assert torch.equal(
        draw(diffusers_pipeline(tmp_path / 'new')), draw(diffusers_pipeline(folders['sd15']))
    )
    shutil.rmtree(folder / 'text_encoder')
    with pytest.raises(InputError, match="names the part 'text_encoder', which is not there"):
        save_pipeline(folder, family.model, tmp_path / 'newer')
    assert not (tmp_path / 'newer').exists()


def test_saving_again_replaces_and_a_failure_leaves_the_old(folders, tmp_path):
    model = load_family(folders['sd15'], device='cpu').model
    out = save_pipeline(folders['sd15'], model, tmp_path / 'out')
    before = draw(diffusers_pipeline(out))

    class Broken:
        def save_pretrained(self, folder, **_):
            raise OSError(28, 'No space left on device')

    with pytest.raises(OSError):
        save_pipeline(folders['sd15'], Broken(), out)
    assert torch.equal(draw(diffusers_pipeline(out)), before)
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    model.conv_out.bias.data += 1
    assert not torch.equal(
        draw(diffusers_pipeline(save_pipeline(folders['sd15'], model, out))), before
    )


@pytest.mark.parametrize('kind', KINDS)
def test_a_lora_loads_in_plain_diffusers_with_equal_output(folders, kind, tmp_path):
    from safetensors import safe_open

    model = with_adapters(folders[kind])
    expected = draw(
        plain_pipeline(
            load_family(folders[kind], device='cpu'),
            diffusers_pipeline(folders[kind]).scheduler,
            model=model,
        )
    )
    out = save_pipeline(folders[kind], model, tmp_path / 'lora', adapter='default')
    pipe = diffusers_pipeline(folders[kind])
    before = draw(pipe)
    pipe.load_lora_weights(out)
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, expected, atol=0.01)
    with safe_open(out / 'pytorch_lora_weights.safetensors', 'pt') as f:
        names = list(f.keys())
        assert all(n.startswith('unet.') and 'reference' not in n for n in names)
        assert str(folders[kind]) not in str(f.metadata())


SAVE = """
import sys
sys.path[:0] = {paths!r}
from balanceddpo.core.devices import ensure_torchvision
ensure_torchvision()
from balanceddpo.models.saving import save_pipeline
from tiny_models import with_adapters
model = with_adapters(sys.argv[1])
for name, p in model.named_parameters():
    if 'lora_' in name:
        p.data.fill_(0.5)
save_pipeline(sys.argv[1], model, sys.argv[2], adapter='default')
"""


@pytest.mark.parametrize('kind', ['sd15', 'sd3'])
def test_the_same_lora_has_the_same_bytes_in_every_process(folders, kind, tmp_path):
    "Its layers' names are in a set, whose order is another in each process."
    root = Path(__file__).parents[2]
    script = SAVE.format(paths=[str(root / 'tests'), str(root)])
    saved = []
    for seed in '123':
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', script, str(folders[kind]), str(out)],
            env=os.environ | {'PYTHONHASHSEED': seed},
            check=True,
        )
        saved.append((out / 'pytorch_lora_weights.safetensors').read_bytes())
    assert saved[0] == saved[1] == saved[2]
    header = json.loads(saved[0][8 : 8 + int.from_bytes(saved[0][:8], 'little')])
    assert header['__metadata__'].keys() == {'format', 'lora_adapter_metadata'}
    part = 'unet' if kind == 'sd15' else 'transformer'
    adapter = json.loads(header['__metadata__']['lora_adapter_metadata'])
    assert adapter[f'{part}.lora_alpha'] == 16
    assert adapter[f'{part}.target_modules'] == sorted(adapter[f'{part}.target_modules'])


def test_an_adapter_that_is_not_there_is_an_error(folders, tmp_path):
    with pytest.raises(InputError, match="no adapter 'default'"):
        save_pipeline(
            folders['sd15'],
            load_family(folders['sd15'], device='cpu').model,
            tmp_path / 'out',
            adapter='default',
        )
    assert not (tmp_path / 'out').exists()
