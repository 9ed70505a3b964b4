"""A whole-process race against a peer's own training script, on one CPU.

    python -m benchmarks.race --peer FOLDER          24 pairs, each visited 1, 3 and 10 times
    python -m benchmarks.race --peer FOLDER --full   1,000 pairs, each visited once

FOLDER is a clone of one of these, at the commit that this race was written for:

    github.com/SalesforceAIResearch/DiffusionDPO   5233e75919f9   train.py, all weights
    github.com/huggingface/diffusers               58eb52c0803e   train_diffusion_dpo.py, LoRA, in
                                                   examples/research_projects/diffusion_dpo

Both sides start from the same pipeline folder (random weights, `benchmarks.world`) and the same
Parquet file of pairs, and end with a saved model. Ours is one command, `balanceddpo align
DiffusionDPO`, which labels, encodes and trains. The peer's is its script. Measured are CPU seconds
(user and system, with children), wall seconds, the peak of the resident memory of the largest
process, and wall seconds to the end of the first step. CPU seconds a step are the difference of two
runs with different numbers of visits over the difference of their steps. A value is the peer's over
ours, so above 1 ours needs less. In each round ours runs before and after the peer: their mean is
compared, and their ratio is the A/A control.

The same on both sides: fp32, 8 pairs a step, the strength of the DPO loss, learning rate, AdamW,
clipping, rank of the LoRA, no warm-up, pictures not mirrored, no caption dropped, a sample of the
autoencoder's Gaussian at each visit. What is left as each ships: DiffusionDPO takes one pair at a
time and adds up eight gradients, as its launchers do; the LoRA script takes its eight at once,
without the gradient checkpointing and the 8-bit Adam of its README; ours takes eight at once,
keeps its latents in fp16, and writes a checkpoint with the optimizer's state beside the model.

The peer's file is not changed; `benchmarks.peers` says how it is called, and what stands in for
the three things that it misses on a CPU. Both sides get the environment as it is:
`BALANCEDDPO_NUMERICS=plain` turns our kernels off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.peers import (
    BATCH,
    BETA,
    RANK,
    RATE,
    Course,
    Peer,
    as_words,
    commit_of,
    find_peer,
    is_known_file,
    peer_command,
    write_stand_ins,
)
from benchmarks.timing import HERE, SIZE, Log

# Kept before the package is imported, so that nothing it sets for itself reaches the peer.
ENVIRONMENT = dict(os.environ)

ROW = 'race'
PIPELINE, LORA = 'model_index.json', 'pytorch_lora_weights.safetensors'
CHECKPOINT = 500  # steps; the default of both scripts, which no race of the usual sizes reaches
PAIRS, VISITS, ROUNDS = 24, (1, 3, 10), 2
MANY = 1000  # pairs of --full
STEP_GOAL, MANY_GOAL = '>= 2.2', '>= 1.3'
CHANGE = 1e-6  # least relative change of a denoiser that was trained
GLANCE = 0.05  # seconds between two looks at a process
MIB = 2**20
MAXRSS = 1 if sys.platform == 'darwin' else 1024  # bytes in a unit of ru_maxrss
TAIL = 400  # characters of the output of a process that failed
SIDES = ('before', 'theirs', 'after')  # ours, the peer, ours
MEASURES = {  # fields of Cost
    'cpu': 'CPU seconds',
    'wall': 'wall seconds',
    'peak': 'peak memory',
    'first': 'wall seconds to the first step',
}


# --- the two sides


def steps_of(pairs: int, visits: int) -> int:
    "Optimizer steps that visit each of `pairs` so often. Raises SystemExit if they do not divide."
    if pairs % BATCH:
        raise SystemExit(f'{pairs} pairs are not whole steps: use a multiple of {BATCH}')
    return pairs * visits // BATCH


def our_command(mode: str, course: Course, steps: int, out: Path) -> list:
    "Our command line: the model goes to `out/run/model`."
    settings = {
        'model': course.model,
        'pairs': course.pairs,
        'resolution': course.pixels,
        'mode': mode,
        'max-steps': steps,
        'batch-size': BATCH,
        'micro-batch-size': BATCH,
        'learning-rate': RATE[mode],
        'warmup-steps': 0,
        'beta': BETA,
        'empty-prompt-rate': 0,
        'mirror': 'no',  # as --no_hflip of the scripts
        'lora-rank': RANK,
        'precision': 'fp32',
        'checkpoint-every': CHECKPOINT,
        'seed': 0,
        'out': out / 'run',
    }
    return [sys.executable, '-m', 'balanceddpo.cli', 'align', 'DiffusionDPO', *as_words(settings)]


# --- what a process takes


@dataclass(frozen=True)
class Cost:
    "What a process and its children took."

    cpu: float  # seconds, user and system
    wall: float  # seconds
    peak: float  # MiB resident, of the largest process
    first: float | None = None  # wall seconds from the start to the end of the first step


def run_and_measure(
    name: str,
    command: list,
    folder: Path,
    environment: dict[str, str],
    stepped: Callable[[Path], bool],
) -> Cost:
    """Run a command in `folder`, with nothing beside it, and wait for it.

    `stepped(output)` tells from the file of its output whether the first step is done. Raises
    SystemExit with the end of its output if it fails."""
    output = folder / 'output.txt'
    with open(output, 'wb') as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            usage, ended, first = wait_for(process, lambda: stepped(output))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        end = ' '.join(output.read_text(encoding='utf-8', errors='replace').split())[-TAIL:]
        raise SystemExit(f'{name} ended with exit code {process.returncode}: ... {end}')
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * MAXRSS / MIB
    return Cost(cpu, ended - began, peak, None if first is None else first - began)


def wait_for(process: subprocess.Popen, stepped: Callable[[], bool]) -> tuple:
    """Wait for a process: what it used, when it ended, and when `stepped` was first true or None.

    Its exit code is left in `process.returncode`, where a plain wait would leave it."""
    first = None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.perf_counter()
        if first is None and stepped():
            first = now
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage, now, first
        time.sleep(GLANCE)


def bar_moved(output: Path) -> bool:
    "Whether a progress bar called Steps has counted one."
    return bool(re.search(rb'Steps:[^\r\n]*\| *[1-9]\d*/\d+ \[', output.read_bytes()))


def metrics_written(path: Path) -> bool:
    "Whether our file of metrics has a row."
    return path.is_file() and path.stat().st_size > 0


# --- the race


def run_peer(peer: Peer, script: Path, course: Course, steps: int, out: Path) -> Cost:
    "Train by the peer's script, into the new folder `out`. Raises SystemExit if that fails."
    stand_ins = write_stand_ins(out / 'stand_ins')
    environment = environment_with(stand_ins, HF_HOME=str(out / 'hub'))
    command = peer_command(peer, script, course, steps, out)
    cost = run_and_measure(peer.name, command, out, environment, bar_moved)
    check_saved(peer.name, out / 'model')
    return cost


def run_ours(mode: str, course: Course, steps: int, out: Path) -> Cost:
    "Align by our command, into the new folder `out`. Raises SystemExit if that fails."
    environment = environment_with(HERE.parent, BALANCEDDPO_RUNS=str(out / 'runs'))
    out.mkdir()

    def stepped(_):
        return metrics_written(out / 'run' / 'metrics.jsonl')

    command = our_command(mode, course, steps, out)
    cost = run_and_measure('balanceddpo align', command, out, environment, stepped)
    check_saved('balanceddpo align', out / 'run' / 'model')
    return cost


def environment_with(folder: Path, **settings: str) -> dict[str, str]:
    "The environment of a process: no GPU, `folder` first among Python's, and these settings."
    search = [folder, ENVIRONMENT.get('PYTHONPATH')]
    path = os.pathsep.join(str(place) for place in search if place)
    return ENVIRONMENT | {'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': path} | settings


def check_saved(name: str, model: Path) -> None:
    "Raises SystemExit if a folder holds neither a pipeline nor a LoRA in diffusers' format."
    if not any((model / file).is_file() for file in (PIPELINE, LORA)):
        raise SystemExit(f'{name} ended well and saved no model in {model.name}')


@dataclass(frozen=True)
class Heat:
    "What one number of visits took, ours before and after the peer."

    steps: int
    before: Cost
    theirs: Cost
    after: Cost

    def values_of(self, measure: str) -> dict:
        "One measure of the three runs; None where it is not known."
        return {side: getattr(getattr(self, side), measure) for side in SIDES}


def run_heat(peer: Peer, script: Path, course: Course, steps: int, folder: Path) -> Heat:
    "Ours, the peer, ours; what each wrote is removed once it has ended."
    costs = []
    for side in ('ours', 'theirs', 'ours'):
        out = folder / 'heat'
        if side == 'ours':
            costs.append(run_ours(peer.mode, course, steps, out))
        else:
            costs.append(run_peer(peer, script, course, steps, out))
        shutil.rmtree(out)
    return Heat(steps, *costs)


def per_step(heats: list[Heat]) -> dict[str, float]:
    "CPU seconds a step of each side, from the heats with the fewest and the most steps."
    few = min(heats, key=lambda heat: heat.steps)
    many = max(heats, key=lambda heat: heat.steps)
    less, more = few.values_of('cpu'), many.values_of('cpu')
    return {side: (more[side] - less[side]) / (many.steps - few.steps) for side in SIDES}


def ratio_columns(took: dict[str, float]) -> dict:
    "What a row says of ours before, the peer's, and ours after: ratio, A/A control, and all three."
    mean = (took['before'] + took['after']) / 2
    return {
        'value': took['theirs'] / mean,
        'control': took['after'] / took['before'],
        'took': took,
    }


def heat_rows(peer: Peer, pairs: int, visits: int, heat: Heat) -> list[dict]:
    "A row a measure of one heat."
    where = f'{peer.name} over ours, {pairs:,} pairs x {visits}'
    rows = []
    for measure, words in MEASURES.items():
        took = heat.values_of(measure)
        if None not in took.values():
            goal = MANY_GOAL if (measure, pairs, visits) == ('cpu', MANY, 1) else ''
            what = f'{where}: {words}'
            rows.append({'what': what, 'goal': goal, **ratio_columns(took), 'steps': heat.steps})
    return rows


def step_row(peer: Peer, pairs: int, heats: list[Heat]) -> dict:
    "The row of CPU seconds a step, from the heats of a round."
    what = f'{peer.name} over ours, {pairs:,} pairs: CPU seconds a step'
    return {'what': what, 'goal': STEP_GOAL, **ratio_columns(per_step(heats))}


def run_round(
    number: int,
    peer: Peer,
    script: Path,
    course: Course,
    visits: tuple[int, ...],
    folder: Path,
    log: Log,
) -> None:
    "One round: a heat for each number of visits, and the step that they give. Rows go to `log`."
    common = {'row': ROW, 'round': number, 'peer_commit': commit_of(script)}
    heats = []
    for count in visits:
        heat = run_heat(peer, script, course, steps_of(course.count, count), folder)
        heats.append(heat)
        for row in heat_rows(peer, course.count, count, heat):
            keep_row(log, common | row)
    if len(heats) > 1:
        keep_row(log, common | step_row(peer, course.count, heats))


def keep_row(log: Log, row: dict) -> None:
    "Add a row and print its ratio."
    log.add(**row, load=round(os.getloadavg()[0], 2))
    ratio = f'{row["value"]:.2f} (A/A {row["control"]:.2f})'
    print(f'round {row["round"]}: {row["what"]}: {ratio}', flush=True)


# --- what goes before the clock


def in_new_process(function: Callable, *arguments):
    """What `function` returns, from a process of its own.

    Models are made and read there, for on Linux the peak that is told for a process begins with
    the resident memory of the process that started it."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def write_model(folder: Path) -> int:
    "Write the pipeline of this size, with its weights, to a folder; pixels a side."
    from benchmarks.world import GEOMETRIES, make_pipeline

    geometry = GEOMETRIES[SIZE]
    make_pipeline(geometry).save_pretrained(folder)
    return geometry.pixels


def write_course(folder: Path, model: Path, count: int, pixels: int) -> Course:
    """Write `count` pairs into a new folder.

    It is called after the data set, for DiffusionDPO drops ties where the name says so."""
    from balanceddpo.data.pairs import write_pairs
    from benchmarks.world import synthetic_pairs

    pairs = folder / f'pickapic_{count}'
    pairs.mkdir()
    write_pairs(synthetic_pairs(count, pixels), pairs / 'pairs.parquet')
    return Course(model, pairs, count, pixels)


def relative_change(model: Path, trained: Path) -> float:
    "Relative L2 change of a denoiser, as diffusers loads it: `trained` is a pipeline or a LoRA."
    import torch

    from balanceddpo.core.devices import ensure_torchvision

    ensure_torchvision()
    from diffusers import UNet2DConditionModel

    before = UNet2DConditionModel.from_pretrained(model / 'unet').state_dict()
    if (trained / PIPELINE).is_file():
        unet = UNet2DConditionModel.from_pretrained(trained / 'unet')
    else:
        unet = UNet2DConditionModel.from_pretrained(model / 'unet')
        unet.load_lora_adapter(trained, prefix='unet', weight_name=LORA)
        unet.fuse_lora()
        unet.unload_lora()
    after = unet.state_dict()
    moved = torch.stack([(after[name] - before[name]).norm() for name in before]).norm()
    whole = torch.stack([weight.norm() for weight in before.values()]).norm()
    return float(moved / whole)


def numeric_path_of(model: Path) -> str | None:
    "Who multiplied our matrices, as the training of a model kept it; None if it did not."
    return json.loads((model / 'training.json').read_text(encoding='utf-8')).get('numerics')


def try_one_step(peer: Peer, script: Path, course: Course, folder: Path, log: Log) -> None:
    "One step of each side, not timed: both have to change the denoiser, and code is warm then."
    steps = steps_of(course.count, 1)
    theirs, ours = folder / 'try_theirs', folder / 'try_ours'
    run_peer(peer, script, course, steps, theirs)
    run_ours(peer.mode, course, steps, ours)
    log.add(row=ROW, numerics=numeric_path_of(ours / 'run' / 'model'))
    for name, trained in (('the peer', theirs / 'model'), ('ours', ours / 'run' / 'model')):
        moved = in_new_process(relative_change, course.model, trained)
        what = f'race with {peer.name}, {name}: relative change of the weights by one step'
        log.gate(ROW, what, moved, CHANGE, at_least=True)
    for out in (theirs, ours):
        shutil.rmtree(out)


# --- the command


def read_command_line(words: list[str] | None = None) -> argparse.Namespace:
    "The command line, with the sizes that were not named filled in."
    parser = argparse.ArgumentParser(
        'python -m benchmarks.race',
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--peer', required=True, type=Path, help="folder with the peer's script")
    parser.add_argument('--full', action='store_true', help=f'{MANY:,} pairs, one visit')
    parser.add_argument('--pairs', type=int, help=f'{PAIRS} if not given')
    parser.add_argument('--visits', type=int, nargs='+', help=f'a pair; {VISITS} if not given')
    parser.add_argument('--rounds', type=int, default=ROUNDS, help='whole rounds (%(default)s)')
    found = parser.parse_args(words)
    chosen = found.pairs or found.visits or found.rounds != ROUNDS
    if chosen and 'BENCH_OUT' not in os.environ:
        parser.exit(2, 'sizes of your own replace no kept rows: name a folder, BENCH_OUT=FOLDER\n')
    found.pairs = found.pairs or (MANY if found.full else PAIRS)
    found.visits = tuple(found.visits or ((1,) if found.full else VISITS))
    return found


def describe_peer(peer: Peer, script: Path) -> dict:
    "What the header of the rows says about the peer."
    return {'name': peer.name, 'commit': commit_of(script), 'as_named': is_known_file(peer, script)}


def speed_settings() -> dict[str, str]:
    "The environment variables that change the speed of a side: both sides were given all of them."
    beginnings = ('OMP_', 'MKL_', 'MALLOC_', 'BALANCEDDPO_')
    return {name: v for name, v in ENVIRONMENT.items() if name.startswith(beginnings)}


def main(words: list[str] | None = None) -> None:
    "Race against the peer in a folder."
    found = read_command_line(words)
    peer, script = find_peer(found.peer)
    steps = [steps_of(found.pairs, count) for count in found.visits]
    name = 'race_' + peer.name.replace(' ', '_').lower() + ('_full' if found.full else '')
    if not is_known_file(peer, script):
        print(f'{script} is not the file that this race was written for', flush=True)
    about = describe_peer(peer, script)
    log = Log(name, peer=about, steps=steps, settings=speed_settings())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / 'model'
        pixels = in_new_process(write_model, model)
        course = in_new_process(write_course, folder, model, found.pairs, pixels)
        small = folder / 'one_step'
        small.mkdir()
        trial = in_new_process(write_course, small, model, BATCH, pixels)
        try_one_step(peer, script, trial, folder, log)
        for number in range(found.rounds):
            run_round(number, peer, script, course, found.visits, folder, log)
    print(f'rows: {log.path}')


if __name__ == '__main__':
    # As an exception, so that the process being measured and the temporary folder go too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
