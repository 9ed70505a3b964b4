"""Row 7: the CPU at full speed. Each stage by the path that this machine takes, against torch as it
is (`--numerics plain`), and its share of the core's peak.

A process is on one path: kernels and the memory setting are chosen once. So every arm is a process
of its own that has its stage ready and runs it when it is told; the arms take turns as in the other
benchmarks. All work on one thread. FLOPs are counted, not estimated: products, convolutions and
attention of one run. The peak is the best fp32 rate of one core here, of a large product by either
kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.timing import BUDGET, HERE, SIZE, Arm, Log, read_command_line, time_arms

ROW = 7
TINY = SIZE == 'tiny'
STEP_PAIRS = 4 if TINY else 32  # a training step, the icon world's own batch
IMAGES = 4 if TINY else 16  # drawn at once
PAIRS = 4 if TINY else 32  # labelled
# pictures of 256 pixels at once; from here on activations are above glibc's limit of 32 MiB
ENCODED = 2 if TINY else 8
GOALS = {
    'training step': '>= 1.3',
    'sampling': '>= 1.3',
    'labelling': '>= 1.3',
    'encoding': '>= 2.3',
}
SHARES = {'training step': '>= 0.65', 'sampling': '>= 0.65'}  # of the peak, by the path taken


# --- the work of a stage


def small_world():
    "The icon world with a few pairs."
    from balanceddpo.paper import scales

    return replace(scales.ICONS, n_pairs=max(PAIRS, STEP_PAIRS))


def training_step(folder) -> Callable:
    "An optimizer step of BalancedDPO in the icon world."
    from balanceddpo.paper import experiments
    from balanceddpo.training.loop import start, update
    from balanceddpo.training.run import LabelledPairs
    from balanceddpo.voting.config import LabelConfig

    world, labels = small_world(), LabelConfig('majority')
    settings = experiments.training_settings(
        world, 'BalancedDPO', batch_size=STEP_PAIRS, micro_batch_size=STEP_PAIRS
    )
    table, encoded = experiments.labels_of(world, labels), experiments.encoded_pairs(world)
    run = start(settings, LabelledPairs(encoded, table, labels), Path(folder) / 'run')
    return lambda: update(run)


def sampling(folder) -> Callable:
    "Images of the icon world drawn with guidance in four steps."
    from balanceddpo.data.prompts import read_prompts
    from balanceddpo.models.config import SampleConfig
    from balanceddpo.models.sampling import generate, load_generator, plan_batches

    prompts = read_prompts('icons:tuning', limit=IMAGES)
    config = SampleConfig(
        images_per_prompt=1,
        steps=4,
        guidance=3.0,
        scheduler='dpm++',
        batch_size=IMAGES,
        device='cpu',
    )
    family, pipeline = load_generator(config)
    planned = list(plan_batches(len(prompts), 1, IMAGES))
    wanted = {(n, 0) for n in range(len(prompts))}
    return lambda: list(generate(family, pipeline, prompts, config, planned, wanted))


def labelling(folder) -> Callable:
    "Pairs of the icon world read, decoded and scored by its four scorers."
    from balanceddpo.paper import experiments
    from balanceddpo.scoring.tables import score_pairs

    world = small_world()
    scorers, pairs = experiments.voters(world), list(experiments.pair_stream(world))

    def score():
        for scorer in scorers:
            scorer.encoder.forget()
        with tempfile.TemporaryDirectory(dir=folder) as out:
            score_pairs(pairs, scorers, Path(out) / 'scores', progress=False)

    return score


def encoding(folder) -> Callable:
    "Pictures of 256 pixels through the autoencoder."
    import torch

    from balanceddpo.core.numerics import at_full_speed
    from benchmarks.world import GEOMETRIES, make_family

    geometry = GEOMETRIES[SIZE]
    family = make_family(geometry, Path(folder) / 'model')
    at_full_speed(family.vae)
    shape = (ENCODED, 3, geometry.pixels, geometry.pixels)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return lambda: family.encode_images(pixels)


STAGES = {
    'training step': training_step,
    'sampling': sampling,
    'labelling': labelling,
    'encoding': encoding,
}


# --- an arm: a process with one stage on one path


def serve_parent(stage: str) -> None:
    """The arm's side: say the path and the FLOPs of a run, then run the stage once for each line
    that comes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from balanceddpo.core.numerics import numeric_path

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ['BALANCEDDPO_RUNS'] = folder
        work = STAGES[stage](folder)
        with FlopCounterMode(display=False) as counter:
            work()
        answer_parent({'path': numeric_path(), 'flop': counter.get_total_flops()})
        for _ in sys.stdin:
            work()
            answer_parent('done')


def answer_parent(answer: object) -> None:
    "A line to the parent, apart from whatever libraries print."
    with os.fdopen(os.dup(int(os.environ['BENCH_ANSWERS'])), 'w') as answers:
        answers.write(json.dumps(answer) + '\n')


class ArmProcess:
    "The parent's side of an arm."

    def __init__(self, stage: str, numerics: str):
        reading, writing = os.pipe()
        env = {
            **os.environ,
            'BALANCEDDPO_NUMERICS': numerics,
            'BENCH_ANSWERS': str(writing),
            'OMP_NUM_THREADS': '1',
        }
        self.child = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.numerics', '--serve', stage],
            cwd=HERE.parent,
            env=env,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=(writing,),
            text=True,
        )
        os.close(writing)
        self.answers = os.fdopen(reading)
        self.facts = self.next_answer()

    def next_answer(self) -> object:
        "The next answer. Ends the benchmark if the process has died."
        line = self.answers.readline()
        if not line:
            raise SystemExit(f'an arm ended with {self.child.wait()}: see above')
        return json.loads(line)

    def run(self) -> None:
        "Run the stage once, and wait for it."
        self.child.stdin.write('\n')
        self.child.stdin.flush()
        self.next_answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.wait()
        self.answers.close()


# --- what is measured


def core_peak() -> float:
    "GFLOP/s of one core: the best rate of three sizes by either kernel."
    from balanceddpo.core.numerics import product_rates

    return max(rate for width in (256, 512, 1024) for rate in product_rates(1024, width).values())


def compare(log: Log, stage: str, peak: float, until: float, forced: bool = False) -> None:
    """Time a stage on the path taken here and on torch's own, with `forced` on oneDNN's too; keep
    ratios, rates and shares of the peak.

    peak: GFLOP/s of one core; until: seconds of this process at which it stops."""
    names = {'auto': f'{stage} as this machine takes it', 'plain': f'{stage} by torch as it is'}
    if forced:
        names['onednn'] = f'{stage} by oneDNN'
    goals = dict.fromkeys(names.values(), '') | {names['plain']: GOALS[stage]}
    with ExitStack() as stack:
        processes = {way: stack.enter_context(ArmProcess(stage, way)) for way in names}
        arms = [Arm(names[way], process.run) for way, process in processes.items()]
        rounds = time_arms(log, ROW, goals, arms, until=until)
        flop, path = processes['plain'].facts['flop'], processes['auto'].facts['path']
    for way, name in names.items():
        goal = SHARES.get(stage, '') if way == 'auto' else ''
        for number, took in enumerate(rounds):
            rate = flop / took[name] / 1e9
            what = f'{name}: GFLOP/s'
            log.add(row=ROW, what=what, goal='', round=number, value=rate, path=path)
            what = f'{name}: share of the peak'
            log.add(row=ROW, what=what, goal=goal, round=number, value=rate / peak)


def main() -> None:
    "The stages that the command line names, or all, each within its share of the time."
    if sys.argv[1:2] == ['--serve']:  # an arm, started by `ArmProcess`
        return serve_parent(sys.argv[2])
    meaning = 'time oneDNN too where this machine does not take it'
    found = read_command_line(__doc__, list(STAGES), forced=meaning)
    log, peak = Log('numerics'), core_peak()
    log.add(row=ROW, what='fp32 peak of a core, GFLOP/s', goal='', round=0, value=peak)
    wanted = found.names or list(STAGES)
    for number, stage in enumerate(wanted, 1):
        compare(log, stage, peak, BUDGET * number / len(wanted), found.forced)


if __name__ == '__main__':
    main()
