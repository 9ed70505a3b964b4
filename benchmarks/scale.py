"""Row 6: what grows with what. Labelling with the pairs and with the scorers, drawing and win rates
with the prompts; and tower passes, counted.

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
from pathlib import Path

from benchmarks.memory import small_scorers, write_source
from benchmarks.timing import BUDGET, HERE, SIZE, START, Log, asked

FULL = '--full' in sys.argv
NAME = 'scale' + '_full' * FULL
PAIRS = {'tiny': (20, 40, 80), 'cpu': (100, 300, 1_000, 3_000, 10_000)}[SIZE] + (
    (100_000,) if FULL else ()
)
# drawn and scored, one image each
PROMPTS = {'tiny': (4, 8, 16), 'cpu': (50, 100, 200, 400)}[SIZE] + ((10_000,) if FULL else ())
# prompts of score tables that are compared
COMPARED = {'tiny': (10, 100, 1_000), 'cpu': (100, 1_000, 10_000, 100_000)}[SIZE]
SCORERS = {'tiny': (1, 2, 3), 'cpu': (1, 2, 4, 8)}[SIZE]
SCORED = {'tiny': 10, 'cpu': 300}[SIZE]  # pairs for the number of scorers
REPEATS = 3  # runs of a size that takes under five seconds; the least counts
LIMIT = '<= 1.25'  # the largest size over the line through the others


def least(work, repeats=REPEATS) -> float:
    """The least seconds of some runs of `work(n)`, n = 0, 1, ...: what disturbs a run only ever
    adds to it."""
    took = []
    for n in range(repeats):
        began = time.perf_counter()
        work(n)
        took.append(time.perf_counter() - began)
        if took[0] > 5:
            break  # long runs average the disturbance themselves
    return min(took)


def line(sizes, took) -> tuple:
    """(fixed, each) of the least-squares line, weighted so that every size counts by its relative
    error."""
    import numpy as np

    sizes, took = np.asarray(sizes, float), np.asarray(took, float)
    each, fixed = np.polyfit(sizes, took, 1, w=1 / took)
    return float(fixed), float(each)


def grow(log, what, sizes, work) -> None:
    "Time `work(n, repeat)` for each size and hold the largest against the line through the others."
    took = []
    for n in sizes:
        took.append(least(lambda repeat: work(n, repeat)))
        log.add(row=6, point=what, size=n, seconds=took[-1])
    fixed, each = line(sizes[:-1], took[:-1])
    log.add(
        row=6,
        what=f'{what}: {sizes[-1]:,} over the line through {sizes[0]:,} to {sizes[-2]:,}',
        goal=LIMIT,
        round=0,
        value=took[-1] / (fixed + each * sizes[-1]),
        fixed=fixed,
        each=each,
    )


def pairs(log, folder) -> None:
    from balanceddpo.data.pairs import read_pairs
    from balanceddpo.scoring.tables import score_pairs

    scorers = small_scorers(folder / 'scorers')
    for n in PAIRS:
        write_source(folder / f'{n}.parquet', n)
    grow(
        log,
        'labelling, seconds by pairs',
        PAIRS,
        lambda n, r: score_pairs(
            read_pairs(folder / f'{n}.parquet'), scorers, folder / f'scores-{n}-{r}', progress=False
        ),
    )


def prompts(log, folder) -> None:
    "Drawing and scoring by a tiny model, then win rates from score tables."
    import numpy as np

    from balanceddpo.data.pairs import PromptSet
    from balanceddpo.evaluation.win_rates import score_images, score_table, win_rates
    from balanceddpo.models.sampling import SampleConfig, sample

    scorers, model, draw = (
        small_scorers(folder / 'scorers'),
        save_tiny(folder / 'model'),
        np.random.default_rng(0),
    )

    def evaluate(n, r):
        config = SampleConfig(model=str(model), images_per_prompt=1, steps=1, device='cpu')
        store = sample(
            config,
            PromptSet('made', tuple(f'a red apple {i}' for i in range(n))),
            out=folder / f'images-{n}-{r}',
            progress=False,
        )
        score_images(store, scorers, out=folder / f'images-{n}-{r}.parquet', progress=False)

    grow(log, 'drawing and scoring, seconds by prompts', PROMPTS, evaluate)

    def compare(n, r):
        return win_rates(*(score_table(m, {'s': draw.random((n, 5))}) for m in 'ab'), ['s'])

    grow(log, 'win rates of five images each, seconds by prompts', COMPARED, compare)


def save_tiny(folder):
    "The tiny geometry as a pipeline folder with weights."
    from diffusers import StableDiffusionPipeline

    from benchmarks.world import TINY, make_family

    family = make_family(TINY, folder / 'configs')
    from balanceddpo.models.sampling import make_scheduler

    StableDiffusionPipeline(
        **family.parts,
        scheduler=make_scheduler('ddim', family.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / 'model')
    return folder / 'model'


def scorers(log, folder) -> None:
    from balanceddpo.data.pairs import read_pairs
    from balanceddpo.scoring.tables import score_pairs

    source, many = (
        write_source(folder / 'pairs.parquet', SCORED),
        small_scorers(folder / 'scorers', max(SCORERS)),
    )

    def label(k, r):
        return score_pairs(read_pairs(source), many[:k], folder / f'scores-{k}-{r}', progress=False)

    grow(log, 'labelling, seconds by scorers with a network each', SCORERS, label)


def passes(n=SCORED) -> dict:
    """Image passes and text passes of the paper's four scorers over `n` pairs, and of each distinct
    network: counted, not timed."""
    from balanceddpo.data.pairs import read_pairs
    from balanceddpo.scoring.tables import score_shard
    from benchmarks.labelling import load_four

    four, some = load_four(), list(read_pairs('icons', limit=n))
    score_shard(some, four)
    towers = {id(s.tower): s.tower for s in four}.values()
    return {
        'scorers': len(four),
        'towers': len(towers),
        'images': len({i for p in some for i in p.image_ids}),
        'captions': len({p.caption for p in some}),
        'image_passes': sum(t.image_passes for t in towers),
        'text_passes': sum(t.text_passes for t in towers),
    }


def count_passes(log) -> None:
    found = passes()
    log.add(
        row=6,
        what=(
            f'{found["scorers"]} scorers with {found["towers"]} networks: image passes over images'
            ' x networks'
        ),
        goal='<= 1',
        round=0,
        value=found['image_passes'] / (found['images'] * found['towers']),
        **found,
    )


def round_ticks(low, high) -> list:
    """1, 2 and 5 times powers of ten, from the last that is not above `low` to the first that is
    not below `high`."""
    from math import floor, log10

    ticks = [
        float(f'{m}e{k}')
        for k in range(floor(log10(low)) - 1, floor(log10(high)) + 2)
        for m in (1, 2, 5)
    ]
    return ticks[
        max(n for n, t in enumerate(ticks) if t <= low) : min(
            n for n, t in enumerate(ticks) if t >= high
        )
        + 1
    ]


def draw_panel(panel, name, points, fit) -> None:
    """One question: what was measured, and the line, which is bent on logarithmic axes and so needs
    more than the measured sizes."""
    import numpy as np

    sizes, took = [r['size'] for r in points], [r['seconds'] for r in points]
    dense, ticks = np.geomspace(min(sizes), max(sizes), 200), round_ticks(min(took), max(took))
    if fit:
        panel.plot(
            dense,
            fit['fixed'] + fit['each'] * dense,
            color='0.6',
            label='line through all but the largest',
        )
    panel.plot(sizes, took, 'o', label='measured')
    panel.set(
        xscale='log',
        yscale='log',
        title=name.split(',')[0],
        ylabel='seconds',
        xlabel=name.split(' by ')[1],
    )
    panel.set_xticks(sizes, [f'{n:,}' for n in sizes])
    panel.set_yticks(ticks, [f'{t:g}' for t in ticks])
    panel.minorticks_off()
    panel.tick_params(labelsize=8)
    panel.title.set_fontsize(9)
    panel.legend(fontsize=7)


def plot(rows, path) -> Path:
    "Points and lines, one panel a question, logarithmic axes."
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    points = [r for r in rows if 'point' in r]
    names = list(dict.fromkeys(r['point'] for r in points))
    figure, panels = plt.subplots(
        1, len(names), figsize=(4 * len(names), 3.2), squeeze=False, layout='constrained'
    )
    for panel, name in zip(panels[0], names):
        draw_panel(
            panel,
            name,
            [r for r in points if r['point'] == name],
            next((r for r in rows if r.get('what', '').startswith(name + ':')), None),
        )
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return Path(path)


def draw_again() -> Path:
    "`scale.png` from the rows that a measurement left, those of `--full` if that is asked for too."
    folder = os.environ.get('BENCH_OUT')
    # the first line tells of the machine
    _, *rows = (
        (Path(folder or HERE / 'rows') / f'{NAME}.jsonl').read_text(encoding='utf-8').splitlines()
    )
    return plot([json.loads(row) for row in rows], Path(folder or HERE) / 'scale.png')


def main() -> None:
    if asked(
        __doc__,
        full='100,000 pairs and 10,000 prompts too',
        draw='draw scale.png again from the kept rows; measure nothing',
    ).draw:
        return print(draw_again())
    warnings.simplefilter('ignore')  # random networks hardly tell images apart, and say so
    log = Log(NAME, pairs=PAIRS, prompts=PROMPTS)
    count_passes(log)
    for part in (scorers, prompts, pairs):  # the longest last
        if time.perf_counter() - START > BUDGET:
            print(f'scale: out of time before {part.__name__}')
            break
        with tempfile.TemporaryDirectory() as folder:
            part(log, Path(folder))
    plot(log.rows, Path(os.environ.get('BENCH_OUT') or HERE) / 'scale.png')


if __name__ == '__main__':
    main()
