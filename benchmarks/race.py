"""A whole-process race against a peer's own training script, on one CPU.

    python -m benchmarks.race --peer FOLDER          24 pairs, each visited 1, 3 and 10 times
    python -m benchmarks.race --peer FOLDER --full   1,000 pairs, each visited once

FOLDER is a clone of one of these, at the commit that this race was written for:

    github.com/SalesforceAIResearch/DiffusionDPO   5233e75919f9   train.py, all weights
    github.com/huggingface/diffusers               58eb52c0803e   train_diffusion_dpo.py, LoRA, in
                                                   examples/research_projects/diffusion_dpo

Both sides start from the same pipeline folder (random weights, `benchmarks.world`) and the same
Parquet file of pairs, and end with a saved model. Ours is the command line, three processes one
after the other: `balanceddpo label --method human`, `encode`, `train`. The peer's is its script.
Measured are CPU seconds (user and system, with children), wall seconds, the peak of the resident
memory of the largest process, and wall seconds to the end of the first step. CPU seconds a step
are the difference of two runs with different numbers of visits over the difference of their steps.
A value is the peer's over ours, so above 1 ours needs less. In each round ours runs before and
after the peer: their mean is compared, and their ratio is the A/A control.

The same on both sides: fp32, 8 pairs a step, the strength of the DPO loss, learning rate, AdamW,
clipping, rank of the LoRA, no warm-up, pictures not mirrored, no caption dropped, a sample of the
autoencoder's Gaussian at each visit. What is left as each ships: DiffusionDPO takes one pair at a
time and adds up eight gradients, as its launchers do; the LoRA script takes its eight at once,
without the gradient checkpointing and the 8-bit Adam of its README; ours takes eight at once,
keeps its latents in fp16, and writes a checkpoint with the optimizer's state beside the model.

The peer's file is not changed. Three places do not run on a CPU as they are, and a file
`sitecustomize.py`, which Python reads before the script, stands in for what they miss:

    torchvision     where its compiled half was built for another torch, two of its operators are
                    declared, without which it cannot be imported
    xformers        DiffusionDPO stops where it is not installed (train.py, line 614), and it needs
                    a GPU: it is said to be there, and switching it on does nothing, so that
                    attention is torch's own, as it is for ours
    wandb           the LoRA script imports it whatever its tracker is: an empty module, if missing

Its default of half precision, which CPUs are slow at, DiffusionDPO turns off by its own option.
Both sides get the environment as it is: `BALANCEDDPO_NUMERICS=plain` turns our kernels off.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
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

from benchmarks.timing import HERE, SIZE, Log

# Kept before the package is imported, so that nothing it sets for itself reaches the peer.
ENVIRONMENT = dict(os.environ)

ROW = 'race'
BATCH = 8  # pairs an optimizer step
RATE = {'full': 1e-5, 'lora': 2e-4}  # as in row 1
BETA = 5000  # the default of both scripts, in the form that multiplies it by a half
RANK = 8  # of the LoRA
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


@dataclass(frozen=True)
class Course:
    "What both sides start from."

    model: Path  # pipeline folder in diffusers' format
    pairs: Path  # folder with a Parquet file that has Pick-a-Pic v2's columns
    count: int  # pairs in it
    pixels: int  # a side


@dataclass(frozen=True)
class Peer:
    "A public training script, and the options that give it our settings."

    name: str
    mode: str  # what it trains, as our `--mode` calls it
    places: tuple[str, ...]  # where its script may be in a folder
    digest: str  # SHA-256 of the script at the commit that is named above, its beginning
    options: tuple[object, ...]  # beside those that both scripts have


PEERS = (
    Peer(
        'DiffusionDPO',
        'full',
        ('train.py',),
        'd8c57878c03debc1',
        ('--train_batch_size', 1, '--gradient_accumulation_steps', BATCH)
        + ('--beta_dpo', BETA, '--proportion_empty_prompts', 0),
    ),
    Peer(
        'diffusers LoRA',
        'lora',
        (
            'train_diffusion_dpo.py',
            'examples/research_projects/diffusion_dpo/train_diffusion_dpo.py',
        ),
        '3d84934230dab97a',
        ('--train_batch_size', BATCH, '--gradient_accumulation_steps', 1)
        + ('--beta_dpo', BETA // 2, '--rank', RANK, '--dataset_split_name', 'train'),
    ),
)


def recognise(folder) -> tuple[Peer, Path]:
    "The peer whose script is in `folder`, and the script. Raises SystemExit if there is none."
    for peer in PEERS:
        for place in peer.places:
            script = Path(folder).resolve() / place
            if script.is_file() and takes(script, peer.options):
                return peer, script
    known = ', '.join(f'{p.places[0]} of {p.name}' for p in PEERS)
    raise SystemExit(f"{folder}: no peer's script is in this folder: it should hold {known}")


def takes(script, options) -> bool:
    "Whether the text of a script names all of these options."
    text = script.read_text(encoding='utf-8', errors='replace')
    return all(o in text for o in options if str(o).startswith('--'))


def as_named(peer, script) -> bool:
    "Whether a script is the very file that this race was written for."
    return hashlib.sha256(script.read_bytes()).hexdigest().startswith(peer.digest)


def commit_of(script) -> str:
    "The git commit that a script belongs to, '+' if the script was changed; 'unknown' without."

    def git(*words) -> str:
        command = ['git', '-C', str(script.parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if not shutil.which('git') or not git('ls-files', '--', script.name):
        return 'unknown'
    changed = git('status', '--porcelain', '--', script.name)
    return git('rev-parse', '--short=12', 'HEAD') + '+' * bool(changed)


def steps_of(pairs, visits) -> int:
    "Optimizer steps that visit each of `pairs` so often. Raises SystemExit if they do not divide."
    if pairs % BATCH:
        raise SystemExit(f'{pairs} pairs are not whole steps: use a multiple of {BATCH}')
    return pairs * visits // BATCH


def peer_command(peer, script, course, steps, out) -> list:
    "The peer's command line: its model goes to `out/model`."
    settings = {
        'pretrained_model_name_or_path': course.model,
        'dataset_name': course.pairs,
        'cache_dir': out / 'cache',
        'output_dir': out / 'model',
        'resolution': course.pixels,
        'max_train_steps': steps,
        'learning_rate': RATE[peer.mode],
        'lr_warmup_steps': 0,
        'mixed_precision': 'no',
        'seed': 0,
    }
    words = [w for name, value in settings.items() for w in (f'--{name}', value)]
    return [sys.executable, script, '--no_hflip', *words, *peer.options]


def our_commands(mode, course, steps, out) -> dict[str, list]:
    "Verb -> its words on our command line: the model goes to `out/run/model`."
    labels, encoded = out / 'labels.parquet', out / 'encoded'
    model = ['--model', course.model, '--resolution', course.pixels]
    train = {
        'labels': labels,
        'encoded': encoded,
        'mode': mode,
        'max-steps': steps,
        'batch-size': BATCH,
        'learning-rate': RATE[mode],
        'beta': BETA,
        'empty-prompt-rate': 0,
        'lora-rank': RANK,
        'checkpoint-every': CHECKPOINT,
        'seed': 0,
        'out': out / 'run',
    }
    return {
        'label': ['--pairs', course.pairs, '--method', 'human', '--out', labels],
        'encode': ['--pairs', course.pairs, *model, '--out', encoded],
        'train': [*model, *(w for name, value in train.items() for w in (f'--{name}', value))],
    }


# --- what stands in for what a script misses on a CPU; the source of these is its sitecustomize.py


def declare_torchvision_operators():
    "Declare the operators that torchvision asks for, where its compiled half does not load."
    import sys

    import torch

    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library('torchvision', 'FRAGMENT')
        torch.declared_for_torchvision = library  # it lives as long as torch does
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        for name in [m for m in sys.modules if m.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        import torchvision  # noqa: F401


def pretend_xformers():
    "Tell the script that xformers is there, and nobody else; to switch it on does nothing."
    import sys
    from importlib.machinery import ModuleSpec
    from importlib.util import module_from_spec

    import diffusers.models.attention  # noqa: F401, it asks for itself before
    from diffusers import ModelMixin
    from diffusers.utils import import_utils

    sys.modules['xformers'] = module_from_spec(ModuleSpec('xformers', None))
    sys.modules['xformers'].__version__ = '1'
    import_utils.is_xformers_available = lambda: True
    ModelMixin.enable_xformers_memory_efficient_attention = lambda *_, **__: None


def pretend_wandb():
    "An empty wandb, if there is none."
    import sys
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec, module_from_spec

    if find_spec('wandb') is None:
        sys.modules['wandb'] = module_from_spec(ModuleSpec('wandb', None))


STAND_INS = (declare_torchvision_operators, pretend_xformers, pretend_wandb)
# Read once, for a race is long and this file may be edited while it goes on.
SITECUSTOMIZE = '\n\n'.join(
    [inspect.getsource(f) for f in STAND_INS] + [f'{f.__name__}()\n' for f in STAND_INS]
)


def write_stand_ins(folder) -> Path:
    "Write them as `sitecustomize.py` into a new folder, which is returned."
    folder.mkdir(parents=True)
    (folder / 'sitecustomize.py').write_text(SITECUSTOMIZE, encoding='utf-8')
    return folder


# --- what a process takes


@dataclass(frozen=True)
class Cost:
    "What a process and its children took."

    cpu: float  # seconds, user and system
    wall: float  # seconds
    peak: float  # MiB resident, of the largest process
    first: float | None = None  # wall seconds from the start to the end of the first step


def in_a_row(costs) -> Cost:
    "The cost of processes that ran one after the other, of which the last one trains."
    before = sum(c.wall for c in costs[:-1])
    first = costs[-1].first
    return Cost(
        sum(c.cpu for c in costs),
        before + costs[-1].wall,
        max(c.peak for c in costs),
        None if first is None else before + first,
    )


def measured(name, command, folder, environment, stepped=lambda output: False) -> Cost:
    """Run a command in `folder`, alone, and wait for it.

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
            usage, ended, first = watch(process, lambda: stepped(output))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        end = ' '.join(output.read_text(encoding='utf-8', errors='replace').split())[-TAIL:]
        raise SystemExit(f'{name} ended with exit code {process.returncode}: ... {end}')
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * MAXRSS / MIB
    return Cost(cpu, ended - began, peak, None if first is None else first - began)


def watch(process, stepped: Callable[[], bool]) -> tuple:
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


def bar_moved(output) -> bool:
    "Whether a progress bar called Steps has counted one."
    return bool(re.search(rb'Steps:[^\r\n]*\| *[1-9]\d*/\d+ \[', output.read_bytes()))


def metrics_written(path) -> bool:
    "Whether our file of metrics has a row."
    return path.is_file() and path.stat().st_size > 0


# --- the race


def run_peer(peer, script, course, steps, out) -> Cost:
    "Train by the peer's script, into the new folder `out`. Raises SystemExit if that fails."
    search = [write_stand_ins(out / 'stand_ins'), ENVIRONMENT.get('PYTHONPATH')]
    environment = ENVIRONMENT | {
        'CUDA_VISIBLE_DEVICES': '',
        'HF_HOME': str(out / 'hub'),
        'PYTHONPATH': os.pathsep.join(str(p) for p in search if p),
    }
    command = peer_command(peer, script, course, steps, out)
    cost = measured(peer.name, command, out, environment, bar_moved)
    check_saved(peer.name, out / 'model')
    return cost


def run_ours(mode, course, steps, out) -> Cost:
    "Label, encode and train, into the new folder `out`. Raises SystemExit if that fails."
    search = [HERE.parent, ENVIRONMENT.get('PYTHONPATH')]
    environment = ENVIRONMENT | {
        'CUDA_VISIBLE_DEVICES': '',
        'BALANCEDDPO_RUNS': str(out / 'runs'),
        'PYTHONPATH': os.pathsep.join(str(p) for p in search if p),
    }
    out.mkdir()
    metrics = out / 'run' / 'metrics.jsonl'
    costs = [
        measured(
            f'balanceddpo {verb}',
            [sys.executable, '-m', 'balanceddpo.cli', verb, *words],
            out,
            environment,
            lambda _: metrics_written(metrics),
        )
        for verb, words in our_commands(mode, course, steps, out).items()
    ]
    check_saved('balanceddpo train', out / 'run' / 'model')
    return in_a_row(costs)


def check_saved(name, model) -> None:
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

    def took(self, measure) -> dict:
        "One measure of the three runs; None where it is not known."
        return {side: getattr(getattr(self, side), measure) for side in SIDES}


def run_heat(peer, script, course, steps, folder) -> Heat:
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


def per_step(heats) -> dict:
    "CPU seconds a step of each side, from the heats with the fewest and the most steps."
    few, many = min(heats, key=lambda h: h.steps), max(heats, key=lambda h: h.steps)
    first, last, steps = few.took('cpu'), many.took('cpu'), many.steps - few.steps
    return {side: (last[side] - first[side]) / steps for side in SIDES}


def compared(took) -> dict:
    "What a row says of ours before, the peer's, and ours after: ratio, A/A control, and all three."
    mean = (took['before'] + took['after']) / 2
    return {
        'value': took['theirs'] / mean,
        'control': took['after'] / took['before'],
        'took': took,
    }


def heat_rows(peer, pairs, visits, heat) -> list[dict]:
    "A row a measure of one heat."
    where = f'{peer.name} over ours, {pairs:,} pairs x {visits}'
    rows = []
    for measure, words in MEASURES.items():
        took = heat.took(measure)
        if None not in took.values():
            goal = MANY_GOAL if (measure, pairs, visits) == ('cpu', MANY, 1) else ''
            what = f'{where}: {words}'
            rows.append({'what': what, 'goal': goal, **compared(took), 'steps': heat.steps})
    return rows


def step_row(peer, pairs, heats) -> dict:
    "The row of CPU seconds a step, from the heats of a round."
    what = f'{peer.name} over ours, {pairs:,} pairs: CPU seconds a step'
    return {'what': what, 'goal': STEP_GOAL, **compared(per_step(heats))}


def run_round(number, peer, script, course, visits, folder, log) -> None:
    "One round: a heat for each number of visits, and the step that they give. Rows go to `log`."
    common = {'row': ROW, 'round': number, 'peer_commit': commit_of(script)}
    heats = []
    for v in visits:
        heats.append(run_heat(peer, script, course, steps_of(course.count, v), folder))
        for row in heat_rows(peer, course.count, v, heats[-1]):
            keep(log, common | row)
    if len(heats) > 1:
        keep(log, common | step_row(peer, course.count, heats))


def keep(log, row) -> None:
    "Add a row and print its ratio."
    log.add(**row, load=round(os.getloadavg()[0], 2))
    told = f'round {row["round"]}: {row["what"]}: {row["value"]:.2f} (A/A {row["control"]:.2f})'
    print(told, flush=True)


# --- what goes before the clock


def aside(function, *arguments):
    """What `function` returns, from a process of its own.

    Models are made and read there, for on Linux the peak that is told for a process begins with
    the resident memory of the process that started it."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def write_model(folder) -> int:
    "Write the pipeline of this size, with its weights, to a folder; pixels a side."
    from benchmarks.world import GEOMETRIES, make_family

    geometry = GEOMETRIES[SIZE]
    family = make_family(geometry, folder)
    for name in ('vae', 'unet', 'text_encoder'):
        family.part(name).save_pretrained(folder / name)
    return geometry.pixels


def write_course(folder, model, count, pixels) -> Course:
    """Write `count` pairs into a new folder.

    It is called after the data set, for DiffusionDPO drops ties where the name says so."""
    from balanceddpo.data.pairs import write_pairs
    from benchmarks.world import synthetic_pairs

    pairs = folder / f'pickapic_{count}'
    pairs.mkdir()
    write_pairs(synthetic_pairs(count, pixels), pairs / 'pairs.parquet')
    return Course(model, pairs, count, pixels)


def change(model, trained) -> float:
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
    return float(moved / torch.stack([w.norm() for w in before.values()]).norm())


def numerics(model) -> str | None:
    "Who multiplied our matrices, as the training of a model kept it; None if it did not."
    return json.loads((model / 'training.json').read_text(encoding='utf-8')).get('numerics')


def try_out(peer, script, course, folder, log) -> None:
    "One step of each side, not timed: both have to change the denoiser, and code is warm then."
    steps = steps_of(course.count, 1)
    theirs, ours = folder / 'try_theirs', folder / 'try_ours'
    run_peer(peer, script, course, steps, theirs)
    run_ours(peer.mode, course, steps, ours)
    log.add(row=ROW, numerics=numerics(ours / 'run' / 'model'))
    for name, trained in (('the peer', theirs / 'model'), ('ours', ours / 'run' / 'model')):
        moved = aside(change, course.model, trained)
        what = f'race with {peer.name}, {name}: relative change of the weights by one step'
        log.gate(ROW, what, moved, CHANGE, at_least=True)
    for out in (theirs, ours):
        shutil.rmtree(out)


# --- the command


def asked(words=None) -> argparse.Namespace:
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


def about(peer, script) -> dict:
    "What the header of the rows says about the peer."
    return {'name': peer.name, 'commit': commit_of(script), 'as_named': as_named(peer, script)}


def settings() -> dict:
    "The environment variables that change the speed of a side: both sides were given all of them."
    speed = ('OMP_', 'MKL_', 'MALLOC_', 'BALANCEDDPO_')
    return {k: v for k, v in ENVIRONMENT.items() if k.startswith(speed)}


def main(words=None) -> None:
    "Race against the peer in a folder."
    found = asked(words)
    peer, script = recognise(found.peer)
    steps = [steps_of(found.pairs, v) for v in found.visits]
    name = 'race_' + peer.name.replace(' ', '_').lower() + '_full' * found.full
    if not as_named(peer, script):
        print(f'{script} is not the file that this race was written for', flush=True)
    log = Log(name, peer=about(peer, script), steps=steps, settings=settings())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / 'model'
        pixels = aside(write_model, model)
        course = aside(write_course, folder, model, found.pairs, pixels)
        small = folder / 'one_step'
        small.mkdir()
        try_out(peer, script, aside(write_course, small, model, BATCH, pixels), folder, log)
        for number in range(found.rounds):
            run_round(number, peer, script, course, found.visits, folder, log)
    print(f'rows: {log.path}')


if __name__ == '__main__':
    # As an exception, so that the process being measured and the temporary folder go too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
