"The sign test against all sequences of a coin, and Holm's correction against closed testing."

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.significance import holm, sign_test, with_p_values
from balanceddpo.evaluation.win_rates import compare, score_table


def test_sign_test_counts_coins():
    "Against all 2^n sequences of a fair coin: the share at least as one-sided."
    for n in range(1, 9):
        heads = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        for k in range(n + 1):
            as_far = sum(abs(h - n / 2) >= abs(k - n / 2) for h in heads) / 2**n
            assert sign_test(k, n - k) == pytest.approx(as_far), (k, n)


def test_sign_test_is_symmetric_and_takes_arrays():
    wins, losses = np.array([3, 0, 60]), np.array([9, 0, 40])
    p = sign_test(wins, losses)
    assert p.shape == (3,)
    assert p == pytest.approx(sign_test(losses, wins))
    assert p[1] == 1
    assert isinstance(sign_test(3, 9), float)


def closed_testing(p):
    """Holm's definition behind the definition: a claim stands if every set of claims that holds it
    is rejected by Bonferroni; the corrected p is the worst set's."""
    sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r)]
    return [
        min(1, max(len(s) * min(p[j] for j in s) for s in sets if i in s)) for i in range(len(p))
    ]


def test_holm_is_closed_testing():
    rng = np.random.default_rng(0)
    for m in (1, 2, 5, 7):
        for _ in range(5):
            p = rng.random(m) ** 3
            p[: m // 3] = p[0]  # some equal ones
            assert holm(p) == pytest.approx(closed_testing(p))


def test_holm_keeps_the_order_of_its_input_and_leaves_nan():
    p = np.array([0.2, np.nan, 0.001, 0.04])
    shuffled = [3, 1, 0, 2]
    assert holm(p)[shuffled] == pytest.approx(holm(p[shuffled]), nan_ok=True)
    assert np.isnan(holm(p)[1])
    assert holm(p)[2] == pytest.approx(0.003)
    assert holm([]).tolist() == []
    with pytest.raises(InputError):
        holm([0.1, 1.1])


def test_holm_bounds_the_chance_of_any_false_claim():
    """Twenty true nulls, independent: alone, one falls below .05 in 64 of 100 cases; corrected, in
    at most 5."""
    p = np.random.default_rng(0).random((4000, 20))
    assert (p < 0.05).any(1).mean() == pytest.approx(1 - 0.95**20, abs=0.03)
    assert np.mean([(holm(row) < 0.05).any() for row in p]) <= 0.05 + 3 * math.sqrt(
        0.05 * 0.95 / 4000
    )


def models(**scores):
    return pd.concat(
        [score_table(name, {'hps': np.array(x, float)[:, None]}) for name, x in scores.items()]
    )


def test_p_values_of_a_table_leave_ties_out():
    rates = with_p_values(
        compare(models(a=[1, 1, 1, 1, 1, 1, 2], b=[0, 0, 0, 0, 0, 9, 2]), [('a', 'b')], ['hps'])
    )
    assert rates.p.item() == pytest.approx(2 * (1 + 6) / 2**6)  # 5 wins, 1 loss, 1 tie
    assert rates.p_holm.item() == rates.p.item()
