"The audit of the scores: spreads that give the win rate back, and pixels divided twice."

import itertools
import math

import numpy as np
import pytest

from balanceddpo.paper.audit_scores import (
    REPORTED,
    compare_with_reported,
    divided_view,
    effect_of_rescaling_twice,
    embedding_cosine,
    implied_spread,
)
from balanceddpo.paper.numbers import PAPER, SCORERS


def test_implied_spread_gives_the_win_rate_back():
    from statistics import NormalDist

    for first, second in (('BalancedDPO', 'SD1.5'), ('DiffusionDPO', 'SD1.5')):
        for row in implied_spread(first, second).dropna(subset=['spread']).itertuples():
            assert 100 * NormalDist().cdf(row.difference / row.spread) == pytest.approx(row.rate)
            assert not row.low > row.spread
            assert not row.high < row.spread
    # a lower mean and more wins: no normal difference does that
    assert np.isnan(implied_spread('DiffusionDPO').spread[3])


def test_reported_values_stand_beside_their_own_column_of_table_6():
    found = compare_with_reported()
    assert found.scorer.tolist() == [scorer for scorer, _, _ in REPORTED]
    for row in found.itertuples():
        k = SCORERS.index(row.scorer)
        mean, low, high, sd = (
            PAPER['table6'].rows[(name,)][k] for name in ('mean', 'min', 'max', 'std')
        )
        assert mean + row.apart * sd == pytest.approx(row.reported)
        assert row.inside == (low <= row.reported <= high)


def test_embedding_cosine_of_simulated_embeddings():
    rng = np.random.default_rng(0)
    width, n = 256, 3000
    for rho in (0.3, 0.9):
        common = rng.normal(size=width)
        x = math.sqrt(rho) * common / np.linalg.norm(common) + math.sqrt(1 - rho) * rng.normal(
            size=(n, width)
        ) / math.sqrt(width)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        head = rng.normal(size=width)
        head *= 18 / np.linalg.norm(head)
        assert embedding_cosine((x @ head).std(), 18, width) == pytest.approx(rho, abs=0.03)


def test_a_divided_view_sees_divided_pixels():
    import torch
    from PIL import Image

    from balanceddpo.scoring.pictures import ImageBatch, cropped_view

    mean, std = [0.48, 0.45, 0.40], [0.26, 0.27, 0.28]
    view = cropped_view(16, 16, mean, std)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype('uint8'))
    divided = divided_view(view, 255).pixels(ImageBatch([image]))[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 / 255
    assert torch.allclose(
        divided,
        (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None],
        atol=1e-6,
    )


def test_rescaling_takes_the_image_out_of_the_score():
    from balanceddpo.data.sources import read_pairs

    pairs = list(itertools.islice(read_pairs('icons'), 12))
    same, twice = (
        effect_of_rescaling_twice(pairs, ('icons:clip', 'icons:aesthetic'), f) for f in (1, 255)
    )
    assert np.allclose(same.left, 1, atol=1e-3)
    assert (same.agreement == 1).all()
    assert (twice.left_in_pairs < 0.01).all()
    # a caption still varies
    aesthetic, clip = twice.set_index('scorer').loc[['aesthetic', 'clip'], 'left']
    assert aesthetic < 0.05 < clip
