"""The rows for two CPU cores that fit into 15 minutes together, then their table. What takes longer
is run by hand (README.md).

The rows go into runs/benchmarks and the table is printed; with `--write` they replace those in
rows/, and the table goes into README.md."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.timing import HERE, SIZE, read_command_line

LIMIT = 15 * 60 - 20  # seconds for all of them; the rest is for the table
BUDGETS = {  # seconds
    'numerics': 250,
    'step': 270,
    'labelling': 120,
    'evaluation': 120,
    'memory': 75,
    'scale': 45,
}
# not in git: a look at your machine replaces nothing that was published
APART = HERE.parent / 'runs/benchmarks'


def stopped_after(seconds: float) -> float:
    "When a benchmark with this budget is stopped: a little after its time, in seconds."
    return 1.3 * seconds + 30


def seconds_for(name: str, left: float) -> float:
    "The budget of a benchmark, or less, so that it is stopped within the `left` seconds of all."
    if left < stopped_after(BUDGETS[name]):
        return min(BUDGETS[name], left / 1.3 - 25)
    return BUDGETS[name]


def run(name: str, seconds: float, out: str | Path) -> None:
    """One benchmark in a process of its own, stopped a little after its time; its rows go into
    `out` ('' for rows/)."""
    env = {
        **os.environ,
        'BENCH_OUT': str(out),
        'BENCH_SECONDS': str(seconds),
        'PYTHONUNBUFFERED': '1',
    }
    print(f'--- {name}, {seconds:.0f} seconds', flush=True)
    child = subprocess.Popen(
        [sys.executable, '-m', f'benchmarks.{name}'],
        cwd=HERE.parent,
        env=env,
        start_new_session=True,
    )
    try:
        code = child.wait(stopped_after(seconds))
    except BaseException as e:  # with it, the processes that it has started
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if not isinstance(e, subprocess.TimeoutExpired):
            raise
        print(f'{name} was stopped: its rows so far are kept')
        return
    if code:
        print(f'{name} ended with {code}: see above')


def main() -> None:
    "The benchmarks that the command line names, or all, one after the other; then the table."
    began = time.perf_counter()
    meaning = 'replace the rows in rows/ and the table in README.md'
    found = read_command_line(__doc__, BUDGETS, write=meaning)
    if found.write and (SIZE == 'tiny' or os.environ.get('BENCH_OUT')):
        raise SystemExit(
            '--write replaces what was published: not with BENCH_SIZE=tiny, nor with BENCH_OUT'
        )
    out = '' if found.write else os.environ.get('BENCH_OUT') or APART
    for name in found.names or BUDGETS:
        left = LIMIT - (time.perf_counter() - began)
        if left < 20:
            print(f'{name}: no time is left')
            continue
        run(name, seconds_for(name, left), out)
    from benchmarks.report import brief, published, report, write

    print(report(out or None))
    if out:
        print(published(out))
    if found.write:
        write(brief())
    print(f'{time.perf_counter() - began:.0f} seconds in all; rows in {out or HERE / "rows"}')


if __name__ == '__main__':
    main()
