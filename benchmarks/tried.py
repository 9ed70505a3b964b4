"""Row 1, options of ours that were tried on the CPU and are no default there: a full step with
each, against the plain one. `python -m benchmarks.tried [NAME ...]`, by hand.

Ratios above 1 mean that the option is slower. bf16 gives other results; that the others give the
same is tested (`tests/training/test_loop.py`)."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.step import World, make_world, our_step, start_ours, train_config
from benchmarks.timing import SIZE, Arm, Log, read_command_line, time_arms
from benchmarks.world import GEOMETRIES

ROW = 1
TRIED = {
    'compiled': dict(compiled='whole'),
    'channels_last': dict(channels_last=True),
    'bf16': dict(precision='bf16'),
}


def started_arm(log: Log, world: World, name: str, folder: str, **changes) -> Arm:
    "A run with these changes to our settings; the seconds of its first step are a row."
    geometry = world.geometry
    config = train_config(geometry, 'full', geometry.batch, **changes)
    run = start_ours(world, config, Path(folder) / name)
    began = time.perf_counter()
    our_step(run)
    took = time.perf_counter() - began
    log.add(row=ROW, what=f'first step, {name}, seconds', goal='', round=0, value=took)
    return Arm(name, partial(our_step, run))


def main() -> None:
    "The options that the command line names, or all, against the plain step."
    names = read_command_line(__doc__, TRIED).names or TRIED
    log = Log('tried')
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(GEOMETRIES[SIZE], Path(folder) / 'world')
        arms = [started_arm(log, world, 'step, full', folder)]
        for name in names:
            arms.append(started_arm(log, world, name, folder, **TRIED[name]))
        time_arms(log, ROW, dict.fromkeys(names, ''), arms)


if __name__ == '__main__':
    main()
