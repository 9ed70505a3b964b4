"""Tiny scorers with random weights in the published formats, and pictures and prompts for them."""

import json
import random

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from random_networks import write_random_clip

SIZES = [(32, 32), (64, 64), (97, 61), (33, 80), (31, 31), (200, 90), (40, 41), (45, 32)]
PROMPTS = [
    'a red apple',
    'A Red  Apple',
    '',
    'caf\u00e9 &amp; \U0001f98a!',
    'a very long prompt ' * 20,
    'fox',
    'apple fox',
    '12',
]
WORDS = ['a', 'red', 'apple', 'fox']


def noise(size=(40, 40), seed=0, mode='RGB'):
    "A picture with structure at several sizes, so that a different resize gives a different score."
    coarse = Image.frombytes('RGB', (7, 5), random.Random(seed).randbytes(7 * 5 * 3)).resize(
        size, Image.Resampling.NEAREST
    )
    return Image.blend(
        coarse,
        Image.frombytes('RGB', size, random.Random(-seed - 1).randbytes(size[0] * size[1] * 3)),
        0.3,
    ).convert(mode)


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=tolerance, rtol=0)


def sharpen(folder, name, factor=12.0):
    "Random encoders see all images alike; larger weights make their scores differ as real ones do."
    weights = load_file(folder / name)
    save_file(
        {
            k: v * factor if k.endswith('weight') and v.ndim == 2 and 'embedding' not in k else v
            for k, v in weights.items()
        },
        folder / name,
        metadata={'format': 'pt'},
    )


def random_head(folder, widths=(32, 64, 16, 1), seed=0):
    "An aesthetic head in LAION's layout, dropout's places in the numbering left out."
    g = torch.Generator().manual_seed(seed)
    places = (0, 2, 3) if len(widths) == 4 else (0, 2, 4, 6, 7)
    head = {
        f'layers.{places[i]}.{part}': torch.randn(shape, generator=g) / b**0.5
        for i, (a, b) in enumerate(zip(widths, widths[1:]))
        for part, shape in (('weight', (b, a)), ('bias', (b,)))
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(head, folder / 'head.safetensors')
    (folder / 'aesthetic.json').write_text(json.dumps({'backbone': '../clip'}))
    return head


def write_tiny_scorers(root):
    """Write hps (open_clip), clip, pickscore (transformers) and aesthetic with random weights.
    Returns the folder."""
    for kind, library, weights in (
        ('hps', 'open_clip', 'open_clip_model'),
        ('clip', 'transformers', 'model'),
        ('pickscore', 'transformers', 'model'),
    ):
        sharpen(
            write_random_clip(root / kind, library, WORDS, seed=len(kind)), f'{weights}.safetensors'
        )
    random_head(root / 'aesthetic')
    return root
