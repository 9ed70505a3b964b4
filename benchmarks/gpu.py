"""The rows for one GPU, part by part, for whoever may have it for some minutes, once.

`python -m benchmarks.gpu --minutes 13` runs the parts in the order of what matters, each a process
of its own with a limit; what does not fit into the time is named. The same line again, with the
same folder of rows, goes on with what is missing. SD1.5 and SDXL have their published geometry and
random weights, made on the device: nothing is downloaded. Goals are for an H100 and an H200.
Without a GPU the command prints what can be counted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from benchmarks.gpu_clock import ROW, Part, rows_path, run_parts
from benchmarks.gpu_labelling import SCORERS, scorer_flops
from benchmarks.gpu_rates import GOALS
from benchmarks.gpu_sampling import image_flops
from benchmarks.timing import SIZE, Log, read_command_line
from benchmarks.world import SD15, SDXL, flops, per_pair

PEAK = 790e12  # FLOP/s of an 8192^3 bf16 product on one H200, for the counted limits
MINUTES = 13.0

# Name, seconds after which it is stopped, seconds without which it is not started: in the order of
# what matters. Both hold the 10 to 15 seconds of imports. The second is about what the part should
# take on an H100, so that none is begun in vain. README.md says what each part measures.
LIMITS = (
    ('step', 110, 45),
    ('rivals_full', 120, 60),
    ('rivals_lora', 100, 55),
    ('compiled', 240, 150),
    ('labelling', 170, 100),
    ('sampling', 210, 130),
    ('sdxl', 120, 70),
    ('offloaded', 110, 60),
    ('icons', 130, 65),
    ('rivals_compiled', 260, 160),
)


def part(name: str, limit: float, least: float) -> Part:
    "The part called `name` as a process: the function of `benchmarks.gpu_parts` that has its name."
    code = f'from benchmarks.gpu_parts import run; run({name!r})'
    return Part(name, (sys.executable, '-c', code), limit, least)


PARTS = {name: part(name, limit, least) for name, limit, least in LIMITS}


# --- what can be counted without a GPU


def counted_limits() -> list[tuple]:
    "For every rate: (what, TFLOP an item, limit in items/s at `PEAK`, goal, goal over limit)."
    small, large = flops(SD15), flops(SDXL)
    work = {
        'SD1.5 step, cached inputs, pairs/s eager': (per_pair(small)['cached'], 'eager'),
        'SD1.5 step, cached inputs, pairs/s compiled': (per_pair(small)['cached'], 'compiled'),
        'SD1.5 step, encoders in the loop, pairs/s': (per_pair(small)['in_loop'], None),
        'SDXL 1024 step, cached inputs, pairs/s': (per_pair(large)['cached'], 'sdxl'),
    }
    for clip, which in SCORERS.items():
        work[f'labelling by {which}, pairs/s'] = (scorer_flops(clip), f'labelling, {clip}')
    drawing = 'SD1.5 sampling, 50 steps with guidance, images/s'
    work[drawing] = (image_flops(small, 50), 'sampling')
    return [limit_of(what, flop, name) for what, (flop, name) in work.items()]


def limit_of(what: str, flop: float, name: str | None) -> tuple:
    "A row of `counted_limits` for an item of so many FLOPs whose goal on an H200 is called `name`."
    goal = float(GOALS['H200'][name].split()[1]) if name else None
    share = goal * flop / PEAK if goal else None
    return what, flop / 1e12, PEAK / flop, goal, share


def report_counted() -> None:
    "Print and keep the counted rows, and say what was not run."
    log = Log('counted')
    roof = f'{PEAK / 1e12:.0f} TFLOP/s (an 8192^3 bf16 product on one H200)'
    print(f'No GPU here: not yet run. Counted, with the limit at {roof}:')
    for what, tera, limit, goal, share in counted_limits():
        log.add(row=ROW, counted=what, tflop=tera, limit=limit, goal=goal, share=share)
        wanted = f'   goal {goal:g}/s, {share:.0%} of the peak' if goal else ''
        print(f'  {what:<60} {tera:8.2f} TFLOP   limit {limit:7.1f}/s{wanted}')
    print(f'With a GPU: python -m benchmarks.gpu --minutes 13, or some parts: {" ".join(PARTS)}')


def main(parts: Sequence[Part] = tuple(PARTS.values())) -> None:
    "Run the parts that the command line names, or all, within its minutes."
    minutes = {'minutes': (MINUTES, 'for all parts together, the start of each included')}
    found = read_command_line(__doc__, [p.name for p in parts], numbers=minutes)
    import torch

    from balanceddpo.core.devices import ensure_torchvision

    ensure_torchvision()
    if SIZE != 'tiny' and not torch.cuda.is_available():
        report_counted()
        return
    for p in parts:
        rows_path(p.name)  # says so now if this is too small to replace what is kept
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the part too
    run_parts([p for p in parts if p.name in (found.names or [p.name])], 60 * found.minutes)


if __name__ == '__main__':
    main()
