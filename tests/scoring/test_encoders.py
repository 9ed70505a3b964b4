"""Encoders: told apart by their content, economical, and unwilling to load programs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from balanceddpo.core.errors import InputError
from balanceddpo.scoring.encoders import Encoder
from balanceddpo.scoring.pictures import ImageBatch, View
from balanceddpo.scoring.registry import load_scorer
from tiny_scorers import close, sharpen


@pytest.mark.parametrize('kind', ['pickscore', 'hps'])
def test_half_precision_does_not_round_the_scale(models, kind):
    "In bf16 the logarithm of 100 is that of 98.9: a PickScore of 20.5 would be 0.23 too low."
    encoders = [
        load_scorer(f'{kind}={models / kind}', device='cpu', dtype=d).encoder
        for d in ('fp32', 'bf16', 'fp16')
    ]
    assert encoders[0].scale == encoders[1].scale == encoders[2].scale
    # the weights can tell
    raw = encoders[0].scale
    assert abs(torch.tensor(raw).log().bfloat16().float().exp().item() - raw) > 1e-3 * raw
    assert (
        load_scorer(f'pickscore={models / "pickscore"}', device='cpu', dtype='bf16').scale
        == load_scorer(f'pickscore={models / "pickscore"}', device='cpu').scale
    )


def test_memory_of_an_encoder_is_bounded():
    encoder = Encoder(
        't',
        lambda x: x.flatten(1),
        lambda texts: torch.tensor([[len(t), 1.0] for t in texts]),
        View('bytes', lambda batch, i: batch.pixels(i) / 255),
        remember=3,
    )
    images = [Image.new('RGB', (1, 1), (i + 1, 7, 9)) for i in range(8)]
    first = encoder.images(ImageBatch(images), batch_size=2)
    encoder.texts([str(i) * i for i in range(8)])
    assert len(encoder._images) == len(encoder._texts) == 3
    assert encoder.image_passes == 8
    # the last three were known
    close(encoder.images(ImageBatch(images)), first, 0)
    assert encoder.image_passes == 8 + 8 - 3


def test_same_content_elsewhere_is_the_same_encoder_and_other_content_is_not(models, tmp_path):
    encoders, copy = {}, tmp_path / 'copy'
    shutil.copytree(models / 'clip', copy)
    (copy / 'README.md').write_text('a note changes nothing')
    original, other = (
        load_scorer(f'clip={p}', device='cpu', encoders=encoders) for p in (models / 'clip', copy)
    )
    assert original.encoder is other.encoder
    assert original.key == other.key
    keys = {original.key}
    settings = json.loads((copy / 'processor_config.json').read_text())
    settings['image_processor']['image_mean'] = [0.5, 0.5, 0.5]
    for change in (
        lambda: (copy / 'processor_config.json').write_text(json.dumps(settings)),
        lambda: sharpen(copy, 'model.safetensors', 2.0),
    ):
        change()
        keys.add(load_scorer(f'clip={copy}', device='cpu', encoders=encoders).key)
    keys |= {
        load_scorer(f'clip={copy}{v}', 'cpu', d).key for v, d in (('@pad', 'fp32'), ('', 'bf16'))
    }
    assert len(keys) == 5


class Bomb:
    "Unpickling it creates a file."

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def plant(kind, models, tmp_path, canary):
    "A scorer whose weights are a program, in each format that can hold one."
    bomb = {'state_dict': Bomb(canary), 'weight': Bomb(canary)}
    if kind == 'hps file':
        torch.save(bomb, tmp_path / 'hps.pt')
        return f'hps={tmp_path / "hps.pt"}+ViT-S-32'
    if kind == 'aesthetic file':
        torch.save(bomb, tmp_path / 'head.pth')
        return f'aesthetic={tmp_path / "head.pth"}+{models / "clip"}'
    library, old, new = {
        'open_clip folder': ('hps', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin'),
        'transformers folder': ('clip', 'model.safetensors', 'pytorch_model.bin'),
    }[kind]
    folder = shutil.copytree(models / library, tmp_path / 'bombed')
    (folder / old).unlink()
    torch.save(bomb, folder / new)
    return f'{library}={folder}'


@pytest.mark.parametrize(
    'kind', ['hps file', 'aesthetic file', 'open_clip folder', 'transformers folder']
)
def test_pickle_bombs_do_not_go_off(kind, models, tmp_path):
    canary = tmp_path / 'canary'
    spec = plant(kind, models, tmp_path, canary)
    with pytest.raises(InputError) as error:
        load_scorer(spec, device='cpu')
    assert not canary.exists()
    assert '\n' not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_weights_that_are_missing_or_do_not_fit_are_refused(models, tmp_path):
    def broken(library, change):
        folder = Path(
            shutil.copytree(
                models / library, tmp_path / f'{library}{len(list(tmp_path.iterdir()))}'
            )
        )
        change(folder)
        with pytest.raises(InputError) as error:
            load_scorer(f'{library}={folder}', device='cpu')
        assert '\n' not in str(error.value)
        assert str(folder) in str(error.value)
        return str(error.value)

    def lose_one(folder):
        name = next(folder.glob('*.safetensors'))
        weights = load_file(name)
        weights.pop(sorted(weights)[-1])
        save_file(weights, name, metadata={'format': 'pt'})

    def resize(folder):
        settings = json.loads((folder / 'processor_config.json').read_text())
        settings['image_processor']['crop_size'] = {'height': 24, 'width': 24}
        (folder / 'processor_config.json').write_text(json.dumps(settings))

    for library in ('hps', 'clip'):
        broken(library, lose_one)
        broken(library, lambda folder: next(folder.glob('*.safetensors')).unlink())
        broken(library, lambda folder: next(folder.glob('*.safetensors')).write_bytes(b'cut short'))
    assert 'processor makes 24 pixels' in broken('clip', resize)
    assert 'preprocessor_config' in broken(
        'clip', lambda folder: (folder / 'processor_config.json').unlink()
    )
    broken('hps', lambda folder: (folder / 'open_clip_config.json').write_text('{'))
