"""Row 4: the wall clock of a whole reproduction from nothing, and where it goes. `python -m
benchmarks.wall table1` (or `all`), by hand.

Everything is made anew in a temporary folder, with what the package ships. Where the time goes
is read from the kept stages: the times of first and last file. With `--against-plain` it is done
a second time by torch as it is (`--numerics plain`), for the ratio; both on an idle machine, one
after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import HERE, Log, read_command_line

ROW = 4
GOALS = {'table1': '<= 12', 'all': '<= 120'}  # minutes
RATIO = '<= 0.78'  # of the minutes that torch takes as it is
SCALE = os.environ.get('SCALE', 'icons')


def stage_minutes(runs: Path) -> dict[str, float]:
    """Kind of stage -> minutes from its inputs to its manifest, added up over the kept stages;
    those of two notebooks may overlap."""
    found = {}
    for inputs in Path(runs).rglob('inputs.json'):
        kind = inputs.relative_to(runs).parts[0]
        ends = (inputs.parent / 'manifest.json', inputs.parent.parent / 'model/manifest.json')
        last = [end for end in ends if end.exists()]
        if last:
            minutes = (last[0].stat().st_mtime - inputs.stat().st_mtime) / 60
            found[kind] = found.get(kind, 0.0) + minutes
    return found


def time_reproduction(what: str, numerics: str) -> tuple[float, dict]:
    "Minutes of `reproduce what` from nothing on a numeric path, and minutes by kind of stage."
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / 'runs'
        command = [sys.executable, '-m', 'balanceddpo.cli', 'reproduce', what, '--scale', SCALE]
        command += ['--workers', str(os.cpu_count()), '--out', str(Path(folder) / 'figures')]
        env = {**os.environ, 'BALANCEDDPO_RUNS': str(runs), 'BALANCEDDPO_NUMERICS': numerics}
        began = time.perf_counter()
        subprocess.run(command, cwd=HERE.parent, check=True, env=env)
        return (time.perf_counter() - began) / 60, stage_minutes(runs)


def measure(what: str, against_plain: bool) -> None:
    """Keep the minutes of one reproduction, and with `against_plain` those by torch as it is and
    the ratio."""
    log, name = Log(f'wall_{what}', scale=SCALE), f'`reproduce {what}` at scale {SCALE}'
    ours, stages = time_reproduction(what, os.environ.get('BALANCEDDPO_NUMERICS', 'auto'))
    minutes = f'minutes of {name}'
    log.add(row=ROW, what=minutes, goal=GOALS[what], round=0, value=ours, stages=stages)
    if against_plain:
        plain, stages = time_reproduction(what, 'plain')
        minutes = f'minutes of {name} by torch as it is'
        log.add(row=ROW, what=minutes, goal='', round=0, value=plain, stages=stages)
        ratio = f'{name}, minutes over those by torch as it is'
        log.add(row=ROW, what=ratio, goal=RATIO, round=0, value=ours / plain)


def main() -> None:
    "What the command line names, or Table I."
    found = read_command_line(
        __doc__, GOALS, **{'against-plain': 'and by torch as it is, for the ratio'}
    )
    for what in found.names or ['table1']:
        measure(what, found.against_plain)


if __name__ == '__main__':
    main()
