"""Row 1, options of ours that were tried on the CPU and are no default there: a full step with
each, against the plain one. `python -m benchmarks.tried [NAME ...]`, by hand.

Ratios above 1 mean that the option is slower. bf16 gives other results; that the others give the
same is tested (`tests/training/test_loop.py`)."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.step import make_world, our_step, start_ours, train_config
from benchmarks.timing import SIZE, Arm, Log, asked, versus
from benchmarks.world import GEOMETRIES

TRIED = {
    'compiled': dict(compiled='whole'),
    'channels_last': dict(channels_last=True),
    'bf16': dict(precision='bf16'),
}


def main() -> None:
    names = asked(__doc__, TRIED).names or TRIED
    log, g = Log('tried'), GEOMETRIES[SIZE]
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(g, Path(folder) / 'world')

        def arm(name, **changes):
            run = start_ours(
                world, train_config(g, 'full', g.batch, **changes), Path(folder) / name
            )
            began = time.perf_counter()
            our_step(run)
            log.add(
                row=1,
                what=f'first step, {name}, seconds',
                goal='',
                round=0,
                value=time.perf_counter() - began,
            )
            return Arm(name, partial(our_step, run))

        versus(
            log,
            1,
            {n: '' for n in names},
            [arm('step, full'), *(arm(n, **TRIED[n]) for n in names)],
        )


if __name__ == '__main__':
    main()
