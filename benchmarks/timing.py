"""The protocol: arms in one process, in turns there and back again (ABBA), paired ratios, an A/A
control, and raw rows that are kept.

A shared machine drifts. Each round runs every arm once in order and once in reverse, so a slow
drift adds the same to all of them, and a ratio is taken within a round only. The control is the
first arm once more under another name: how far its ratio is from 1 is how far any ratio here can
be trusted."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = dict(
    HF_HUB_OFFLINE='1',
    HF_HUB_DISABLE_PROGRESS_BARS='1',
    TOKENIZERS_PARALLELISM='false',
    TRANSFORMERS_VERBOSITY='error',
    DIFFUSERS_VERBOSITY='error',
)
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)  # before a model library is imported
# 'tiny' only shows that everything runs; its numbers mean nothing
SIZE = os.environ.get('BENCH_SIZE', 'cpu')
ENOUGH = 10  # rounds that a ratio should rest on
ROUNDS = int(os.environ.get('BENCH_ROUNDS', 12))
WARMUPS = 3  # runs of each arm that are not counted: allocator, thread pool, kernel choice
# for this process, from its start; what runs out of time reports fewer rounds
BUDGET = float(os.environ.get('BENCH_SECONDS', 'inf'))
START = time.perf_counter()  # set-up and gates take of the budget too
CONTROL = 'control'  # name of the second copy of the first arm


@dataclass(frozen=True)
class Arm:
    """One way to do the work. `before` puts things back and is not timed; `scale` multiplies the
    seconds of an arm that does a stated part of the work."""

    name: str
    work: Callable[[], object]
    before: Callable[[], object] = lambda: None
    scale: float = 1.0


def read_command_line(
    about: str, names: Collection[str] = (), numbers: dict | None = None, **flags: str
) -> argparse.Namespace:
    """The command line: some of `names`, `numbers` (name -> its default, what it is) and flags
    (name -> what it does).

    An unknown word ends with one line and exit code 2: not with a traceback, and before any rows
    are replaced."""
    here = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        'python -m benchmarks' if here == '__main__' else f'python -m benchmarks.{here}',
        description=about,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if names:
        parser.add_argument('names', nargs='*', metavar='NAME', help='of ' + ', '.join(names))
    for flag, meaning in flags.items():
        parser.add_argument(f'--{flag}', action='store_true', help=meaning)
    for number, (usual, meaning) in (numbers or {}).items():
        parser.add_argument(
            f'--{number}',
            type=float,
            default=usual,
            metavar='N',
            help=f'{meaning} (default {usual:g})',
        )
    found, unknown = parser.parse_known_args()
    unknown += [n for n in getattr(found, 'names', ()) if n not in names]
    if unknown:
        usable = [*names, *(f'--{option}' for option in [*(numbers or ()), *flags]), '--help']
        parser.exit(2, f'{parser.prog}: unknown {unknown[0]!r}: use {", ".join(usable)}\n')
    return found


def out_folder(kept: Path) -> Path:
    """`BENCH_OUT`, or the folder `kept` of this repository. What is smaller than a measurement must
    name a folder, so that it replaces nothing that is kept."""
    if not os.environ.get('BENCH_OUT') and (SIZE == 'tiny' or ROUNDS < ENOUGH):
        raise SystemExit(
            f'size {SIZE}, {ROUNDS} rounds: too little to replace what is in {kept}: name another'
            ' folder, BENCH_OUT=FOLDER'
        )
    return Path(os.environ.get('BENCH_OUT') or kept)


def wait_for_device() -> None:
    "Wait for the GPU, if one is in use."
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of_run(arm: Arm) -> float:
    "Wall-clock seconds of one run of an arm."
    arm.before()
    wait_for_device()
    began = time.perf_counter()
    arm.work()
    wait_for_device()
    return arm.scale * (time.perf_counter() - began)


def run_rounds(
    arms: Sequence[Arm], count: int | None = None, warmups: int = WARMUPS, until: float = BUDGET
) -> Iterator[dict[str, float]]:
    """Yield `count` times (default `ROUNDS`) arm name -> seconds, the mean of a run there and one
    back; fewer if the process would be older than `until`."""
    for _ in range(warmups):
        for arm in arms:
            seconds_of_run(arm)
    last = 0.0  # seconds of the round before
    for number in range(ROUNDS if count is None else count):
        began = time.perf_counter()
        if number and began - START + last > until:
            return
        there = [seconds_of_run(arm) for arm in arms]
        back = [seconds_of_run(arm) for arm in reversed(arms)][::-1]
        last = time.perf_counter() - began
        yield {arm.name: (x + y) / 2 for arm, x, y in zip(arms, there, back)}


def time_arms(
    log: Log, row: int | str, goals: dict[str, str], arms: Sequence[Arm], **options
) -> list[dict[str, float]]:
    """Time `arms`, the first being ours, and keep a row a round and rival: how many times as long
    the rival took. `goals`: name of a rival -> goal ('>= 1.5').

    The control is added here. Returns the rounds."""
    ours, *rivals = arms
    control = Arm(CONTROL, ours.work, ours.before, ours.scale)
    found = []
    for number, took in enumerate(run_rounds([*arms, control], **options)):
        found.append(took)
        for rival in rivals:
            log.add(
                row=row,
                what=f'{ours.name} against {rival.name}',
                goal=goals[rival.name],
                round=number,
                value=took[rival.name] / took[ours.name],
                control=took[CONTROL] / took[ours.name],
                seconds=took,
            )
    return found


def measured_commit() -> str:
    """The commit that is measured, '+' if files differ from it; `BENCH_COMMIT` where there is no
    git."""

    def git(*words: str) -> str:
        done = subprocess.run(['git', *words], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip()

    known = os.environ.get('BENCH_COMMIT')
    if known:
        return known
    if not shutil.which('git'):
        return 'unknown'
    changed = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')


def processor_name() -> str:
    "The CPU's model: as Linux names it, else as Python does."
    file = Path('/proc/cpuinfo')
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor()


def describe_machine() -> dict:
    "What the numbers were measured on."
    import torch

    from balanceddpo.core.numerics import numeric_path

    return {
        'cpu': processor_name(),
        'numerics': numeric_path(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'load': round(os.getloadavg()[0], 2),
        'system': platform.platform(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class Log:
    """Raw rows of one benchmark as JSON lines: the first says machine, versions, date and commit.
    Rows are written as they come."""

    def __init__(self, bench: str, **notes):
        from balanceddpo.core.devices import versions

        folder = out_folder(HERE / 'rows')
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f'{bench}.jsonl'
        self.rows = []
        self.marks = {}  # columns that every further row gets
        head = {
            'bench': bench,
            'size': SIZE,
            'date': datetime.now(UTC).isoformat(timespec='seconds'),
            'commit': measured_commit(),
            'machine': describe_machine(),
            'versions': versions(),
            **notes,
        }
        self.path.write_text(json.dumps(head) + '\n', encoding='utf-8')

    def add(self, **row) -> None:
        "Keep a row, in memory and in the file."
        row = self.marks | row
        self.rows.append(row)
        with open(self.path, 'a', encoding='utf-8') as f:
            f.write(json.dumps(row) + '\n')

    def gate(
        self, row, what: str, value: float, limit: float, at_least: bool = False, stop: bool = True
    ) -> bool:
        """Keep the result of a numeric gate, and return it; `stop` if it does not hold, for then
        the times compare different work. `at_least`: the value must not be below the limit."""
        passed = bool(value >= limit if at_least else value <= limit)
        self.add(row=row, gate=what, value=float(value), limit=limit, passed=passed)
        verdict = 'passed' if passed else 'FAILED'
        print(f'gate, row {row}: {what}: {value:.3g} (limit {limit:g}) {verdict}', flush=True)
        if stop and not passed:
            raise SystemExit(
                f'row {row}: the gate does not hold, so nothing is timed: {what} is {value:.3g},'
                f' the limit is {limit:g}'
            )
        return passed
