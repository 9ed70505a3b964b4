"""Row 6: what grows with what. Labelling with the pairs and with the scorers, drawing and win rates
with the prompts; and encoder passes, counted.

A line `fixed + each * n` is fitted through all sizes but the largest, and the largest is held
against it: 1 is linear, more is worse. With `--full` the pairs go on to 100,000 and the prompts
to 10,000. `scale.png` shows the points and the lines; `--draw` draws it again from the kept
rows, without measuring."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.memory import small_scorers, write_source
from benchmarks.timing import BUDGET, HERE, SIZE, START, Log, read_command_line

ROW = 6
FULL = '--full' in sys.argv
NAME = 'scale_full' if FULL else 'scale'
PAIRS = {'tiny': (20, 40, 80), 'cpu': (100, 300, 1_000, 3_000, 10_000)}[SIZE]
# drawn and scored, one image each
PROMPTS = {'tiny': (4, 8, 16), 'cpu': (50, 100, 200, 400)}[SIZE]
if FULL:
    PAIRS += (100_000,)
    PROMPTS += (10_000,)
# prompts of score tables that are compared
COMPARED = {'tiny': (10, 100, 1_000), 'cpu': (100, 1_000, 10_000, 100_000)}[SIZE]
SCORERS = {'tiny': (1, 2, 3), 'cpu': (1, 2, 4, 8)}[SIZE]
SCORED = {'tiny': 10, 'cpu': 300}[SIZE]  # pairs for the number of scorers
REPEATS = 3  # runs of a size that takes under five seconds; the least counts
LIMIT = '<= 1.25'  # the largest size over the line through the others


def least_seconds(work: Callable[[int], object], repeats: int = REPEATS) -> float:
    """The least seconds of some runs of `work(n)`, n = 0, 1, ...: what disturbs a run only ever
    adds to it."""
    took = []
    for number in range(repeats):
        began = time.perf_counter()
        work(number)
        took.append(time.perf_counter() - began)
        if took[0] > 5:
            break  # long runs average the disturbance themselves
    return min(took)


def fit_line(sizes, took) -> tuple[float, float]:
    """(fixed, each) of the least-squares line, weighted so that every size counts by its relative
    error."""
    import numpy as np

    sizes, took = np.asarray(sizes, float), np.asarray(took, float)
    each, fixed = np.polyfit(sizes, took, 1, w=1 / took)
    return float(fixed), float(each)


def measure_growth(
    log: Log, what: str, sizes: Sequence[int], work: Callable[[int, int], object]
) -> None:
    "Time `work(n, repeat)` for each size and hold the largest against the line through the others."
    took = []
    for n in sizes:
        took.append(least_seconds(partial(work, n)))
        log.add(row=ROW, point=what, size=n, seconds=took[-1])
    fixed, each = fit_line(sizes[:-1], took[:-1])
    log.add(
        row=ROW,
        what=f'{what}: {sizes[-1]:,} over the line through {sizes[0]:,} to {sizes[-2]:,}',
        goal=LIMIT,
        round=0,
        value=took[-1] / (fixed + each * sizes[-1]),
        fixed=fixed,
        each=each,
    )


def measure_pairs(log: Log, folder: Path) -> None:
    "Labelling, by the number of pairs."
    from balanceddpo.data.sources import PairSource
    from balanceddpo.scoring.tables import score_pairs

    scorers = small_scorers(folder / 'scorers')
    for n in PAIRS:
        write_source(folder / f'{n}.parquet', n)

    def label(n, repeat):
        pairs = PairSource(str(folder / f'{n}.parquet'))
        score_pairs(pairs, scorers, folder / f'scores-{n}-{repeat}', progress=False)

    measure_growth(log, 'labelling, seconds by pairs', PAIRS, label)


def measure_prompts(log: Log, folder: Path) -> None:
    "Drawing and scoring by a tiny model, then win rates from score tables."
    import numpy as np

    from balanceddpo.data.prompts import PromptSet
    from balanceddpo.evaluation.scores import score_images
    from balanceddpo.evaluation.win_rates import score_table, win_rates
    from balanceddpo.models.config import SampleConfig
    from balanceddpo.models.sampling import sample

    scorers, model = small_scorers(folder / 'scorers'), save_tiny(folder / 'model')
    generator = np.random.default_rng(0)

    def draw_and_score(n, repeat):
        config = SampleConfig(model=str(model), images_per_prompt=1, steps=1, device='cpu')
        prompts = PromptSet('made', tuple(f'a red apple {i}' for i in range(n)))
        images = folder / f'images-{n}-{repeat}'
        store = sample(config, prompts, out=images, progress=False)
        score_images(store, scorers, out=images.with_suffix('.parquet'), progress=False)

    def compare(n, repeat):
        tables = [score_table(model, {'s': generator.random((n, 5))}) for model in 'ab']
        win_rates(*tables, ['s'])

    measure_growth(log, 'drawing and scoring, seconds by prompts', PROMPTS, draw_and_score)
    what = 'win rates of five images each, seconds by prompts'
    measure_growth(log, what, COMPARED, compare)


def save_tiny(folder):
    "The tiny geometry as a pipeline folder with weights."
    from benchmarks.world import make_pipeline
    from random_networks import TINY

    make_pipeline(TINY).save_pretrained(folder / 'model')
    return folder / 'model'


def measure_scorers(log: Log, folder: Path) -> None:
    "Labelling, by the number of scorers."
    from balanceddpo.data.sources import PairSource
    from balanceddpo.scoring.tables import score_pairs

    source = write_source(folder / 'pairs.parquet', SCORED)
    scorers = small_scorers(folder / 'scorers', max(SCORERS))

    def label(k, repeat):
        out = folder / f'scores-{k}-{repeat}'
        score_pairs(PairSource(str(source)), scorers[:k], out, progress=False)

    measure_growth(log, 'labelling, seconds by scorers with a network each', SCORERS, label)


def count_passes(n: int = SCORED) -> dict[str, int]:
    """Image passes and text passes of the paper's four scorers over `n` pairs, and of each distinct
    network: counted, not timed."""
    from balanceddpo.data.sources import read_pairs
    from balanceddpo.scoring.tables import score_shard
    from benchmarks.labelling import load_four

    scorers, pairs = load_four(), list(read_pairs('icons', limit=n))
    score_shard(pairs, scorers)
    encoders = {id(scorer.encoder): scorer.encoder for scorer in scorers}.values()
    return {
        'scorers': len(scorers),
        'towers': len(encoders),  # as the kept rows call them
        'images': len({image for pair in pairs for image in pair.image_ids}),
        'captions': len({pair.caption for pair in pairs}),
        'image_passes': sum(encoder.image_passes for encoder in encoders),
        'text_passes': sum(encoder.text_passes for encoder in encoders),
    }


def measure_passes(log: Log) -> None:
    "A row for the passes of the paper's four scorers, over what they need at least."
    found = count_passes()
    networks = f'{found["scorers"]} scorers with {found["towers"]} networks'
    what = f'{networks}: image passes over images x networks'
    value = found['image_passes'] / (found['images'] * found['towers'])
    log.add(row=ROW, what=what, goal='<= 1', round=0, value=value, **found)


def round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last that is not above `low` to the first that is
    not below `high`."""
    from math import floor, log10

    powers = range(floor(log10(low)) - 1, floor(log10(high)) + 2)
    ticks = [float(f'{digit}e{power}') for power in powers for digit in (1, 2, 5)]
    first = max(tick for tick in ticks if tick <= low)
    last = min(tick for tick in ticks if tick >= high)
    return [tick for tick in ticks if first <= tick <= last]


def draw_panel(panel, name: str, points: list[dict], fit: dict | None) -> None:
    """One question: what was measured, and the line, which is bent on logarithmic axes and so needs
    more than the measured sizes."""
    import numpy as np

    sizes = [point['size'] for point in points]
    took = [point['seconds'] for point in points]
    if fit:
        dense = np.geomspace(min(sizes), max(sizes), 200)
        fitted = fit['fixed'] + fit['each'] * dense
        panel.plot(dense, fitted, color='0.6', label='line through all but the largest')
    panel.plot(sizes, took, 'o', label='measured')
    panel.set(
        xscale='log',
        yscale='log',
        title=name.split(',')[0],
        ylabel='seconds',
        xlabel=name.split(' by ')[1],
    )
    panel.set_xticks(sizes, [f'{n:,}' for n in sizes])
    ticks = round_ticks(min(took), max(took))
    panel.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
    panel.minorticks_off()
    panel.tick_params(labelsize=8)
    panel.title.set_fontsize(9)
    panel.legend(fontsize=7)


def plot_growth(rows: list[dict], path: Path) -> Path:
    "Points and lines, one panel a question, logarithmic axes."
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    points = [row for row in rows if 'point' in row]
    names = list(dict.fromkeys(point['point'] for point in points))
    figure, panels = plt.subplots(
        1, len(names), figsize=(4 * len(names), 3.2), squeeze=False, layout='constrained'
    )
    for panel, name in zip(panels[0], names):
        own = [point for point in points if point['point'] == name]
        fits = [row for row in rows if row.get('what', '').startswith(name + ':')]
        draw_panel(panel, name, own, fits[0] if fits else None)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return Path(path)


def draw_again() -> Path:
    "`scale.png` from the rows that a measurement left, those of `--full` if that is asked for too."
    folder = os.environ.get('BENCH_OUT')
    file = Path(folder or HERE / 'rows') / f'{NAME}.jsonl'
    _, *rows = file.read_text(encoding='utf-8').splitlines()  # the first line tells of the machine
    return plot_growth([json.loads(row) for row in rows], Path(folder or HERE) / 'scale.png')


def main() -> None:
    "Count the passes, measure what grows with what, and draw it."
    flags = {
        'full': '100,000 pairs and 10,000 prompts too',
        'draw': 'draw scale.png again from the kept rows; measure nothing',
    }
    if read_command_line(__doc__, **flags).draw:
        print(draw_again())
        return
    warnings.simplefilter('ignore')  # random networks hardly tell images apart, and say so
    log = Log(NAME, pairs=PAIRS, prompts=PROMPTS)
    measure_passes(log)
    # the longest last
    parts = {'scorers': measure_scorers, 'prompts': measure_prompts, 'pairs': measure_pairs}
    for name, part in parts.items():
        if time.perf_counter() - START > BUDGET:
            print(f'scale: out of time before {name}')
            break
        with tempfile.TemporaryDirectory() as folder:
            part(log, Path(folder))
    plot_growth(log.rows, Path(os.environ.get('BENCH_OUT') or HERE) / 'scale.png')


if __name__ == '__main__':
    main()
