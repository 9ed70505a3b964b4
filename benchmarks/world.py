"""What the measurements run on: networks of a stated geometry with random weights, and pairs of
pictures made on the fly. Nothing is downloaded."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import random_networks
from balanceddpo.core.devices import ensure_torchvision
from balanceddpo.models.shapes import PUBLISHED, VAE
from random_networks import TINY, Geometry, make_text, make_unet, make_vae, word_tokenizer

WORDS = (
    'a',
    'red',
    'green',
    'blue',
    'apple',
    'fox',
    'boat',
    'house',
    'on',
    'the',
    'table',
    'in',
    'winter',
    'old',
    'small',
    'bright',
)

SD_VAE = dict(block_out_channels=VAE['block_out_channels'], layers_per_block=2)
CLIP_L = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
)


def published_unet(name: str) -> dict:
    "What a published denoiser's config says, without `sample_size`, which follows from the pixels."
    return {key: size for key, size in PUBLISHED[name][1].items() if key != 'sample_size'}


SD15 = Geometry('SD1.5', 512, published_unet('sd15'), SD_VAE, CLIP_L, batch=32)
SDXL = Geometry('SDXL', 1024, published_unet('sdxl'), SD_VAE, kind='sdxl', batch=8)
# For the CPU. The autoencoder is so narrow that it has the share of a step that it has for SD1.5:
# a quarter (`encoder_share`, tested). Widths are multiples of 16, for which the kernels are made.
# Two heads, so that a head has 32 to 128 channels (SD1.5: 40 to 160); with eight of 8 channels and
# more, half of a step would be softmax.
CPU = Geometry(
    'CPU',
    256,
    dict(
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=2,
    ),
    dict(block_out_channels=(16, 48, 96, 96), layers_per_block=2, norm_num_groups=16),
    dict(hidden_size=128, intermediate_size=512, num_hidden_layers=12, num_attention_heads=4),
)
GEOMETRIES = {'tiny': TINY, 'cpu': CPU}


def make_pipeline(g: Geometry, device='cpu'):
    """The pipeline of this geometry, in fp32, random weights by seed 0, made on its device.

    Random weights give latents of size one as they are, which is what SD's own scaling factor is
    for. SDXL has no text encoders here: its embeddings are drawn (`RandomPairs`)."""
    import torch

    ensure_torchvision()
    torch.manual_seed(0)
    with torch.device(device):
        unscaled = replace(g, vae=g.vae | dict(scaling_factor=1.0))
        parts = {'vae': make_vae(unscaled), 'unet': make_unet(g)}
        if g.text:
            parts['tokenizer'] = word_tokenizer(WORDS, g.tokens)
            parts['text_encoder'] = make_text(parts['tokenizer'], g.text)
    return random_networks.make_pipeline(g.kind, parts)


def make_family(g: Geometry, folder, device='cpu'):
    "The `Family` of that pipeline, frozen; `folder` gets its configs, and no weights."
    import torch

    from balanceddpo.models.families import family_kind
    from balanceddpo.models.folders import pipeline_index, read_scheduler_config

    folder, pipeline = Path(folder), make_pipeline(g, device)
    save_configs(folder, pipeline)
    index, scheduler = pipeline_index(folder), read_scheduler_config(folder)
    kind, name = family_kind(folder, index, scheduler)
    parts = {n: part for n, part in pipeline.components.items() if part and n != 'scheduler'}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return kind(folder, name, index, scheduler, parts, torch.device(device))


def save_configs(folder: Path, pipeline) -> None:
    "Write a pipeline folder without weights: the index, and the configuration of each part."
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if name == 'text_encoder' and part:
            part.config.save_pretrained(folder / name)
        elif name == 'tokenizer' and part:
            part.save_pretrained(folder / name)
        elif part:
            part.save_config(folder / name)


def picture(seed: int, pixels: int) -> bytes:
    "A JPEG with structure at several sizes; another one for each seed."
    from PIL import Image

    blocks = Image.frombytes('RGB', (8, 8), random.Random(seed).randbytes(192))
    image = blocks.resize((pixels, pixels), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=95)
    return file.getvalue()


def synthetic_pairs(n: int, pixels: int, captions: int = 0):
    """Yield n pairs of such pictures with human labels 1, 0, 1, ...; `captions` different captions
    come again and again (default: a new one a pair)."""
    from balanceddpo.data.pairs import make_pair

    for i in range(n):
        k = i % (captions or n)
        caption = f'{" ".join(random.Random(k).choices(WORDS, k=8))} {k}'
        pictures = (picture(2 * i, pixels), picture(2 * i + 1, pixels))
        yield make_pair(caption, pictures, float(i % 2 == 0))


class RandomPairs:
    """In the place of `EncodedPairs`: normal moments and embeddings (zeros would run faster than
    real numbers do)."""

    key, inputs = 'random', {}

    def __init__(self, n, resolution, shapes: dict, seed=0):
        import torch

        normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
        side = resolution // 8
        self.resolution = resolution
        self.pair_ids = [f'{i:016x}' for i in range(n)]
        self._moments = normal(n, 2, 8, side, side)
        self._text = {name: normal(n, *shape) for name, shape in shapes.items()}
        self.empty_conditioning = {name: normal(1, *shape) for name, shape in shapes.items()}

    def batch(self, indexes) -> tuple:
        "Moments and embeddings of the pairs at these places."
        text = {name: values[indexes] for name, values in self._text.items()}
        return self._moments[indexes], text


def meta_flops(make, call, backward=False) -> float:
    """FLOPs (two a multiplication) of `call(module)` for the module that `make()` gives, on the
    meta device: nothing is computed or allocated."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device('meta'):
        module = make()
        with FlopCounterMode(display=False) as counter:
            out = call(module)
            if backward:
                out.sum().backward()
    return counter.get_total_flops()


def flops(g: Geometry) -> dict:
    """FLOPs for one image of: unet, unet_backward (forward and backward), encode (autoencoder),
    decode; and for one prompt: text."""
    unet, vae = partial(make_unet, g), partial(make_vae, g)
    found = {
        'unet': meta_flops(unet, partial(predict_noise, g)),
        'unet_backward': meta_flops(unet, partial(predict_noise, g), backward=True),
        'encode': meta_flops(vae, partial(encode_image, g)),
        'decode': meta_flops(vae, partial(decode_latents, g)),
    }
    if g.text:
        text = partial(make_text, word_tokenizer(WORDS, g.tokens), g.text)
        found['text'] = meta_flops(text, partial(read_prompt, g))
    return found


def pooled_width(g: Geometry) -> int:
    "The width of SDXL's pooled embedding, which its UNet takes beside six embedded sizes."
    return g.unet['projection_class_embeddings_input_dim'] - 6 * g.unet['addition_time_embed_dim']


def predict_noise(g: Geometry, unet):
    "One latent through the denoiser; SDXL's is given its pooled embedding and six sizes too."
    import torch

    added = {}
    if g.kind == 'sdxl':
        pooled, sizes = (torch.empty(1, width, device='meta') for width in (pooled_width(g), 6))
        added = dict(added_cond_kwargs=dict(text_embeds=pooled, time_ids=sizes))
    latent = torch.empty(1, 4, g.pixels // 8, g.pixels // 8)
    embedding = torch.empty(1, g.tokens, g.unet['cross_attention_dim'])
    return unet(latent, torch.zeros(1, dtype=torch.long), embedding, **added).sample


def encode_image(g: Geometry, vae):
    "One image through the encoder of the autoencoder."
    import torch

    return vae.encode(torch.empty(1, 3, g.pixels, g.pixels)).latent_dist.mean


def decode_latents(g: Geometry, vae):
    "One latent through the decoder of the autoencoder."
    import torch

    return vae.decode(torch.empty(1, 4, g.pixels // 8, g.pixels // 8)).sample


def read_prompt(g: Geometry, text_encoder):
    "One prompt through the text encoder."
    import torch

    return text_encoder(torch.zeros(1, g.tokens, dtype=torch.long))[0]


def per_pair(f: dict) -> dict:
    """FLOPs a pair: `cached` (policy forward and backward, reference forward, two images each), and
    `in_loop` with the autoencoder and the text encoder in the step."""
    cached = 2 * (f['unet_backward'] + f['unet'])
    return {'cached': cached, 'in_loop': cached + 2 * f['encode'] + f.get('text', 0)}


def encoder_share(g: Geometry) -> float:
    "The autoencoder's share of the FLOPs of a step that encodes its images."
    f = flops(g)
    return 2 * f['encode'] / per_pair(f)['in_loop']
