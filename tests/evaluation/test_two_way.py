"""Prompts and seeds both random: known variances, symmetries, and the bootstrap it contains."""

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import Bootstrap, bootstrap_interval
from balanceddpo.evaluation.two_way import two_way


def made(prompts=300, seeds=6, of_prompts=0.3, of_seeds=0.05, of_both=0.2, mean=0.1, seed=0):
    "Values whose three variances are known."
    draw = np.random.default_rng(seed)
    return (
        mean
        + of_prompts * draw.standard_normal((prompts, 1))
        + of_seeds * draw.standard_normal((1, seeds))
        + of_both * draw.standard_normal((prompts, seeds))
    )


def test_the_interval_has_the_width_of_both_variances():
    """By hand, Owen 2007: the plug-in variances of prompt means and of seed means, each divided by
    its number, add up (what is of both is in either, and once more)."""
    for sizes in (dict(of_seeds=0.0), dict(of_prompts=0.0), dict()):
        x = made(seeds=12, **sizes)
        rows, columns = x.mean(axis=1), x.mean(axis=0)
        rest = x - rows[:, None] - columns[None] + x.mean()
        error = (rows.var() / len(rows) + columns.var() / 12 + rest.var() / x.size) ** 0.5
        found = two_way(x)
        assert found.mean == pytest.approx(x.mean())
        assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_it_is_the_bootstrap_over_prompts_where_seeds_do_not_differ():
    x = np.repeat(made()[:, :1], 4, axis=1)
    found = two_way(x)
    assert (found.low, found.high) == pytest.approx(bootstrap_interval(x[:, 0]), abs=3e-3)


def test_it_covers_the_truth_about_as_often_as_it_says():
    "With 60 prompts and twelve seeds; the bootstrap over prompts alone misses half of the time."
    few = Bootstrap(resamples=400)
    found = [two_way(made(60, 12, 0.3, 0.2, 0.2, seed=k), few) for k in range(200)]
    covered = np.mean([f.low <= 0.1 <= f.high for f in found])
    assert 0.88 <= covered <= 0.99
    alone = [bootstrap_interval(made(60, 12, 0.05, 0.2, 0, seed=k).mean(1)) for k in range(200)]
    assert np.mean([low <= 0.1 <= high for low, high in alone]) < 0.5


def test_p_values_are_small_where_the_interval_is_away_from_zero():
    assert two_way(made(mean=0.3)).p < 0.05
    assert two_way(made(mean=0.0, of_seeds=0.2)).p > 0.05
    assert two_way(np.ones((4, 4))).p == pytest.approx(2 / 10_001)
    assert two_way(np.zeros((4, 4))).p == 1
    x = made()
    assert two_way(-x).p == two_way(x).p


def test_a_sign_a_scale_and_an_order_do_what_they_should():
    x = made()
    found, negative, larger = two_way(x), two_way(-x), two_way(5 * x)
    assert (negative.low, negative.high) == pytest.approx((-found.high, -found.low))
    assert (larger.mean, larger.low, larger.high) == pytest.approx([5 * v for v in found[:3]])
    assert two_way(x) == found


@pytest.mark.parametrize(
    'values, words',
    [
        (np.ones(5), 'two of each or more'),
        (np.ones((5, 1)), 'two of each or more'),
        (np.ones((1, 5)), 'two of each or more'),
        ([[1.0, np.nan], [0.0, 1.0]], 'no value for one of the seeds'),
    ],
)
def test_values_that_make_no_interval_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        two_way(values)
