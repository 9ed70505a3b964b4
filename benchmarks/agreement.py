"""Row 3, options that change results: does a cheaper evaluation say what the exact one says? None
of them is a default. `python -m benchmarks.agreement`, by hand.

Base model against BalancedDPO of Table I in the icon world (trained first if `runs` has none),
best of five images. Exact is fp32 and the scale's 12 steps. For each
option: the share of prompts with the same winner, over four scorers, and how far a win rate
moves. The interval of a win rate over 100 prompts is 10 points to each side."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.timing import SIZE, Log, read_command_line

PROMPTS, IMAGES = {'tiny': (2, 2), 'cpu': (100, 5)}[SIZE]
OPTIONS = {
    'denoiser in bf16': dict(draw=dict(dtype='bf16')),
    'half the steps': dict(draw=dict(steps=6)),
    'scorers in bf16': dict(judge=dict(dtype='bf16')),
}


def scores_of(scale, models, draw=(), judge=()):
    """DataFrame: the scores of the models' images, drawn with the settings `draw` and scored with
    the settings `judge` in the place of the scale's."""
    import pandas as pd

    from balanceddpo.evaluation.scores import score_images
    from balanceddpo.paper.experiments import draw as draw_images
    from balanceddpo.paper.experiments import voters

    ((name, source),) = scale.prompts
    scorers = voters(replace(scale, **dict(judge)))
    drawing = replace(scale, **dict(draw))
    tables = []
    for model in models:
        store = draw_images(drawing, model, source)
        about = dict(model=model.name, prompt_set=name)
        tables.append(score_images(store, scorers, **about, progress=False))
    return pd.concat(tables)


def agreement(exact, cheap, pair, scorers) -> dict:
    """Of two score tables: `same`, the share of prompts at which the same model of `pair` has the
    best image, over all scorers; `apart`, the largest difference of a win rate, points."""
    import numpy as np

    from balanceddpo.evaluation.win_rates import best_of, score_grid

    def winners(table):
        "[scorers, prompts]: 1 where the first model is ahead, -1 where the second is, 0 level."
        rows = []
        for scorer in scorers:
            grids = [score_grid(table[table.model == name], scorer) for name in pair]
            first, second = (best_of(grid) for grid in grids)
            rows.append(np.sign(np.subtract(first, second)))
        return np.array(rows)

    by_exact, by_cheap = winners(exact), winners(cheap)
    return {
        'same': float((by_exact == by_cheap).mean()),
        'apart': float(50 * np.abs(by_exact.mean(1) - by_cheap.mean(1)).max()),
    }


def main() -> None:
    "Each option beside the exact evaluation."
    read_command_line(__doc__)
    from balanceddpo.paper import experiments, scales

    log = Log('agreement', prompts=PROMPTS, images=IMAGES)
    scale = scales.scale_of({'tiny': 'smoke', 'cpu': 'icons'}[SIZE])
    scale = replace(scale, prompts=scale.prompts[:1], n_prompts=PROMPTS, images_per_prompt=IMAGES)
    models = [experiments.model_of(scale, name) for name in ('BalancedDPO', 'base')]
    scorers = experiments.scorer_names(scale)
    exact = scores_of(scale, models)
    for name, how in OPTIONS.items():
        cheap = scores_of(scale, models, **how)
        found = agreement(exact, cheap, [m.name for m in models], scorers)
        same = f'{name}: share of prompts with the same winner'
        apart = f'{name}: largest change of a win rate, points'
        log.add(row=3, what=same, goal='', round=0, value=found['same'])
        log.add(row=3, what=apart, goal='', round=0, value=found['apart'])


if __name__ == '__main__':
    main()
