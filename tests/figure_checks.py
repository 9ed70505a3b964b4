"""What tests of figures share: made-up win rates and scores, and the texts that leave the page."""

import numpy as np
import pandas as pd
from PIL import Image

from balanceddpo.evaluation.intervals import wilson
from balanceddpo.evaluation.win_rates import score_table

SETS = ('pickapic', 'partiprompts', 'hpd')
SCORERS = ('hps', 'clip', 'pickscore', 'aesthetic')
PAIRS = (('DiffusionDPO', 'base'), ('BalancedDPO', 'base'), ('BalancedDPO', 'DiffusionDPO'))


def made_up_rates(pairs=PAIRS, sets=SETS, n=150):
    "Made-up win rates in the form of evaluation.compare."
    rows, rng = [], np.random.default_rng(0)
    for name in sets:
        for a, b in pairs:
            for k in SCORERS:
                wins = int(rng.integers(60, 130))
                low, high = wilson(wins, n)
                rows.append(
                    dict(
                        model_a=a,
                        model_b=b,
                        prompt_set=name,
                        scorer=k,
                        protocol='best',
                        tie_rule='split',
                        n=n,
                        wins=wins,
                        ties=0,
                        win_rate=wins / n,
                        low=low,
                        high=high,
                        boot_low=low,
                        boot_high=high,
                    )
                )
    return pd.DataFrame(rows)


def made_up_scores(models=('base', 'BalancedDPO'), sets=SETS, seed=0):
    "A score table of some models: five images of each of twelve prompts in each set."
    rng = np.random.default_rng(seed)
    return pd.concat(
        [
            score_table(m, {k: 0.2 * j + rng.normal(size=(12, 5)) for k in SCORERS}, prompt_set=s)
            for s in sets
            for j, m in enumerate(models)
        ]
    )


def picture(width, height=None, color='red'):
    return Image.new('RGB', (width, height or width), color)


def texts_outside(fig):
    "The texts of a figure that do not lie wholly inside it."
    fig.draw_without_rendering()
    page = fig.bbox
    ticks = [
        (ax.get_xlim(), x, t)
        for ax in fig.axes
        if ax.axison
        for x, t in zip(ax.get_xticks(), ax.get_xticklabels())
    ]
    # matplotlib draws none of these
    unseen = {t for (low, high), x, t in ticks if not low <= x <= high}
    found = [
        t
        for t in fig.findobj(lambda a: hasattr(a, 'get_text'))
        if t.get_visible() and t.get_text().strip() and t not in unseen
    ]
    boxes = [(t.get_text(), t.get_window_extent()) for t in found]
    return [
        text
        for text, b in boxes
        if b.x0 < -0.5 or b.y0 < -0.5 or b.x1 > page.width + 0.5 or b.y1 > page.height + 0.5
    ]
