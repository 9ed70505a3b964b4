"""Networks of a stated geometry with random weights, and the pipelines and CLIPs that they make, in
the published formats: for tests, examples and benchmarks. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from balanceddpo.core.devices import ensure_torchvision


@dataclass(frozen=True)
class Geometry:
    """Sizes of a Stable Diffusion model; what a dict leaves out is the class's default, which for
    the UNet and CLIP is SD1.5's."""

    name: str
    pixels: int  # a side
    unet: dict
    vae: dict
    text: dict = field(default_factory=dict)  # of each text encoder; empty: there is none
    tokens: int = 77  # a prompt, start and end included
    kind: str = 'sd15'  # or 'sd21', 'sdxl': which pipeline and which scheduler
    batch: int = 2  # pairs an optimizer step


def two_layers(width: int) -> dict:
    "Sizes of a narrow text or image side of CLIP."
    return dict(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
    )


TINY = Geometry(
    'tiny',
    64,
    dict(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
    ),
    dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4),
    two_layers(32),
    tokens=16,
)
LINEAR = dict(use_linear_projection=True)  # SD2.1 and SDXL project by linear layers
# SDXL takes sizes and a pooled text, and texts of two encoders side by side
TINY_XL = replace(
    TINY,
    kind='sdxl',
    unet=TINY.unet
    | LINEAR
    | dict(
        cross_attention_dim=64,
        transformer_layers_per_block=(1, 2),
        addition_embed_type='text_time',
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    ),
)
TINY_KINDS = {
    'sd15': TINY,
    'sd21': replace(TINY, kind='sd21', unet=TINY.unet | LINEAR),
    'sdxl': TINY_XL,
}


# --- text


def word_tokenizer(
    words: Iterable[str],
    length: int = 24,
    characters: Iterable[str] | None = None,
    pad_token: str = '<|endoftext|>',
):
    """A `CLIPTokenizer` with one token for each of `words` (in lower case, punctuation apart) and
    one for each of `characters`; by default one for every byte, so that nothing is unknown."""
    ensure_torchvision()
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet, merges = list(characters or sorted(ByteLevel.alphabet())), {}
    vocabulary = {t: i for i, t in enumerate(alphabet + [a + '</w>' for a in alphabet])}
    for word in words:
        pieces = [*word[:-1], word[-1] + '</w>']
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.setdefault(pieces[0], len(vocabulary))
    # the largest id ends a text: open_clip finds it by argmax
    for special in ('<|startoftext|>', '<|endoftext|>'):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(merges), pad_token=pad_token, model_max_length=length
    )


def text_settings(tokenizer, sizes: dict) -> dict:
    "Settings of a CLIP text side of these sizes, the rest as `tokenizer` needs it."
    settings = dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=sizes['hidden_size'],
    )
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
        settings[name] = getattr(tokenizer, name)
    return settings | sizes


def make_text(tokenizer, sizes: dict, projection: bool = False):
    """A CLIPTextModel for the words of `tokenizer`, or with `projection` a
    CLIPTextModelWithProjection (SDXL's second encoder)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind, activation = CLIPTextModel, 'quick_gelu'
    if projection:
        kind, activation = CLIPTextModelWithProjection, 'gelu'
    return kind(CLIPTextConfig(**text_settings(tokenizer, sizes), hidden_act=activation))


# --- the diffusion model


def make_vae(g: Geometry):
    "The autoencoder, with SD's factor 8."
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        sample_size=g.pixels,
        **g.vae,
    )


def make_unet(g: Geometry):
    "The denoiser, for as many latent channels as the autoencoder has."
    from diffusers import UNet2DConditionModel

    channels = g.vae.get('latent_channels', 4)
    return UNet2DConditionModel(
        sample_size=g.pixels // 8, in_channels=channels, out_channels=channels, **g.unet
    )


def make_scheduler(kind: str):
    "The family's own scheduler: PNDM for SD1.5, DDIM with v-prediction for SD2.1, Euler for SDXL."
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    noise = dict(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='scaled_linear',
        steps_offset=1,
    )
    if kind == 'sdxl':
        return EulerDiscreteScheduler(**noise, timestep_spacing='leading')
    noise |= dict(set_alpha_to_one=False)
    if kind == 'sd21':
        return DDIMScheduler(**noise, clip_sample=False, prediction_type='v_prediction')
    return PNDMScheduler(**noise, skip_prk_steps=True)


def make_pipeline(kind: str, parts: dict):
    """The plain pipeline of these networks and tokenizers, with the family's own scheduler. What
    SDXL's may lack is left out."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = parts | dict(scheduler=make_scheduler(kind))
    if kind == 'sdxl':
        clips = ('text_encoder', 'tokenizer', 'text_encoder_2', 'tokenizer_2')
        return StableDiffusionXLPipeline(**dict.fromkeys(clips) | parts, add_watermarker=False)
    none = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return StableDiffusionPipeline(**parts, **none)


# --- CLIP


def make_clip(vision: dict, text: dict):
    "A CLIPModel of transformers with these settings of its two sides."
    from transformers import CLIPConfig, CLIPModel

    width = text['projection_dim']
    return CLIPModel(CLIPConfig(projection_dim=width, vision_config=vision, text_config=text))


CLIP_PIXELS, CLIP_WIDTH = 32, 32  # of the CLIPs that are written, in patches of a quarter


def write_transformers_clip(folder: Path, tokenizer) -> None:
    "Write a transformers CLIP, its tokenizer and its image processor."
    from transformers import CLIPImageProcessor, CLIPProcessor

    sizes, n = two_layers(CLIP_WIDTH), CLIP_PIXELS
    vision = dict(sizes, image_size=n, patch_size=n // 4)
    make_clip(vision, text_settings(tokenizer, sizes)).save_pretrained(folder)
    seen = CLIPImageProcessor(size={'shortest_edge': n}, crop_size={'height': n, 'width': n})
    CLIPProcessor(seen, tokenizer).save_pretrained(folder)


def write_open_clip(folder: Path, tokenizer) -> None:
    "Write an open_clip CLIP, its settings and its tokenizer."
    import open_clip
    from safetensors.torch import save_file

    n, width = CLIP_PIXELS, CLIP_WIDTH
    vision = dict(image_size=n, patch_size=n // 4, width=width, layers=2, head_width=width // 2)
    text = dict(
        context_length=tokenizer.model_max_length,
        vocab_size=len(tokenizer),
        width=width,
        heads=2,
        layers=2,
        hf_tokenizer_name='tokenizer',
    )
    model = dict(embed_dim=width, vision_cfg=vision, text_cfg=text)
    seen = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    settings = json.dumps(dict(model_cfg=model, preprocess_cfg=seen))
    (folder / 'open_clip_config.json').write_text(settings)
    tokenizer.save_pretrained(folder)
    save_file(open_clip.CLIP(**model).state_dict(), folder / 'open_clip_model.safetensors')


def write_random_clip(
    folder: str | Path,
    library: str = 'transformers',
    words: Iterable[str] = (),
    seed: int = 0,
) -> Path:
    """Write a CLIP that `load_encoder` loads, in the format of 'transformers' or 'open_clip'.
    Returns the folder."""
    import torch

    folder, tokenizer = Path(folder), word_tokenizer(words)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        write = {'transformers': write_transformers_clip, 'open_clip': write_open_clip}[library]
        write(folder, tokenizer)
    return folder
