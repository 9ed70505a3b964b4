"""Row 3, options that change results: does a cheaper evaluation say what the exact one says? None
of them is a default. `python -m benchmarks.agreement`, by hand.

Base model against BalancedDPO of Table I in the icon world (trained first if `runs` has none),
best of five images. Exact is fp32 and the scale's 12 steps. For each
option: the share of prompts with the same winner, over four scorers, and how far a win rate
moves. The interval of a win rate over 100 prompts is 10 points to each side."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.timing import SIZE, Log, asked

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

    from balanceddpo.evaluation.win_rates import score_images
    from balanceddpo.paper.experiments import draw as drawn
    from balanceddpo.paper.experiments import voters

    ((name, source),) = scale.prompts
    scorers = voters(replace(scale, **dict(judge)))
    return pd.concat(
        [
            score_images(
                drawn(replace(scale, **dict(draw)), m, source),
                scorers,
                model=m.name,
                prompt_set=name,
                progress=False,
            )
            for m in models
        ]
    )


def agreement(exact, cheap, pair, scorers) -> dict:
    """Of two score tables: `same`, the share of prompts at which the same model of `pair` has the
    best image, over all scorers; `apart`, the largest difference of a win rate, points."""
    import numpy as np

    from balanceddpo.evaluation.win_rates import best_of, score_grid

    def ahead(table):
        return np.array(
            [
                np.sign(
                    np.subtract(*(best_of(score_grid(table[table.model == m], k)) for m in pair))
                )
                for k in scorers
            ]
        )

    x, y = ahead(exact), ahead(cheap)
    return {
        'same': float((x == y).mean()),
        'apart': float(50 * np.abs(x.mean(1) - y.mean(1)).max()),
    }


def main() -> None:
    asked(__doc__)
    from balanceddpo.paper import experiments

    log, scale = (
        Log('agreement', prompts=PROMPTS, images=IMAGES),
        experiments.scale_of({'tiny': 'smoke', 'cpu': 'icons'}[SIZE]),
    )
    scale = replace(scale, prompts=scale.prompts[:1], n_prompts=PROMPTS, images_per_prompt=IMAGES)
    models, scorers = (
        [experiments.model_of(scale, n) for n in ('BalancedDPO', 'base')],
        experiments.scorer_names(scale),
    )
    exact = scores_of(scale, models)
    for name, how in OPTIONS.items():
        found = agreement(exact, scores_of(scale, models, **how), [m.name for m in models], scorers)
        log.add(
            row=3,
            what=f'{name}: share of prompts with the same winner',
            goal='',
            round=0,
            value=found['same'],
        )
        log.add(
            row=3,
            what=f'{name}: largest change of a win rate, points',
            goal='',
            round=0,
            value=found['apart'],
        )


if __name__ == '__main__':
    main()
