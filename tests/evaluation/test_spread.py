"How far the images of a prompt spread: against pandas, scipy and a simulation with known parts."

import numpy as np
import pytest
from scipy.stats import bootstrap

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.scores import compare_scores
from balanceddpo.evaluation.spread import in_deviations, seed_spread, variance_within
from figure_checks import SCORERS, SETS, made_up_scores


def test_the_share_of_variance_within_prompts_is_found_again():
    """Prompts of s.d. 2, images of s.d. 1 around them: a share of 1/5, but for the finite sample;
    and its interval holds it about 95 times in 100."""
    draw, held = np.random.default_rng(0), []
    for seed in range(60):
        scores = draw.normal(0, 2, (150, 1)) + draw.normal(0, 1, (150, 4))
        share, low, high = variance_within(scores, resamples=300, seed=seed)
        assert low < share < high
        held.append(low <= 0.2 <= high)
    assert np.mean(held) > 0.85
    alike = draw.normal(size=(4000, 5))
    assert variance_within(alike, resamples=2)[0] == pytest.approx(1, abs=0.02)
    constant = np.repeat(draw.normal(size=(9, 1)), 3, axis=1)
    assert variance_within(constant, resamples=2)[0] == pytest.approx(0, abs=1e-12)


def test_seed_spread_is_what_pandas_says():
    scores = made_up_scores(sets=SETS[:1])
    a, b = (scores[scores.model == m] for m in ('BalancedDPO', 'base'))
    found = seed_spread(a, b, SCORERS).set_index('scorer')
    x, y = (t.groupby('prompt_id')[list(SCORERS)].std() for t in (a, b))
    assert np.allclose(found.spread_a, x.mean(), rtol=1e-6)
    assert np.allclose(found.difference, (x - y).mean(), atol=1e-6)
    for k in SCORERS:
        theirs = bootstrap(
            ((x - y)[k].to_numpy(),), np.mean, method='percentile', n_resamples=9999, rng=1
        ).confidence_interval
        assert np.allclose([found.low[k], found.high[k]], theirs, atol=0.02)


def test_differences_in_deviations_have_the_unit_of_their_own_set_and_scorer():
    scores = made_up_scores()
    scores.loc[scores.prompt_set == 'hpd', 'clip'] *= 10
    raw = compare_scores(scores, [('BalancedDPO', 'base')], SCORERS)
    units = in_deviations(raw, scores)
    for r, u in zip(raw.itertuples(), units.itertuples()):
        sd = (
            scores[(scores.model == 'base') & (scores.prompt_set == r.prompt_set)][r.scorer]
            .astype(float)
            .std()
        )
        assert np.allclose(
            [u.difference * sd, u.low * sd, u.high * sd], [r.difference, r.low, r.high]
        )
    with pytest.raises(InputError, match="'other'"):
        in_deviations(raw, scores, 'other')
