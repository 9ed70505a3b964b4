"""Sampling on a GPU: images of SD1.5 with random weights, from prompts to PIL, against a plain
`diffusers` pipeline that is called a prompt at a time in the same process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu_clock import ROW
from benchmarks.gpu_rates import ROUNDS, Rate, device, fits, goal, measure, sizes
from benchmarks.timing import Log
from benchmarks.world import flops, make_family

LEVELS = 1.5  # of 255, by which a picture of ours may differ on average from the pipeline's in fp32
GATE_STEPS = 2  # denoising steps of the gate
GUIDANCE = 7.5  # the default of both
MOST_ROUNDS = min(ROUNDS, 4)
RIVAL = 'a diffusers call a prompt'


def image_flops(cost: dict, steps: int) -> float:
    "FLOPs an image, from those of the parts: each step twice for guidance, decoding, two prompts."
    return 2 * steps * cost['unet'] + cost['decode'] + 2 * cost['text']


def prompts_of(n: int) -> tuple[str, ...]:
    "n prompts, all different."
    return tuple(f'a red apple {i}' for i in range(n))


def settings(n: int, steps: int):
    "The sampling settings: one image a prompt, n at once."
    from balanceddpo.models.config import SampleConfig

    some = dict(images_per_prompt=1, steps=steps, guidance=GUIDANCE, batch_size=n)
    return SampleConfig('benchmark', **some)


def our_sampler(family, n: int, steps: int) -> Callable[[], list]:
    "What draws n images, one a prompt, all at once, as `balanceddpo sample` does; the images."
    from balanceddpo.data.prompts import PromptSet
    from balanceddpo.models.families import plain_pipeline
    from balanceddpo.models.sampling import generate, make_scheduler, plan_batches

    pipeline = plain_pipeline(family, make_scheduler('ddim', family.scheduler_config))
    prompts, wanted = PromptSet('made', prompts_of(n)), {(i, 0) for i in range(n)}

    def draw():
        planned = list(plan_batches(n, 1, n))
        found = generate(family, pipeline, prompts, settings(n, steps), planned, wanted)
        return [image for _, _, image in found]

    return draw


def rival_sampler(family, n: int, steps: int) -> Callable[[], list]:
    "What draws the same n images by n calls of a plain pipeline; the images."
    import torch
    from diffusers import StableDiffusionPipeline

    from balanceddpo.data.prompts import PromptSet
    from balanceddpo.models.sampling import image_seed, initial_latents, make_scheduler

    parts = {name: family.part(name) for name in ('unet', 'vae', 'text_encoder', 'tokenizer')}
    none = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    scheduler = make_scheduler('ddim', family.scheduler_config)
    pipeline = StableDiffusionPipeline(scheduler=scheduler, **parts, **none)
    pipeline.set_progress_bar_config(disable=True)
    prompts, shape = PromptSet('made', prompts_of(n)), family.latent_shape()
    options = dict(num_inference_steps=steps, guidance_scale=GUIDANCE)

    def draw_one(prompt, identity):
        latents = initial_latents([image_seed(identity, 0)], shape)
        latents = latents.to(device(), family.model.dtype)
        with torch.inference_mode():
            return pipeline(prompt, latents=latents, **options).images[0]

    def draw():
        return [draw_one(*pair) for pair in zip(prompts.prompts, prompts.ids)]

    return draw


def difference(a: list, b: list) -> float:
    "The largest mean difference of two pictures, of 255."
    import numpy as np

    first, second = (np.stack([np.asarray(image, float) for image in some]) for some in (a, b))
    return float(np.abs(first - second).mean(axis=(1, 2, 3)).max())


def gate(log: Log, family) -> bool:
    "Whether both draw the same pictures, in fp32 with few steps."
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    drawn = (sampler(family, 2, GATE_STEPS)() for sampler in (our_sampler, rival_sampler))
    what = 'sampling, fp32: mean difference of a picture, of 255'
    return log.gate(ROW, what, difference(*drawn), LEVELS, stop=False)


def sampling(log: Log) -> None:
    "Eager and compiled, each against the pipeline."
    import torch

    from balanceddpo.core.devices import pick_dtype

    s = sizes()
    with TemporaryDirectory() as folder:
        family = make_family(s.sd15, Path(folder), device())
        log.marks['same_work'] = False  # until the gate has shown it
        with fits(log, 'sampling, gate in fp32'):
            log.marks['same_work'] = gate(log, family)
        for part in ('unet', 'vae', 'text_encoder'):
            family.parts[part].to(pick_dtype(s.precision))
        flop = image_flops(flops(s.sd15), s.denoising)
        theirs = measure_rival(log, family, flop)
        measure_ours(log, family, flop, theirs, 'eager')
        family.model.to(memory_format=torch.channels_last)
        if s.compiled != 'no':
            family.model.compile()
        measure_ours(log, family, flop, theirs, 'compiled, channels_last')


def measure_rival(log: Log, family, flop: float) -> list[float]:
    "Images a second of the plain pipeline; empty if an image does not fit into memory."
    s, rates = sizes(), []
    what = f'{s.sd15.name} sampling, {s.denoising} steps with guidance, {RIVAL}: images'
    with fits(log, what):
        draw = rival_sampler(family, 1, s.denoising)
        rates = measure(log, Rate(what, 1, flop), draw, MOST_ROUNDS)
    return rates


def measure_ours(log: Log, family, flop: float, theirs: list, how: str) -> None:
    "Images a second of ours, and how many times the pipeline's: round by round."
    s = sizes()
    name = f'{s.sd15.name} sampling, {how}, {s.images} images at once'
    with fits(log, name):
        rate = Rate(f'{name}: images', s.images, flop, goal('sampling'))
        rates = measure(log, rate, our_sampler(family, s.images, s.denoising), MOST_ROUNDS)
        for number, (mine, other) in enumerate(zip(rates, theirs)):
            facts = {'round': number, 'value': mine / other}
            log.add(row=ROW, what=f'{name}, against {RIVAL}', goal=goal('a prompt'), **facts)
