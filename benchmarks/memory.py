"""Row 5: memory and start-up. Each figure comes from a process of its own, so that nothing measured
before is in it.

Training: the peak of the resident memory over that before the run was made, against what can be
counted: weights of policy and reference, gradients, the optimizer's state, and what the policy's
forward pass keeps for the backward pass. Labelling: the peak over a whole process that labels a
Parquet file of small JPEGs, for more and more pairs, with one small network and one function as
scorers: the figure is about the pipeline, and does not grow with the pairs if it streams."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from benchmarks.timing import HERE, SIZE, Log, read_command_line

ROW = 5
PAIRS = {'tiny': (50, 100), 'cpu': (1_000, 10_000)}[SIZE]  # labelled; --full adds 100,000
FULL = 100_000
PIXELS = 32  # of the small JPEGs
CAPTIONS = 1_000  # different captions among them
STARTS = {'tiny': 3, 'cpu': 9}[SIZE]  # runs of each start-up
START_UPS = {  # what is started: the words after `python`, and the goal in seconds
    'balanceddpo --help': (('-m', 'balanceddpo.cli', '--help'), '<= 0.5'),
    'import balanceddpo': (('-c', 'import balanceddpo'), '<= 0.3'),
}
PEAK_GOAL = '<= 1.15'
MIB = 2**20
HEAPS = {
    '': {},
    ', memory not kept': {'BALANCEDDPO_NUMERICS': 'plain'},
    # glibc keeps freed memory between what is in use: with pages of its own for each tensor it
    # does not
    ', no holes in the heap': {'BALANCEDDPO_NUMERICS': 'plain', 'MALLOC_MMAP_THRESHOLD_': '65536'},
}


def run_job(*words, **settings: str) -> dict:
    "What `python -m benchmarks.memory WORDS` prints, with these environment variables: JSON."
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.memory', *map(str, words)],
        cwd=HERE.parent,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f'{" ".join(map(str, words))} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def process_bytes(name: str) -> int:
    "Bytes of a line of /proc/self/status: VmRSS (resident now), VmHWM (its peak)."
    lines = Path('/proc/self/status').read_text().splitlines()
    line = next(line for line in lines if line.startswith(name + ':'))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    "The peak of the resident memory starts anew from what is resident now."
    Path('/proc/self/clear_refs').write_text('5')


def kept_bytes(call, parameters) -> int:
    """Bytes that autograd keeps during `call()`: storages of saved tensors, each once, without the
    parameters."""
    import torch

    owned = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}  # place of a storage -> its bytes

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # nothing is freed, and no storage used twice, before the backward pass
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def tensor_bytes(tensors) -> int:
    "Bytes of all elements of some tensors."
    return sum(t.numel() * t.element_size() for t in tensors)


def counted_bytes(run) -> dict[str, int]:
    "Bytes that a run must hold at its peak, from the sizes of its tensors; call it after a step."
    import numpy as np
    import torch

    from balanceddpo.training.loop import micro_step

    weights = {}  # each once, where policy and reference share them
    for model in (run.policy, run.reference.model):
        weights |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    state = []
    for values in run.optimizer.state.values():
        state += [value for value in values.values() if isinstance(value, torch.Tensor)]
    places = np.arange(run.config.micro_batch_size)
    activations = kept_bytes(lambda: micro_step(run, places), weights.values())
    return {
        'weights': tensor_bytes(weights.values()),
        'gradients': tensor_bytes(run.parameters),
        'optimizer': tensor_bytes(state),
        'activations': activations,
    }


def training_peak(folder, mode='full') -> dict:
    """Bytes: the peak of two training steps over the memory before the run was made, and what is
    counted. On the CPU."""
    import gc

    from benchmarks.step import make_world, our_step, start_ours, train_config
    from benchmarks.world import GEOMETRIES

    g = GEOMETRIES[SIZE]
    world = make_world(g, Path(folder) / 'world')
    # code, thread pools and kernels' scratch are there before
    warm = start_ours(world, train_config(g, mode, g.batch), Path(folder) / 'warm')
    our_step(warm)
    del warm, world.pixels
    gc.collect()
    return_to_system()
    before = process_bytes('VmRSS')
    forget_peak()
    run = start_ours(world, train_config(g, mode, g.batch), Path(folder) / 'run')
    for _ in range(2):
        our_step(run)
    return {'peak': process_bytes('VmHWM') - before, 'counted': counted_bytes(run)}


def return_to_system() -> None:
    "Give freed memory back, so that it is not there for the run to use unseen."
    import ctypes

    with suppress(OSError):  # not glibc
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def write_source(path, n) -> Path:
    "`n` pairs of small JPEGs as a Parquet file."
    from balanceddpo.data.pairs import write_pairs
    from benchmarks.world import synthetic_pairs

    return write_pairs(synthetic_pairs(n, PIXELS, CAPTIONS), path)


def small_scorers(folder, k=1) -> list:
    "`k` scorers with a small random CLIP each, and one that is a function of the pixels."
    from balanceddpo.scoring.registry import load_scorer, register_scorer
    from benchmarks.world import WORDS
    from random_networks import write_random_clip

    @register_scorer('brightness')
    def brightness(images, prompts):
        return [sum(image.resize((1, 1)).getpixel((0, 0))) / 765 for image in images]

    found = []
    for i in range(k):
        network = write_random_clip(Path(folder) / f'clip{i}', words=WORDS, seed=i)
        found.append(load_scorer(f'clip{i}:clip={network}', device='cpu'))
    return found + [load_scorer('brightness')]


def label_all(folder) -> dict:
    "Label `folder/pairs.parquet`; the peak of this whole process in bytes, and the pairs."
    import warnings

    from balanceddpo.data.sources import PairSource
    from balanceddpo.scoring.tables import score_pairs

    warnings.simplefilter('ignore')  # a random network hardly tells images apart, and says so
    folder = Path(folder)
    pairs, scorers = PairSource(str(folder / 'pairs.parquet')), small_scorers(folder)
    score_pairs(pairs, scorers, folder / 'scores', progress=False)
    return {'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def start_seconds(code: Sequence[str]) -> float:
    "Wall-clock seconds of a fresh Python with these words after it."
    import time

    began = time.perf_counter()
    subprocess.run([sys.executable, *code], cwd=HERE.parent, check=True, capture_output=True)
    return time.perf_counter() - began


def measure_training(log: Log) -> None:
    "Peaks of training over what is counted, by mode and by how freed memory is kept."
    for mode, (how, settings) in product(('full', 'lora'), HEAPS.items()):
        with tempfile.TemporaryDirectory() as folder:
            found = run_job('training', folder, mode, **settings)
        sizes = {'peak': found['peak'], **found['counted']}
        log.add(
            row=ROW,
            what=f'peak of training, {mode}, over weights + optimizer + activations{how}',
            goal=PEAK_GOAL,
            round=0,
            value=found['peak'] / sum(found['counted'].values()),
            mib={name: size / MIB for name, size in sizes.items()},
        )


def measure_labelling(log: Log, sizes: Sequence[int] = PAIRS) -> None:
    "Peaks of labelling by number of pairs, and the last over the first."
    peaks = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run_job('source', folder, n)
            peaks[n] = run_job('label', folder)['peak']
        what = f'labelling {n:,} pairs, peak in MiB'
        log.add(row=ROW, what=what, goal='', round=0, value=peaks[n] / MIB)
    first, last = min(sizes), max(sizes)
    what = f'peak of labelling {last:,} pairs over that of {first:,}'
    log.add(row=ROW, what=what, goal=PEAK_GOAL, round=0, value=peaks[last] / peaks[first])


def measure_starts(log: Log) -> None:
    "Seconds of each start-up."
    for command, (code, goal) in START_UPS.items():
        what = f'seconds of `{command}`'
        for number in range(STARTS):
            log.add(row=ROW, what=what, goal=goal, round=number, value=start_seconds(code))


def main() -> None:
    "Start-up, training and labelling."
    full = read_command_line(__doc__, full=f'label {FULL:,} pairs too').full
    # `make bench` leaves the long run's rows
    log = Log('memory_full' if full else 'memory', pixels=PIXELS, captions=CAPTIONS)
    measure_starts(log)
    measure_training(log)
    measure_labelling(log, (*PAIRS, FULL) if full else PAIRS)


def write_pairs_file(folder, n) -> dict:
    "Write `n` pairs (a number as text) to `folder/pairs.parquet`; the size of the file in bytes."
    return {'bytes': write_source(Path(folder) / 'pairs.parquet', int(n)).stat().st_size}


# What a process of this file does when its first word is one of these; it prints what it returns.
JOBS = {'training': training_peak, 'label': label_all, 'source': write_pairs_file}

if __name__ == '__main__':
    if len(sys.argv) > 1 and sys.argv[1] in JOBS:
        print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
