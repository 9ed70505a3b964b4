"The audit of the formulas: Adam and the gradient against torch, ties against the binomial."

import math

import numpy as np
import pytest

from balanceddpo.paper.audit_formulas import (
    adam_bound,
    adam_path,
    error_gap,
    gradient_factors,
    learning_rates,
    tie_readings,
)


def test_adam_path_is_torchs():
    import torch

    g = np.random.default_rng(0).normal(size=50)
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=1e-3, eps=1e-12)
    path = []
    for x in g:
        w.grad = torch.full_like(w, x)
        optimizer.step()
        path.append(w.item())
    assert adam_path(g, 1e-3, eps=1e-12) == pytest.approx(np.array(path), rel=1e-6)


def test_no_gradients_pass_the_bound_and_some_come_near_it():
    rng = np.random.default_rng(0)
    for g in (
        rng.normal(size=400),
        rng.standard_cauchy(400),
        np.exp(rng.normal(0, 5, 400)),
        np.r_[np.zeros(300), 1.0, np.zeros(50)],
        1.05 ** np.arange(400.0),
    ):
        assert np.abs(np.diff(adam_path(g, 1.0))).max() <= adam_bound()
    t = 2000
    last = np.abs(np.diff(adam_path((0.999 / 0.9) ** np.arange(float(t)), 1.0)))[-1]
    # but for the bias correction
    assert last / math.sqrt(1 - 0.999**t) == pytest.approx(adam_bound(), rel=1e-3)


def test_learning_rates_scale_as_the_batches():
    rates = learning_rates().set_index('reading')
    assert rates.moved.iloc[0] == pytest.approx(2e-5)
    assert rates.moved.iloc[3] / rates.moved.iloc[0] == pytest.approx(2048)
    assert (rates.bound / rates.moved).tolist() == pytest.approx([adam_bound()] * 4)


def test_error_gap_makes_the_loss_as_sure():
    import torch

    from balanceddpo.losses.diffusion_dpo import dpo_logits

    for beta, sure in ((2000, 0.9), (5000, 0.75), (1, 0.99)):
        gap = error_gap(beta, sure)
        logit = dpo_logits(
            torch.tensor([[0.1, 0.1 + gap]], dtype=torch.float64),
            torch.full((1, 2), 0.1, dtype=torch.float64),
            beta,
        )
        assert torch.sigmoid(logit).item() == pytest.approx(sure, abs=1e-3)


def test_ties_are_binomial():
    from scipy.stats import binom

    from balanceddpo.voting.votes import tie_probability

    for p in (0.5, 0.7, 0.95):
        zero, text = tie_readings(p).set_index('reading').to_numpy()
        assert zero == pytest.approx([binom.sf(2, 4, p), tie_probability(4, p), binom.cdf(1, 4, p)])
        assert text == pytest.approx([binom.sf(2, 4, p), 0, binom.cdf(2, 4, p)])


def test_gradient_factors_are_autograds():
    import torch

    from balanceddpo.losses.diffusion_dpo import diffusion_dpo_loss

    factors = gradient_factors([-3.0, -1, 0, 2])
    x, s = (
        torch.tensor(factors.x.to_numpy(), dtype=torch.float32, requires_grad=True),
        torch.tensor(factors.s.to_numpy()),
    )
    diffusion_dpo_loss(x, (s > 0).float(), (s < 0).float()).sum().backward()
    assert x.grad.numpy() == pytest.approx(factors.corrected.to_numpy(), abs=1e-6)
    assert factors.derivative.to_numpy() == pytest.approx(factors.corrected.to_numpy(), abs=1e-8)
    wrong = factors[(factors.printed - factors.corrected).abs() > 1e-9]
    assert set(wrong.s) == {-1}
    assert (wrong.x != 0).all()
    assert len(wrong) == 3
