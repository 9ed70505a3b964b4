"""A clock for a benchmark that may have one machine for some minutes, once: each part is a process
of its own with a limit, in the order of what matters, and all of them end within the time.

A part writes its rows as they come into `gpu_PART.jsonl`; the clock adds the last one, which says
how the part ended. Only with `"done": true` in it are the rows complete. A second call with the
same folder goes on with what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import HERE, START, Log, out_folder

ROW = 'GPU'  # in the place of a row's number
RESERVE = 2.0  # seconds kept for ending a process and printing what became of the parts
BEFORE = 'before'  # folder for the rows of a part that is being run again


@dataclass(frozen=True)
class Part:
    "One process of the benchmark."

    name: str
    command: tuple[str, ...]
    limit: float  # seconds after which it is stopped
    least: float  # seconds without which it is not started


@dataclass(frozen=True)
class Outcome:
    "What became of a part in this call."

    name: str
    started: float  # seconds after the start of the call
    seconds: float
    outcome: str  # 'done', 'complete before', 'failed ...', 'stopped ...', 'left out ...'
    given: float = 0.0  # seconds that it was given

    def __str__(self) -> str:
        return f'{self.name:<16} at {self.started:5.0f} s, {self.seconds:5.0f} s: {self.outcome}'


# --- how much time a part has


def time_for(part: Part, left: float) -> float:
    "Seconds for a part when `left` are left in all; 0 if that is too little to start it."
    usable = left - RESERVE
    return min(part.limit, usable) if usable >= part.least else 0.0


def order_of_tries(parts: Sequence[Part]) -> list[Part]:
    "The parts in their order; those that had a fair try in an earlier call and did not end, last."
    return sorted(parts, key=was_tried)


def was_tried(part: Part) -> bool:
    "Whether an earlier call gave the part its whole time or saw it fail, and it did not end."
    last = last_row(rows_path(part.name))
    if 'outcome' not in last or last['done']:
        return False
    return 'failed' in last['outcome'] or last['given'] >= part.limit


# --- rows on disk


def rows_folder() -> Path:
    "Where all rows are, from wherever one looks."
    return out_folder(HERE / 'rows').resolve()


def rows_path(name: str) -> Path:
    "Where the rows of a part are."
    return rows_folder() / f'gpu_{name}.jsonl'


def whole_rows(path: Path) -> list[dict]:
    "The rows of a file, its first line among them; what a stopped process half wrote is left out."
    rows = []
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def last_row(path: Path) -> dict:
    "The last whole row of a file; empty if there is none."
    return (whole_rows(path) or [{}])[-1]


def complete(path: Path) -> bool:
    "Whether the part that wrote these rows came to its end."
    return last_row(path).get('done', False)


def count_measurements(path: Path) -> int:
    "How many rows hold a measurement or a gate."
    return sum('value' in row for row in whole_rows(path))


def close_rows(path: Path, outcome: Outcome) -> None:
    "Add the row that says how the part ended; one that died before its first row gets a head too."
    if not whole_rows(path):
        Log(path.stem)
    rows = whole_rows(path)
    facts = {'started': round(outcome.started, 1), 'seconds': round(outcome.seconds, 1)}
    facts |= {'given': outcome.given, 'done': outcome.outcome == 'done'}
    rows.append({'row': ROW, 'part': outcome.name, 'outcome': outcome.outcome, **facts})
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def earlier(path: Path) -> Path:
    "Where the rows of an earlier run are while a part is run again."
    return path.parent / BEFORE / path.name


def set_aside(path: Path) -> None:
    "Move the rows of an earlier run out of the way of the next one."
    if path.exists():
        earlier(path).parent.mkdir(exist_ok=True)
        path.replace(earlier(path))


def keep_the_fuller(path: Path) -> None:
    "Of two runs of a part keep the rows of the later one, unless it measured less and did not end."
    aside = earlier(path)
    if not aside.exists():
        return
    if complete(path) or count_measurements(path) >= count_measurements(aside):
        aside.unlink()
        return
    ending = last_row(path) if 'outcome' in last_row(path) else None
    aside.replace(path)
    if ending:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(ending | {'note': 'the rows above are of an earlier run'}) + '\n')


# --- processes


def run_process(command: Sequence[str], seconds: float) -> int | None:
    "The exit code of a process; None if it was stopped at its limit, with all that it had started."
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', 'BENCH_OUT': str(rows_folder())}
    child = subprocess.Popen(command, cwd=HERE.parent, env=env, start_new_session=True)
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        stop_group(child)


def stop_group(child: subprocess.Popen) -> None:
    "End what is left of the process group of `child`; it may have ended already."
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_part(part: Part, seconds: float, clock: Callable[[], float]) -> Outcome:
    "Run a part for at most `seconds`, and close its rows."
    path, began = rows_path(part.name), clock()
    path.parent.mkdir(parents=True, exist_ok=True)
    set_aside(path)
    code = run_process(part.command, seconds)
    ended = {None: f'stopped after {seconds:.0f} s', 0: 'done'}
    what = ended.get(code, f'failed with exit code {code}')
    outcome = Outcome(part.name, began, clock() - began, what, seconds)
    close_rows(path, outcome)
    keep_the_fuller(path)
    return outcome


def seconds_since_start() -> float:
    "Seconds that this process has been running, from its first import of the benchmarks."
    return time.perf_counter() - START


def run_parts(
    parts: Sequence[Part], seconds: float, clock: Callable[[], float] = seconds_since_start
) -> list[Outcome]:
    """Run the parts that are not complete, all within `seconds` of the clock; print how each ended.

    To run a complete part again, delete its file of rows."""
    for part in parts:
        keep_the_fuller(rows_path(part.name))  # an earlier call may have been ended in the middle
    found = []
    for part in order_of_tries(parts):
        found.append(attempt(part, seconds - clock(), clock))
        print(found[-1], flush=True)
    total = f'{clock():.0f} s in all; rows in {rows_folder()}'
    print('\nWhat became of the parts:', *found, total, sep='\n', flush=True)
    return found


def attempt(part: Part, left: float, clock: Callable[[], float]) -> Outcome:
    "Run a part if its rows are not complete and there is time for it."
    if complete(rows_path(part.name)):
        return Outcome(part.name, clock(), 0.0, 'complete before')
    given = time_for(part, left)
    if not given:
        why = f'left out: {left:.0f} s are left, and it needs {part.least + RESERVE:.0f}'
        return Outcome(part.name, clock(), 0.0, why)
    print(f'--- {part.name}, at most {given:.0f} s', flush=True)
    return run_part(part, given, clock)
