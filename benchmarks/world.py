"""What the measurements run on: networks of a stated geometry with random weights, and pairs of
pictures made on the fly. Nothing is downloaded."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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
# Stable Diffusion's
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    steps_offset=1,
)
# SD's factor 8. Random weights give latents of size one as they are, which is what SD's own scaling
# factor is for.
FOUR = dict(
    down_block_types=('DownEncoderBlock2D',) * 4,
    up_block_types=('UpDecoderBlock2D',) * 4,
    scaling_factor=1.0,
)


@dataclass(frozen=True)
class Geometry:
    """Sizes of a Stable Diffusion model; what a dict leaves out is the class's default, which for
    the UNet and CLIP is SD1.5's."""

    name: str
    pixels: int  # a side
    unet: dict
    vae: dict
    text: dict = field(default_factory=dict)
    tokens: int = 77  # a prompt
    batch: int = 2  # pairs an optimizer step


SD_VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **FOUR)
CLIP_L = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
)
SD15 = Geometry('SD1.5', 512, dict(cross_attention_dim=768), SD_VAE, CLIP_L, batch=32)
SDXL = Geometry(
    'SDXL',
    1024,
    dict(
        block_out_channels=(320, 640, 1280),
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type='text_time',
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    SD_VAE,
    batch=8,
)
# For the CPU. The autoencoder is so narrow that it has the share of a step that it has for SD1.5:
# a quarter (`encoder_share`, tested). Widths are multiples of 16, for which the kernels are made.
# Two heads, so that a head
# has 32 to 128 channels (SD1.5: 40 to 160); with eight of 8 channels and more, half of a step would
# be softmax.
CPU = Geometry(
    'CPU',
    256,
    dict(
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=2,
    ),
    dict(block_out_channels=(16, 48, 96, 96), layers_per_block=2, norm_num_groups=16, **FOUR),
    dict(hidden_size=128, intermediate_size=512, num_hidden_layers=12, num_attention_heads=4),
)
TINY = Geometry(
    'tiny',
    64,
    dict(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=4,
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    ),
    dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, **FOUR),
    dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    tokens=16,
)
GEOMETRIES = {'tiny': TINY, 'cpu': CPU}


def make_unet(g: Geometry):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=g.pixels // 8, **g.unet)


def make_vae(g: Geometry):
    from diffusers import AutoencoderKL

    return AutoencoderKL(latent_channels=4, sample_size=g.pixels, **g.vae)


def make_text(g: Geometry, tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    ids = {f'{t}_token_id': getattr(tokenizer, f'{t}_token_id') for t in ('bos', 'eos', 'pad')}
    return CLIPTextModel(
        CLIPTextConfig(
            **dict(
                vocab_size=len(tokenizer),
                max_position_embeddings=g.tokens,
                projection_dim=g.text['hidden_size'],
            )
            | g.text
            | ids
        )
    )


def make_family(g: Geometry, folder, device='cpu'):
    """A `Family` of this geometry, in fp32, random weights by seed 0, made on its device; `folder`
    gets its configs, and no weights.

    SDXL has no text encoders here: its embeddings are drawn (`RandomPairs`)."""
    import torch
    from diffusers import DDPMScheduler

    from balanceddpo.core.devices import ensure_torchvision
    from balanceddpo.models.families import StableDiffusion, StableDiffusionXL
    from balanceddpo.scoring.encoders import word_tokenizer

    ensure_torchvision()
    torch.manual_seed(0)
    tokenizer, folder, xl = word_tokenizer(WORDS, g.tokens), Path(folder), g.name == 'SDXL'
    with torch.device(device):
        parts = {'vae': make_vae(g), 'unet': make_unet(g)} | (
            {} if xl else {'text_encoder': make_text(g, tokenizer)}
        )
    for name, part in parts.items():
        parts[name] = part.eval().requires_grad_(False)
        (part.config.save_pretrained if name == 'text_encoder' else part.save_config)(folder / name)
    tokenizer.save_pretrained(folder / 'tokenizer')
    scheduler = DDPMScheduler(**SCHEDULE)
    scheduler.save_config(folder / 'scheduler')
    index = {
        '_class_name': 'StableDiffusionXLPipeline' if xl else 'StableDiffusionPipeline',
        'vae': ['diffusers', 'AutoencoderKL'],
        'unet': ['diffusers', 'UNet2DConditionModel'],
        **({} if xl else {'text_encoder': ['transformers', 'CLIPTextModel']}),
        'tokenizer': ['transformers', 'CLIPTokenizer'],
        'scheduler': ['diffusers', 'DDPMScheduler'],
    }
    (folder / 'model_index.json').write_text(json.dumps(index))
    kind, name = (StableDiffusionXL, 'sdxl') if xl else (StableDiffusion, 'sd15')
    return kind(
        folder,
        name,
        index,
        dict(scheduler.config),
        parts | {'tokenizer': tokenizer},
        torch.device(device),
    )


def picture(seed: int, pixels: int) -> bytes:
    "A JPEG with structure at several sizes; another one for each seed."
    from PIL import Image

    draw = random.Random(seed)
    image = Image.frombytes('RGB', (8, 8), draw.randbytes(192)).resize(
        (pixels, pixels), Image.Resampling.BICUBIC
    )
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
        yield make_pair(
            caption, (picture(2 * i, pixels), picture(2 * i + 1, pixels)), float(i % 2 == 0)
        )


class RandomPairs:
    """In the place of `EncodedPairs`: normal moments and embeddings (zeros would run faster than
    real numbers do)."""

    key, inputs = 'random', {}

    def __init__(self, n, resolution, shapes: dict, seed=0):
        import torch

        g = torch.Generator().manual_seed(seed)
        normal = partial(torch.randn, generator=g)
        self.resolution, self.pair_ids, side = (
            resolution,
            [f'{i:016x}' for i in range(n)],
            resolution // 8,
        )
        self._moments, self._text = (
            normal(n, 2, 8, side, side),
            {k: normal(n, *s) for k, s in shapes.items()},
        )
        self.empty_conditioning = {k: normal(1, *s) for k, s in shapes.items()}

    def batch(self, indexes):
        return self._moments[indexes], {k: v[indexes] for k, v in self._text.items()}


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
    import torch

    side, found = g.pixels // 8, {}
    added = (
        dict(
            added_cond_kwargs=dict(
                text_embeds=torch.empty(1, 1280, device='meta'),
                time_ids=torch.empty(1, 6, device='meta'),
            )
        )
        if g.name == 'SDXL'
        else {}
    )

    def predict(m):
        return m(
            torch.empty(1, 4, side, side),
            torch.zeros(1, dtype=torch.long),
            torch.empty(1, g.tokens, g.unet['cross_attention_dim']),
            **added,
        ).sample

    for name, backward in (('unet', False), ('unet_backward', True)):
        found[name] = meta_flops(partial(make_unet, g), predict, backward)
    found['encode'] = meta_flops(
        partial(make_vae, g),
        lambda m: m.encode(torch.empty(1, 3, g.pixels, g.pixels)).latent_dist.mean,
    )
    found['decode'] = meta_flops(
        partial(make_vae, g), lambda m: m.decode(torch.empty(1, 4, side, side)).sample
    )
    if g.text:
        from balanceddpo.scoring.encoders import word_tokenizer

        tokenizer = word_tokenizer(WORDS, g.tokens)
        found['text'] = meta_flops(
            partial(make_text, g, tokenizer),
            lambda m: m(torch.zeros(1, g.tokens, dtype=torch.long))[0],
        )
    return found


def per_pair(f: dict) -> dict:
    """FLOPs a pair: `cached` (policy forward and backward, reference forward, two images each), and
    `in_loop` with the autoencoder and the text encoder in the step."""
    cached = 2 * (f['unet_backward'] + f['unet'])
    return {'cached': cached, 'in_loop': cached + 2 * f['encode'] + f.get('text', 0)}


def encoder_share(g: Geometry) -> float:
    "The autoencoder's share of the FLOPs of a step that encodes its images."
    f = flops(g)
    return 2 * f['encode'] / per_pair(f)['in_loop']
