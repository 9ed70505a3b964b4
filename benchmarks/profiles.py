"""Where the time goes: a profile of ours for one row, kept in `profiles/`. `python -m
benchmarks.profiles [step] [labelling] [evaluation]`."""

from __future__ import annotations

import cProfile
import io
import pstats
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.timing import (
    HERE,
    SIZE,
    describe_machine,
    measured_commit,
    out_folder,
    read_command_line,
)
from benchmarks.world import GEOMETRIES

LINES = 30  # of each profile


def profile_functions(work: Callable[[], object]) -> str:
    "Python functions by the time in themselves and in what they call, of one run after a warm-up."
    work()
    profile = cProfile.Profile()
    profile.runcall(work)
    text = io.StringIO()
    for order in ('tottime', 'cumulative'):
        pstats.Stats(profile, stream=text).strip_dirs().sort_stats(order).print_stats(LINES)
    return text.getvalue()


def profile_operations(work: Callable[[], object]) -> str:
    "Torch operations by the time in themselves, of one run after two warm-ups."
    from torch.profiler import ProfilerActivity, profile

    work()
    work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    return found.key_averages().table(
        sort_by='self_cpu_time_total', row_limit=LINES, max_name_column_width=48
    )


def step(folder: Path) -> str:
    "A training step of all weights."
    from benchmarks.step import make_world, our_step, start_ours, train_config

    g = GEOMETRIES[SIZE]
    world = make_world(g, folder / 'world')
    run = start_ours(world, train_config(g, 'full', g.batch), folder / 'run')

    def work():
        our_step(run)

    return profile_operations(work) + profile_functions(work)


def labelling(folder: Path) -> str:
    "The pairs of `make bench` labelled."
    from benchmarks.labelling import PAIRS, load_four, our_scores, write_source

    path, scorers, runs = write_source(folder / 'pairs.parquet', PAIRS), load_four(), count()
    return profile_functions(lambda: our_scores(path, scorers, folder / f'scores-{next(runs)}'))


def evaluation(folder: Path) -> str:
    "A model drawn, scored and compared with the base."
    from balanceddpo.data.prompts import read_prompts
    from balanceddpo.models.folders import local_folder
    from benchmarks.evaluation import PROMPTS, hide_progress_bars, our_win_rates, write_model
    from benchmarks.labelling import load_four

    hide_progress_bars()
    models, runs = {'base': local_folder('icons'), 'a': write_model(folder / 'model', 1)}, count()
    prompts, scorers = read_prompts('icons:pickapic', limit=PROMPTS), load_four()

    def work():
        our_win_rates('a', models, prompts, scorers, folder / f'run-{next(runs)}')

    return profile_functions(work)


PARTS = {'step': step, 'labelling': labelling, 'evaluation': evaluation}


def main() -> None:
    "A file for each part that the command line names, or for all."
    names = read_command_line(__doc__, PARTS).names or PARTS
    out = out_folder(HERE) / 'profiles'
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            text = PARTS[name](Path(folder))
        head = f'commit {measured_commit()}, size {SIZE}, {describe_machine()}'
        (out / f'{name}.txt').write_text(f'{head}\n{text}', encoding='utf-8')
        print(out / f'{name}.txt')


if __name__ == '__main__':
    main()
