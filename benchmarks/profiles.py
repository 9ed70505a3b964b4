"""Where the time goes: a profile of ours for one row, kept in `profiles/`. `python -m
benchmarks.profiles [step] [labelling] [evaluation]`."""

from __future__ import annotations

import cProfile
import io
import pstats
import tempfile
from pathlib import Path

from benchmarks.timing import HERE, SIZE, asked, commit, machine, out_folder
from benchmarks.world import GEOMETRIES

LINES = 30  # of each profile


def functions(work) -> str:
    "Python functions by the time in themselves and in what they call, of one run after a warm-up."
    work()
    profile = cProfile.Profile()
    profile.runcall(work)
    text = io.StringIO()
    for order in ('tottime', 'cumulative'):
        pstats.Stats(profile, stream=text).strip_dirs().sort_stats(order).print_stats(LINES)
    return text.getvalue()


def operations(work) -> str:
    "Torch operations by the time in themselves, of one run after two warm-ups."
    from torch.profiler import ProfilerActivity, profile

    work()
    work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    return found.key_averages().table(
        sort_by='self_cpu_time_total', row_limit=LINES, max_name_column_width=48
    )


def step(folder) -> str:
    from benchmarks.step import make_world, our_step, start_ours, train_config

    g = GEOMETRIES[SIZE]
    world = make_world(g, folder / 'world')
    run = start_ours(world, train_config(g, 'full', g.batch), folder / 'run')
    return operations(lambda: our_step(run)) + functions(lambda: our_step(run))


def labelling(folder) -> str:
    from itertools import count

    from benchmarks.labelling import PAIRS, load_four, ours, write_source

    path, scorers, runs = write_source(folder / 'pairs.parquet', PAIRS), load_four(), count()
    return functions(lambda: ours(path, scorers, folder / f'scores-{next(runs)}'))


def evaluation(folder) -> str:
    from itertools import count

    from balanceddpo.data.pairs import read_prompts
    from balanceddpo.models.families import local_folder
    from benchmarks.evaluation import PROMPTS, load_four, ours, quiet, write_model

    quiet()
    models, runs = {'base': local_folder('icons'), 'a': write_model(folder / 'model', 1)}, count()
    prompts, scorers = read_prompts('icons:pickapic', limit=PROMPTS), load_four()
    return functions(lambda: ours('a', models, prompts, scorers, folder / f'run-{next(runs)}'))


PARTS = {'step': step, 'labelling': labelling, 'evaluation': evaluation}


def main() -> None:
    names = asked(__doc__, PARTS).names or PARTS
    out = out_folder(HERE) / 'profiles'
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            text = PARTS[name](Path(folder))
        (out / f'{name}.txt').write_text(
            f'commit {commit()}, size {SIZE}, {machine()}\n{text}', encoding='utf-8'
        )
        print(out / f'{name}.txt')


if __name__ == '__main__':
    main()
