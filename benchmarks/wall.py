"""Row 4: the wall clock of a whole reproduction from nothing, and where it goes. `python -m benchmarks.wall table1` (or `all`), by hand.

Everything is made anew in a temporary folder, with what the package ships. Where the time goes is read from the kept stages: the times of first and last file."""
from __future__ import annotations
import os, subprocess, sys, tempfile, time
from pathlib import Path
from benchmarks.timing import HERE, Log, asked

GOALS = {'table1': '<= 12', 'all': '<= 120'}        # minutes
SCALE = os.environ.get('SCALE', 'icons')


def stage_minutes(runs) -> dict:
    "Kind of stage -> minutes from its inputs to its manifest, added up over the kept stages; those of two notebooks may overlap."
    found = {}
    for inputs in Path(runs).rglob('inputs.json'):
        kind, last = inputs.relative_to(runs).parts[0], [m for m in (inputs.parent/'manifest.json', inputs.parent.parent/'model/manifest.json') if m.exists()]
        if last: found[kind] = found.get(kind, 0.) + (last[0].stat().st_mtime - inputs.stat().st_mtime) / 60
    return found


def measure(what) -> None:
    log = Log(f'wall_{what}', scale=SCALE)
    with tempfile.TemporaryDirectory() as folder:
        runs, began = Path(folder)/'runs', time.perf_counter()
        subprocess.run([sys.executable, '-m', 'balanceddpo.cli', 'reproduce', what, '--scale', SCALE, '--workers', str(os.cpu_count()), '--out', str(Path(folder)/'figures')], cwd=HERE.parent, check=True,
                       env={**os.environ, 'BALANCEDDPO_RUNS': str(runs)})
        log.add(row=4, what=f'minutes of `reproduce {what}` at scale {SCALE}', goal=GOALS[what], round=0,
                value=(time.perf_counter() - began) / 60, stages=stage_minutes(runs))


def main() -> None:
    for what in asked(__doc__, GOALS).names or ['table1']: measure(what)


if __name__ == '__main__': main()
