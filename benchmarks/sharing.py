"""Labelling by several processes, and what bounds one of them: pairs a second by 1, 2 and 4
processes that share a Parquet file of photographs, as `torchrun -m balanceddpo label` does; and in
one process reading alone, the networks alone, and the whole, which should take the longer of the
two and not their sum; and the whole against a careful loop.

Each process has one thread for the networks, one that decodes and one that makes views. Start-up
is left out: the clock runs from the first pair to the last. Run it on an idle machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_labelling import photograph_pairs
from benchmarks.labelling import CAREFUL_WAY, load_four, our_scores, scores_with_care
from benchmarks.timing import (
    CONTROL,
    HERE,
    SIZE,
    Arm,
    Log,
    read_command_line,
    run_rounds,
    time_arms,
)

NAME, ROW = 'sharing', 'sharing'
PROCESSES = (1, 2, 4)
PAIRS = {'tiny': 8, 'cpu': 480}[SIZE]
PIXELS = {'tiny': 64, 'cpu': 512}[SIZE]
SHARD = {'tiny': 2, 'cpu': 120}[SIZE]  # pairs of a unit
ROUNDS = {'tiny': 1, 'cpu': 4}[SIZE]

# waits for a line, labels its share into the folder that it names, says how many images it decoded
WORKER = """
import os, sys, json
import torch
torch.set_num_threads(1)
from balanceddpo.core.shares import Share
from balanceddpo.data import pairs
from balanceddpo.data.sources import PairSource
from balanceddpo.scoring.tables import Shards, score_pairs
from benchmarks.labelling import CAREFUL_WAY, load_four, our_scores, scores_with_care
source, process, processes, size = sys.argv[1], *map(int, sys.argv[2:5])
scorers = load_four()
count, real = [0], pairs.decode
def decode(*given):
    count[0] += 1
    return real(*given)
pairs.decode = decode
print('ready', flush=True)
for line in sys.stdin:
    shards = Shards(size, Share(process, processes))
    count[0] = 0
    score_pairs(PairSource(source), scorers, line.strip(), shards, progress=False)
    print(json.dumps(count[0]), flush=True)
"""


class Workers:
    "Processes that wait, with their scorers loaded, to share the labelling of a file."

    def __init__(self, source: Path, processes: int):
        words = [sys.executable, '-W', 'ignore', '-c', WORKER, str(source)]
        env = os.environ | {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        pipes |= dict(cwd=HERE.parent)
        self.running = [
            subprocess.Popen([*words, str(k), str(processes), str(SHARD)], **pipes)
            for k in range(processes)
        ]
        self.decoded = 0  # images, of the last run
        for process in self.running:
            process.stdout.readline()

    def label(self, folder: Path) -> None:
        "Label the file into `folder`, each its share."
        for process in self.running:
            process.stdin.write(f'{folder}\n')
            process.stdin.flush()
        self.decoded = sum(json.loads(process.stdout.readline()) for process in self.running)

    def close(self) -> None:
        for process in self.running:
            process.stdin.close()
            process.wait()


def fresh_folders(folder: Path) -> Callable[[], Path]:
    "Gives a new folder for each run."
    numbers = iter(range(10**9))
    return lambda: folder / f'scores-{next(numbers)}'


def measure_processes(log: Log, source: Path, folder: Path) -> None:
    "Pairs a second by the number of processes, in turns; and how often an image is decoded."
    workers = {n: Workers(source, n) for n in PROCESSES}
    new = fresh_folders(folder / 'shared')

    def arm_of(n: int, name: str = '') -> Arm:
        many = 'process' if n == 1 else 'processes'
        return Arm(name or f'{n} {many}', lambda: workers[n].label(new()))

    arms = [arm_of(n) for n in PROCESSES] + [arm_of(1, CONTROL)]
    for number, took in enumerate(run_rounds(arms, ROUNDS, warmups=1)):
        for arm in arms[:-1]:
            log.add(
                row=ROW,
                what=f'labelling by {arm.name}: pairs a second',
                goal='',
                round=number,
                value=PAIRS / took[arm.name],
                control=took[CONTROL] / took[arms[0].name],
            )
    for n, some in workers.items():
        log.add(
            row=ROW,
            what=f'labelling by processes, {n}: decodes of an image',
            goal='<= 1',
            round=0,
            value=some.decoded / (2 * PAIRS),
        )
        some.close()


def parts_of_one(source: Path, folder: Path) -> Sequence[Arm]:
    "Reading and decoding alone, the networks alone, and both as `score_pairs` does them."
    from balanceddpo.data.sources import PairSource
    from balanceddpo.data.units import units_of
    from balanceddpo.scoring.scorers import score_items
    from balanceddpo.scoring.tables import Shards, encoders_of, score_pairs

    pairs, scorers = PairSource(str(source)), load_four()
    new = fresh_folders(folder / 'parts')
    rows = [row for unit in units_of(pairs, SHARD) for row in unit.rows()]
    items = [
        (row.pair.image_ids[slot], row.pictures[slot], row.pair.caption)
        for row in rows
        for slot in (0, 1)
    ]

    def networks() -> None:
        for encoder in encoders_of(scorers).values():
            encoder.forget()
        score_items(scorers, iter(items))

    return [
        Arm('whole', lambda: score_pairs(pairs, scorers, new(), Shards(PAIRS), progress=False)),
        Arm('reading', lambda: [None for unit in units_of(pairs, SHARD) for _ in unit.rows()]),
        Arm('networks', networks),
    ]


def measure_overlap(log: Log, source: Path, folder: Path) -> None:
    "What a process that reads ahead takes, over the longer of its two parts and over their sum."
    import torch

    torch.set_num_threads(1)
    for number, took in enumerate(run_rounds(parts_of_one(source, folder), ROUNDS, warmups=1)):
        parts = took['reading'], took['networks']
        for over, seconds in (('the longer part', max(parts)), ('the sum of both', sum(parts))):
            log.add(
                row=ROW,
                what=f'labelling in one process over {over}',
                goal='',
                round=number,
                value=took['whole'] / seconds,
                reading=took['reading'],
                networks=took['networks'],
            )


def measure_against_careful(log: Log, source: Path, folder: Path) -> None:
    "The whole machine, one process, against the batched loop of `benchmarks.labelling`."
    from balanceddpo.scoring.tables import encoders_of

    scorers, new = load_four(), fresh_folders(folder / 'ours')

    def forget() -> None:
        for encoder in encoders_of(scorers).values():
            encoder.forget()

    arms = [
        Arm(f'labelling {PAIRS} photographs', lambda: our_scores(source, scorers, new()), forget),
        Arm(CAREFUL_WAY, lambda: scores_with_care(source, scorers, PAIRS)),
    ]
    time_arms(log, ROW, {CAREFUL_WAY: '>= 1.6'}, arms, count=ROUNDS, warmups=1)


def main() -> None:
    from balanceddpo.data.pairs import write_pairs

    read_command_line(__doc__)
    log = Log(NAME, pairs=PAIRS, pixels=PIXELS, shard=SHARD, processes=PROCESSES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_pairs(photograph_pairs(PAIRS, PIXELS), folder / 'pairs.parquet')
        measure_against_careful(log, source, folder)
        measure_overlap(log, source, folder)
        measure_processes(log, source, folder)


if __name__ == '__main__':
    main()
