"""What a process of `benchmarks.gpu` runs: one part, from its name."""

from __future__ import annotations

from functools import partial

from benchmarks import gpu_training
from benchmarks.gpu_labelling import labelling
from benchmarks.gpu_sampling import sampling
from benchmarks.timing import Log

FUNCTIONS = {
    'step': gpu_training.step,
    'rivals_full': partial(gpu_training.rivals, mode='full'),
    'rivals_lora': partial(gpu_training.rivals, mode='lora'),
    'compiled': gpu_training.compiled,
    'labelling': labelling,
    'sampling': sampling,
    'sdxl': gpu_training.sdxl,
    'offloaded': gpu_training.offloaded,
    'icons': gpu_training.icons,
    'rivals_compiled': partial(gpu_training.rivals, mode='full', compiled=True),
}


def run(name: str) -> None:
    "Run a part of this name, its rows into a file of its own."
    from balanceddpo.core.devices import ensure_torchvision

    ensure_torchvision()
    FUNCTIONS[name](Log(f'gpu_{name}'))
