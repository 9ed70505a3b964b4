"""Agreement: kappa against scikit-learn, identities of splits, equal scores."""

import numpy as np
import pytest

from balanceddpo.voting.agreement import agreement, cohen_kappa, equal_scores, vote_splits
from balanceddpo.voting.labels import label_pairs
from balanceddpo.voting.votes import votes
from made_scores import make_labels_0, make_scores, make_table


def test_kappa_against_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    x = make_scores(seed=5)
    v = votes(x)
    a = agreement(v)
    assert len(a) == 6
    for row in a.itertuples():
        both = (v[:, row.a] != 0) & (v[:, row.b] != 0)
        p, q = v[both, row.a], v[both, row.b]
        assert row.n == both.sum() < len(v)
        assert row.agreement == pytest.approx((p == q).mean())
        assert row.kappa == pytest.approx(cohen_kappa_score(p, q))
        assert 0 < row.kappa < 1


def test_kappa_at_its_ends():
    a = np.array([1, 1, -1, -1])
    assert cohen_kappa(a, a) == 1
    assert cohen_kappa(a, -a) == -1
    assert cohen_kappa(a, [1, -1, 1, -1]) == 0
    assert np.isnan(cohen_kappa([], []))
    assert np.isnan(cohen_kappa([1, 1], [1, 1]))


def test_mean_agreement_is_fixed_by_the_splits():
    "With all four voting: 6, 3 or 2 of the 6 pairs of scorers agree on a 4-0, 3-1 or 2-2 split."
    v = votes(make_scores(missing=0))
    share = vote_splits(v).set_index('split').share
    assert agreement(v).agreement.mean() == pytest.approx(
        share['4-0'] + share['3-1'] / 2 + share['2-2'] / 3
    )


def test_agreement_of_a_labels_table_names_its_voters():
    x = make_scores()
    a = agreement(label_pairs(make_table(x, make_labels_0(len(x)))))
    assert set(a.a) | set(a.b) == {'a', 'b', 'c', 'd', 'human', 'consensus'}
    assert len(a) == 15
    a = agreement(label_pairs(make_table(x)))
    assert 'human' not in set(a.a) | set(a.b)


def test_half_precision_ties_are_seen():
    rng = np.random.default_rng(0)
    x = 0.27 + 0.02 * rng.standard_normal((20000, 2, 1))
    full, half = (
        equal_scores(make_table(x.astype(t).astype(np.float32)))['a']
        for t in (np.float32, np.float16)
    )
    assert full < 1e-4 < 2e-3 < half
