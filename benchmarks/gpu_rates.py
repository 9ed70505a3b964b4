"""What the parts of the GPU benchmark share: sizes, goals, and how a rate is measured and kept.

Every rate is held against the useful work of an item with cached inputs (6.42 TFLOP a pair for a
step of SD1.5, whatever an arm wastes) and against a bf16 product of 8192^3 measured in the same
process. Inputs are normal numbers: zeros run faster than anything real does."""

from __future__ import annotations

import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median

from benchmarks.gpu_clock import ROW
from benchmarks.timing import SIZE, Log, wait_for_device
from benchmarks.world import SD15, SDXL
from random_networks import TINY, TINY_XL, Geometry

WARMUPS = 1  # calls before the rounds; the first one compiles
ROUNDS = int(os.environ.get('BENCH_ROUNDS', 5))

# By a word in the card's name, items a second: 31 to 63 % of what the product of each card allows.
GOALS = {
    'H100': {
        'eager': '>= 34',
        'compiled': '>= 44',
        'labelling, H': '>= 180',
        'labelling, L': '>= 250',
        'sampling': '>= 3.5',
        'sdxl': '>= 4',
    },
    'H200': {
        'eager': '>= 43',
        'compiled': '>= 55',
        'labelling, H': '>= 200',
        'labelling, L': '>= 280',
        'sampling': '>= 4.5',
        'sdxl': '>= 5',
    },
}
# Against a rival in the same process, and the refresh in milliseconds: the same for both cards.
SAME_GOALS = {
    'equal batch': '>= 1.6',
    'as it ships': '>= 3',
    'a prompt': '>= 2.5',
    'refresh': '<= 5',
}


@dataclass(frozen=True)
class Sizes:
    "What the parts run on. Pairs, images and pixels are numbers of them."

    sd15: Geometry
    sdxl: Geometry
    product: int  # rows and columns of the matrices whose product the shares are taken of
    batch: int  # pairs of an optimizer step
    micros: tuple[int, ...]  # pairs at once, in the order in which they are tried
    rival_batch: int  # pairs of a step beside a public order: both fit into 80 GB
    sdxl_batch: int
    sdxl_micros: tuple[tuple[str, int], ...]  # ('checkpointing' or 'eager', pairs at once)
    precision: str
    compiled: str  # as in `TrainConfig`
    denoising: int  # steps an image
    images: int  # drawn at once
    encoders: tuple[str, str]  # of `gpu_labelling.CLIP_SIZES`: in place of ViT-L/14 and ViT-H/14
    label_pairs: int
    pixels: tuple[int, ...]  # of the pictures that are labelled
    icon_batch: int  # pairs of a step of the icon world
    trainings: tuple[int, ...]  # of the icon world, side by side
    icon_steps: int  # that each of them does in a round


FULL = Sizes(
    sd15=SD15,
    sdxl=SDXL,
    product=8192,
    batch=32,
    micros=(16, 8, 32),
    rival_batch=8,
    sdxl_batch=8,
    sdxl_micros=(('checkpointing', 4), ('checkpointing', 8), ('eager', 2)),
    precision='bf16',
    compiled='whole',
    denoising=50,
    images=16,
    encoders=('L', 'H'),
    label_pairs=384,
    pixels=(512, 1024),
    icon_batch=32,
    trainings=(1, 2, 4, 8),
    icon_steps=8,
)
SMALL = Sizes(
    sd15=TINY,
    sdxl=replace(TINY_XL, name='SDXL', text={}),
    product=64,
    batch=4,
    micros=(2, 1, 4),
    rival_batch=2,
    sdxl_batch=2,
    sdxl_micros=(('checkpointing', 1), ('eager', 2)),
    precision='bf16',
    compiled='no',
    denoising=2,
    images=2,
    encoders=('tiny', 'tiny'),
    label_pairs=6,
    pixels=(64, 96),
    icon_batch=2,
    trainings=(1, 2),
    icon_steps=1,
)


def sizes() -> Sizes:
    "Those that `BENCH_SIZE` asks for."
    return SMALL if SIZE == 'tiny' else FULL


def device() -> str:
    "'cuda', or 'cpu' where there is none."
    import torch

    return 'cuda' if torch.cuda.is_available() else 'cpu'


def card_name() -> str:
    "The name of the GPU; empty if there is none."
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ''


def goal(name: str, of: str | None = None) -> str:
    "The goal `name`, such as '>= 34', for the card `of` (default: this one); empty for other ones."
    words = re.findall(r'\w+', card_name() if of is None else of)
    for model, goals in GOALS.items():
        if model in words:
            return (goals | SAME_GOALS)[name]
    return ''


# --- memory


def free() -> None:
    "Give back the device memory of what is no longer used."
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def fits(log: Log, what: str) -> Iterator[None]:
    "Keep a row if the work inside runs out of device memory, and go on with the memory free again."
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        # The traceback holds the frames of what ran, and with them its tensors.
        traceback.clear_frames(error.__traceback__)
        log.add(row=ROW, note=f'{what}: out of memory')
        print(f'{what}: out of memory', flush=True)
    free()


def out_of_memory(error: RuntimeError) -> bool:
    "Whether an error is torch's for too little device memory, or that of one of CUDA's libraries."
    import torch

    words = ('out of memory', 'ALLOC_FAILED')
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def peak_gib() -> float:
    "The most device memory that was allocated since `forget_peak`; 0 without a GPU."
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def forget_peak() -> None:
    "The peak starts anew from what is allocated now."
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


# --- rates


@dataclass(frozen=True)
class Rate:
    "Something to be measured in items a second."

    what: str
    items: float  # that one call of the work does
    flop: float = 0.0  # useful FLOPs an item; 0 where no share of the product is asked for
    goal: str = ''
    facts: dict = field(default_factory=dict)  # further columns


def seconds_of(work: Callable[[], object]) -> float:
    "Wall-clock seconds of one call, the device's work included."
    wait_for_device()
    began = time.perf_counter()
    work()
    wait_for_device()
    return time.perf_counter() - began


def measure(log: Log, rate: Rate, work: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The rates of `rounds` calls of `work`, items a second, after one that is not counted.

    Each is a row as soon as it is there, with its share of the measured product, the peak of the
    device memory (GiB) and the seconds of the first call."""
    product = product_rate() if rate.flop else None
    forget_peak()
    first, *_ = [seconds_of(work) for _ in range(WARMUPS)]
    found = []
    for number in range(rounds):
        found.append(rate.items / seconds_of(work))
        share = found[-1] * rate.flop / product if product else None
        facts = {'share': share, 'peak_gib': peak_gib(), 'first_call': first, **rate.facts}
        log.add(row=ROW, what=rate.what, goal=rate.goal, round=number, value=found[-1], **facts)
    about = f', {median(found) * rate.flop / product:.0%} of the product' if product else ''
    about += f', {peak_gib():.1f} GiB, first call {first:.1f} s'
    print(f'{rate.what}: {median(found):.4g}/s{about}', flush=True)
    return found


def ten_products() -> Callable[[], None]:
    "Ten products of square bf16 matrices of normal numbers."
    import torch

    n = sizes().product
    a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in 'ab')

    def work():
        for _ in range(10):
            a @ b

    return work


@cache
def product_rate() -> float:
    "FLOP/s of that product: the roof that all shares are taken of, measured once in a process."
    work = ten_products()
    times = [seconds_of(work) for _ in range(WARMUPS + 10)][WARMUPS:]
    return 10 * 2 * sizes().product ** 3 / median(times)


def measure_product(log: Log) -> None:
    "The rows of the product itself."
    n = sizes().product
    measure(log, Rate(f'{n}^3 bf16 products', 10), ten_products())
