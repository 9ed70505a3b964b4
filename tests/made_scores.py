"""Made-up scores, the tables of scores they come in, and the plainest way to count votes."""

import math

import numpy as np
import pandas as pd


def make_scores(n=400, K=4, seed=0, missing=0.05):
    "Correlated scores on wildly different scales, some missing."
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, 2, 1)) + rng.standard_normal((n, 2, K))) * 10.0 ** rng.integers(
        -3, 3, K
    ) + rng.uniform(-5, 5, K)
    x[rng.random(x.shape) < missing] = np.nan
    return x.astype(np.float32)


def make_table(scores, label_0=None, names='abcdefgh'):
    n, _, K = scores.shape
    table = pd.DataFrame(
        {
            'pair_id': np.repeat([f'pair{i}' for i in range(n)], 2),
            'slot': np.tile([0, 1], n),
            'image_id': 'x',
            'prompt_id': 'y',
        }
    )
    if label_0 is not None:
        table['label_0'] = np.repeat(label_0, 2)
    return pd.concat([table, pd.DataFrame(scores.reshape(-1, K), columns=list(names[:K]))], axis=1)


def make_labels_0(n, seed=1):
    return np.random.default_rng(seed).choice([0.0, 0.5, 1.0, np.nan], n)


def loop_votes(scores):
    "Eq. 6 one pair and one scorer at a time."
    out = np.zeros((len(scores), scores.shape[2]), int)
    for i, pair in enumerate(scores):
        for k in range(scores.shape[2]):
            a, b = float(pair[0, k]), float(pair[1, k])
            if math.isfinite(a) and math.isfinite(b):
                out[i, k] = 1 if a >= b else -1
    return out
