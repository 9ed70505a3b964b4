"""Tiny pipelines with random weights, in the shapes of SD1.5, SD2.1, SDXL, SD3, SD3.5 and FLUX,
written with `save_pretrained`.

Small enough to train two steps in a test; everything a published folder has is there (tokenizer
files, scheduler, model index).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from balanceddpo.core.devices import ensure_torchvision
from random_networks import (
    TINY,
    TINY_KINDS,
    make_pipeline,
    make_text,
    make_unet,
    make_vae,
    two_layers,
    word_tokenizer,
)

KINDS = tuple(TINY_KINDS)
# SD3.5 without T5; FLUX.1 with (dev) and without (schnell) the guidance input
FLOW_KINDS = ('sd3', 'sd35', 'flux', 'schnell')
SIZE = TINY.pixels


def quieten_libraries() -> None:
    """No progress bars of `diffusers` and `transformers`, and no warnings of `diffusers`: for a
    notebook whose output is kept."""
    ensure_torchvision()
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def tiny_tokenizer(pad_token='<|endoftext|>'):
    "A CLIP tokenizer of three words and the single characters that one types."
    characters = [chr(i) for i in range(33, 127)]
    return word_tokenizer(('red', 'cat', 'dog'), TINY.tokens, characters, pad_token)


def tiny_pipeline(kind='sd15', seed=0, **vae):
    """A pipeline of one of `KINDS` or `FLOW_KINDS` with random weights; `vae` goes into the
    autoencoder's config."""
    ensure_torchvision()
    if kind in FLOW_KINDS:
        return tiny_flow_pipeline(kind, seed, **vae)
    g, tokenizer = TINY_KINDS[kind], tiny_tokenizer()
    g = replace(g, vae=g.vae | vae)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = dict(
            vae=make_vae(g),
            text_encoder=make_text(tokenizer, g.text),
            tokenizer=tokenizer,
            unet=make_unet(g),
        )
        if kind == 'sdxl':
            second = tiny_tokenizer(pad_token='!')
            clip = make_text(second, g.text, projection=True)
            parts |= dict(text_encoder_2=clip, tokenizer_2=second)
    return make_pipeline(kind, parts)


def tiny_folder(folder, kind='sd15', **options):
    "Write `tiny_pipeline(kind, **options)` into `folder`; returns the folder as a Path."
    folder = Path(folder)
    tiny_pipeline(kind, **options).save_pretrained(folder, safe_serialization=True)
    return folder


def rewritten_copy(folder, target, file, **changes):
    "A copy of a folder at `target` in which a JSON file has other values; returns the copy."
    folder = shutil.copytree(folder, target)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


def with_adapters(folder):
    "A denoiser with a random LoRA 'default', whose scale is not 1, and another one beside it."
    from peft import LoraConfig

    from balanceddpo.models.families import load_family, lora_targets

    model, targets = load_family(folder, device='cpu').model, list(lora_targets(folder))
    for i, name in enumerate(('default', 'reference')):
        config = LoraConfig(r=4, lora_alpha=16, target_modules=targets)
        model.add_adapter(config, adapter_name=name)
        for n, p in model.named_parameters():
            if f'lora_B.{name}' in n:
                p.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    model.set_adapter('default')
    return model


# --- what the library does with a folder, and random inputs


def diffusers_pipeline(folder):
    "The library's own pipeline of a folder."
    from diffusers import DiffusionPipeline

    index = json.loads((Path(folder) / 'model_index.json').read_text())
    # the library wants it said that T5 is left out
    absent = {k: None for k, v in index.items() if v == [None, None] and k.endswith('_3')}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_array(pipeline, **options):
    "A red cat by a pipeline, in two steps: float [1, h, w, 3] in [0, 1]."
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        'a red cat', num_inference_steps=2, output_type='np', generator=generator, **options
    ).images
    return torch.from_numpy(images)


def some_images(n=3, seed=0):
    "uint8 [n, 3, SIZE, SIZE]"
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def some_latents(n=3, seed=0):
    "Standard normal, [n, 4, 8, 8]."
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


# --- flow models


def tiny_t5():
    "A T5 tokenizer whose words are single characters, and an encoder of one layer, 48 wide."
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [
        ('<pad>', 0.0),
        ('</s>', 0.0),
        ('<unk>', 0.0),
        ('\u2581', -2.0),
        *((chr(i), -3.0) for i in range(33, 127)),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    return tokenizer, T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=48,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj='gated-gelu',
        )
    )


def tiny_transformer(kind):
    """The denoiser of one of `FLOW_KINDS`: two joint blocks of SD3, with SD3.5's second attention
    and normalised queries; a double and a single block of FLUX."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    heads = dict(attention_head_dim=16, num_attention_heads=2, joint_attention_dim=48)
    if kind in ('flux', 'schnell'):
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=kind == 'flux',
            **heads,
        )
    newer = dict(qk_norm='rms_norm', dual_attention_layers=(0,)) if kind == 'sd35' else {}
    return SD3Transformer2DModel(
        sample_size=SIZE // 8,
        num_layers=2,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        **heads,
        **newer,
    )


def tiny_flow_scheduler(kind):
    """The published schedules: SD3's shift of 3, FLUX.1-dev's that grows with the image,
    FLUX.1-schnell's none."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    by_size = dict(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FlowMatchEulerDiscreteScheduler(
        shift=1.0 if kind == 'schnell' else 3.0, **by_size if kind == 'flux' else {}
    )


def tiny_flow_vae(**config):
    "An AutoencoderKL with 16 channels, a scale and a shift, as the flow models have it."
    published = dict(
        latent_channels=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return make_vae(replace(TINY, vae=TINY.vae | published | config))


def tiny_flow_pipeline(kind, seed=0, **vae):
    "A pipeline of one of `FLOW_KINDS` with random weights."
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = tiny_tokenizer(), tiny_tokenizer(pad_token='!')
        sizes = two_layers(16)
        parts = dict(
            vae=tiny_flow_vae(**vae),
            tokenizer=first,
            transformer=tiny_transformer(kind),
            scheduler=tiny_flow_scheduler(kind),
        )
        t5_tokenizer, t5 = tiny_t5()
        if kind in ('flux', 'schnell'):
            return FluxPipeline(
                text_encoder=make_text(first, sizes),
                tokenizer_2=t5_tokenizer,
                text_encoder_2=t5,
                **parts,
            )
        if kind == 'sd35':
            t5_tokenizer = t5 = None
        clips = dict(
            text_encoder=make_text(first, sizes, projection=True),
            text_encoder_2=make_text(second, sizes, projection=True),
            tokenizer_2=second,
        )
        return StableDiffusion3Pipeline(
            **clips, tokenizer_3=t5_tokenizer, text_encoder_3=t5, **parts
        )
