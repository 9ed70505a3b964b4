"""The loss and its parts: identities, hand-written numpy, autograd, diffusers' own schedulers; the
draws: independence and statistics."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import (
    add_noise,
    convert_beta,
    denoising_error,
    diffusion_dpo_loss,
    dpo_gradient_weight,
    dpo_logits,
    draw_noise,
    draw_timesteps,
    draw_uniform,
    loss_report,
    merge_reports,
    training_target,
)
from balanceddpo.voting.labels import hard_weights, shared_weights
from balanceddpo.voting.votes import votes

LN2 = torch.tensor(math.log(2)).item()
PINNED_T, PINNED_N = [533, 566, 944], [-1.0027157, 0.592373, 1.538722]


def errors(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, generator=g) * 0.2 + 0.05, torch.rand(n, 2, generator=g) * 0.2 + 0.05


def labels(n=64, seed=1):
    return np.random.default_rng(seed).choice([-1, 0, 1], n)


def weights(s):
    return torch.from_numpy(hard_weights(s)).unbind(1)


def numpy_loss(e, r, s, beta):
    "Eq. 8, a pair at a time, in float64; a tie is left out."
    out = []
    for (e0, e1), (r0, r1), si in zip(np.float64(e), np.float64(r), s):
        x = -0.5 * beta * ((e0 - e1) - (r0 - r1))
        out.append(0.0 if si == 0 else math.log1p(math.exp(-abs(x))) + max(0.0, -si * x))
    return torch.tensor(out, dtype=torch.float32)


# the loss


def test_the_loss_against_numpy():
    (e, r), s = errors(), labels()
    assert_close(
        diffusion_dpo_loss(dpo_logits(e, r, 50.0), *weights(s)),
        numpy_loss(e, r, s, 50.0),
        rtol=1e-4,
        atol=1e-5,
    )
    assert {-1, 0, 1} == set(s.tolist())


def test_winner_first_diffusion_dpo_is_the_same_loss():
    "The DiffusionDPO code sorts winners first: mean errors, -0.5 beta, -logsigmoid."
    (e, r), s = errors(), np.where(labels() >= 0, 1, -1)
    order = torch.tensor([[0, 1] if si > 0 else [1, 0] for si in s])
    e_w, e_l = e.gather(1, order).unbind(1)
    r_w, r_l = r.gather(1, order).unbind(1)
    inside = -0.5 * 2000 * ((e_w - e_l) - (r_w - r_l))
    assert_close(
        diffusion_dpo_loss(dpo_logits(e, r, 2000), *weights(s)),
        -torch.nn.functional.logsigmoid(inside),
    )


def test_label_minus_one_is_the_pair_swapped_in_value_and_gradient():
    (e, r), s = errors(), labels()

    def run(e, s, flip):
        e = e.clone().requires_grad_()
        x = dpo_logits(e, r.flip(1) if flip else r, 100.0)
        loss = diffusion_dpo_loss(x, *weights(s))
        loss.sum().backward()
        return loss.detach(), e.grad

    loss, grad = run(e, s, False)
    swapped_loss, swapped_grad = run(e.flip(1), -s, True)
    assert torch.equal(loss, swapped_loss)
    assert torch.equal(grad, swapped_grad.flip(1))
    assert grad.abs().sum() > 0


def test_a_tie_has_no_loss_and_no_gradient():
    e, r = errors()
    e.requires_grad_()
    loss = diffusion_dpo_loss(dpo_logits(e, r, 5000.0), torch.zeros(64), torch.zeros(64))
    loss.sum().backward()
    assert not loss.any()
    assert not e.grad.any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_policy_equal_to_reference_is_ln_2(dtype):
    pred, target = torch.randn(32, 4, 8, 8).to(dtype), torch.randn(32, 4, 8, 8).to(dtype)
    e = denoising_error(pred, target).view(-1, 2)
    x = dpo_logits(e, e.clone(), 5000.0)
    w0, w1 = weights(np.array([1, -1] * 8))
    loss = diffusion_dpo_loss(x, w0, w1)
    assert x.dtype == loss.dtype == torch.float32
    assert (x == 0).all()
    assert (loss == LN2).all()
    assert loss_report(e, e, x, w0, w1)['implicit_accuracy'] == 0.5


def test_sum_of_losses_is_eq_10_scorer_by_scorer():
    (e, r), scores = errors(), np.random.default_rng(0).standard_normal((64, 2, 5))
    scores[::7, 0, 2] = np.nan
    x, v, w_k = dpo_logits(e, r, 50.0), votes(scores), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    expected = (
        sum(
            float(w)
            * torch.from_numpy(v[:, k] != 0)
            * -torch.nn.functional.logsigmoid(torch.from_numpy(v[:, k]) * x)
            for k, w in enumerate(w_k)
        )
        / w_k.sum()
    )
    assert_close(
        diffusion_dpo_loss(x, *torch.from_numpy(shared_weights(v, w_k)).unbind(1)), expected.float()
    )


def test_mean_and_sum_conventions_are_one_loss():
    g = torch.Generator().manual_seed(0)
    shape = (32, 4, 16, 16)
    numel = 4 * 16 * 16
    target, policy, reference = (torch.randn(shape, generator=g) for _ in range(3))
    policy = reference + 0.05 * policy
    x = {
        c: dpo_logits(
            *(denoising_error(p, target, c).view(-1, 2) for p in (policy, reference)), beta
        )
        for c, beta in (('mean', 500.0), ('sum', convert_beta(500.0, numel, 'sum')))
    }
    assert x['mean'].abs().max() > 1
    assert convert_beta(convert_beta(500.0, numel, 'sum'), numel, 'mean') == 500
    assert_close(x['mean'], x['sum'], atol=2e-3, rtol=1e-3)


def test_half_precision_predictions_give_fp32_errors():
    pred, target = torch.randn(8, 4, 16, 16), torch.randn(8, 4, 16, 16)
    for dtype in (torch.float16, torch.bfloat16):
        p, t = pred.to(dtype), target.to(dtype)
        exact = (p.double() - t.double()).square().mean((1, 2, 3))
        with torch.autocast('cpu', dtype=dtype):
            error = denoising_error(p, t)
        assert error.dtype == torch.float32
        assert_close(error.double(), exact, rtol=1e-6, atol=0)


def test_the_loss_stays_finite_far_out():
    x = torch.tensor([-1e6, 1e6], requires_grad=True)
    diffusion_dpo_loss(x, torch.ones(2), torch.zeros(2)).sum().backward()
    assert x.grad.tolist() == [-1, 0]


# the gradient


def test_gradient_weight_against_autograd_and_finite_differences():
    x = torch.linspace(-12, 12, 101, dtype=torch.float32).requires_grad_()
    g = torch.Generator().manual_seed(0)
    w0, w1 = torch.rand(101, generator=g), torch.rand(101, generator=g)
    diffusion_dpo_loss(x, w0, w1).sum().backward()
    assert_close(x.grad, dpo_gradient_weight(x.detach(), w0, w1))
    x64, h = np.linspace(-12, 12, 101), 1e-5

    def f(x):
        return w0.double().numpy() * np.logaddexp(0, -x) + w1.double().numpy() * np.logaddexp(0, x)

    np.testing.assert_allclose(
        dpo_gradient_weight(x.detach(), w0, w1), (f(x64 + h) - f(x64 - h)) / (2 * h), atol=1e-5
    )


@pytest.mark.parametrize('s', [1, -1])
def test_eq_9_with_the_label_inside_the_sigmoid_is_the_gradient(s):
    torch.manual_seed(0)
    beta = 20.0
    policy, reference = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    noisy, eps = torch.randn(2, 6), torch.randn(2, 6)
    with torch.no_grad():
        r = denoising_error(reference(noisy), eps)[None]

    def l_theta():
        "The logit at beta 1."
        return dpo_logits(denoising_error(policy(noisy), eps)[None], r, 1.0)

    grad_l = torch.autograd.grad(l_theta().sum(), policy.parameters())
    loss = diffusion_dpo_loss(beta * l_theta(), *weights(np.array([s]))).sum()
    grad = torch.autograd.grad(loss, policy.parameters())
    correct, printed = (-beta * s * torch.sigmoid(-beta * k * l_theta().detach()) for k in (s, 1))
    assert l_theta().abs() > 0.01
    for a, b in zip(grad, grad_l):
        assert_close(a, correct * b)
        assert torch.allclose(a, printed * b) == (s == 1)  # Eq. 9 as printed holds for s = 1 only


# targets


def test_targets_and_noise_against_the_schedulers():
    from balanceddpo.core.devices import ensure_torchvision

    ensure_torchvision()
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(6, 4, 8, 8, generator=g), torch.randn(6, 4, 8, 8, generator=g)
    ddpm = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear')
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    a = ddpm.alphas_cumprod[t]
    assert_close(add_noise('epsilon', x0, eps, a), ddpm.add_noise(x0, eps, t))
    assert_close(add_noise('v_prediction', x0, eps, a), ddpm.add_noise(x0, eps, t))
    assert_close(training_target('v_prediction', x0, eps, a), ddpm.get_velocity(x0, eps, t))
    assert torch.equal(training_target('epsilon', x0, eps), eps)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    i = torch.tensor([0, 10, 500, 700, 990, 999])
    noisy = add_noise('flow', x0, eps, flow.sigmas[i])
    assert_close(noisy, flow.scale_noise(x0, flow.timesteps[i], eps))
    # one straight step back
    assert_close(noisy - flow.sigmas[i].view(-1, 1, 1, 1) * training_target('flow', x0, eps), x0)


def test_targets_are_fp32_and_bad_kinds_refused():
    x = torch.randn(2, 4, 4).half()
    a = torch.tensor([0.5, 0.1])
    for kind in ('epsilon', 'v_prediction', 'flow'):
        assert (
            add_noise(kind, x, x, a).dtype == training_target(kind, x, x, a).dtype == torch.float32
        )
    pairs = torch.randn(3, 2, 4, 8, 8)  # [pair, image, ...]: one level a pair
    assert_close(
        add_noise('epsilon', pairs, pairs, torch.tensor([0.1, 0.5, 0.9]))[1, 0],
        add_noise('epsilon', pairs[1], pairs[1], torch.tensor([0.5, 0.5]))[0],
    )
    for call in (add_noise, training_target):
        with pytest.raises(InputError, match='unknown kind'):
            call('sample', x, x, a)
    with pytest.raises(InputError, match="'v_prediction' needs the noise level"):
        training_target('v_prediction', x, x)
    with pytest.raises(InputError, match='convention'):
        denoising_error(x, x, 'median')
    with pytest.raises(InputError, match='shapes'):
        denoising_error(x, x[:1])


# draws

IDS = [f'pair-{i:04}' for i in range(500)]


def test_noise_is_independent_of_the_batch_its_order_and_its_layout():
    whole = draw_noise(3, 10, IDS[:32], (4, 8, 8))
    parts = torch.cat([draw_noise(3, 10, IDS[i : i + 5], (4, 8, 8)) for i in range(0, 32, 5)])[:32]
    assert torch.equal(whole, parts)
    order = np.random.default_rng(0).permutation(32)
    assert torch.equal(draw_noise(3, 10, [IDS[i] for i in order], (4, 8, 8)), whole[order])
    latents = torch.zeros(32, 4, 8, 8).to(memory_format=torch.channels_last)
    assert torch.equal(
        (latents + draw_noise(3, 10, IDS[:32], latents.shape[1:])).contiguous(), whole
    )
    torch.manual_seed(99)
    np.random.seed(99)
    # nor of global seeds, nor of how the ids are held
    assert torch.equal(draw_noise(3, 10, np.array(IDS[:32]), (4, 8, 8)), whole)
    assert whole.dtype == torch.float32
    assert whole.is_contiguous()


def test_streams_seeds_steps_and_pairs_do_not_share_noise():
    draws = [
        draw_noise(*a, (64,))
        for a in [
            (0, 0, ['a']),
            (1, 0, ['a']),
            (0, 1, ['a']),
            (0, 0, ['b']),
            (0, 11, ['a']),
            (1, 1, ['a']),
        ]
    ] + [draw_noise(0, 0, ['a'], (64,), stream='posterior')]
    c = np.corrcoef(torch.cat(draws).numpy())
    assert np.abs(c - np.eye(len(draws))).max() < 0.5


def test_noise_is_standard_normal_and_neighbours_are_uncorrelated():
    x = draw_noise(0, 5, IDS, (512,)).numpy()
    assert abs(x.mean()) < 5 / x.size**0.5
    assert abs(x.var() - 1) < 5 * (2 / x.size) ** 0.5
    assert abs((x**3).mean()) < 0.03
    assert abs((x**4).mean() - 3) < 0.1
    assert x.mean(1).std() == pytest.approx(
        512**-0.5, rel=0.15
    )  # each pair's mean as it should vary
    following = draw_noise(0, 6, IDS, (512,)).numpy()
    # neighbouring ids, steps, elements
    for a, b in ((x[:-1], x[1:]), (x, following), (x[:, :-1], x[:, 1:])):
        assert abs((a * b).mean()) < 5 / a.size**0.5


def test_timesteps_are_uniform_from_0_to_the_last():
    t = draw_timesteps(0, 3, range(50_000), 1000)
    assert t.dtype == torch.int64
    assert t.min() == 0
    assert t.max() == 999
    chi2 = ((np.bincount(t, minlength=1000) - 50) ** 2 / 50).sum()
    assert abs(chi2 - 999) < 5 * (2 * 999) ** 0.5
    few = draw_timesteps(0, 0, range(4000), 4)
    assert np.abs(np.bincount(few, minlength=4) - 1000).max() < 5 * 750**0.5
    series = torch.stack(
        [draw_timesteps(0, step, ['one pair'], 1000)[0] for step in range(2000)]
    ).double()
    # a pair's timesteps over the steps
    assert abs(np.corrcoef(series[:-1], series[1:])[0, 1]) < 5 / 2000**0.5


def test_timesteps_keep_to_their_range_and_their_pair():
    assert torch.equal(
        draw_timesteps(0, 1, IDS[::-1], 1000).flip(0), draw_timesteps(0, 1, IDS, 1000)
    )
    t = draw_timesteps(0, 1, IDS, 1000, low=200, high=210)
    assert set(t.tolist()) == set(range(200, 210))
    middle = draw_timesteps(0, 1, range(20000), 1000, density='logit_normal').double() / 1000
    # 2 Phi(ln 3) - 1
    assert middle.min() >= 0
    assert middle.max() < 1
    assert ((middle > 0.25) & (middle < 0.75)).double().mean().item() == pytest.approx(
        0.728, abs=0.02
    )
    for bad in (dict(low=10, high=10), dict(low=-1), dict(high=1001)):
        with pytest.raises(InputError, match='timesteps'):
            draw_timesteps(0, 1, IDS, 1000, **bad)
    with pytest.raises(InputError, match='density'):
        draw_timesteps(0, 1, IDS, 1000, density='cosine')


def test_uniform_numbers():
    u = draw_uniform(0, 1, range(10000), 'empty prompt').numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs((u < 0.2).mean() - 0.2) < 0.02
    assert abs(np.corrcoef(u, draw_uniform(0, 1, range(10000), 'another'))[0, 1]) < 0.05


def test_draws_are_the_ones_of_before():
    "Pinned: a change here changes every run that is resumed or repeated."
    assert draw_timesteps(0, 1, ['a', 'b', 'c'], 1000).tolist() == PINNED_T
    assert_close(draw_noise(0, 1, ['a'], (3,)), torch.tensor([PINNED_N]), rtol=0, atol=1e-6)


# the report


def test_report_against_a_loop():
    (e, r), s = errors(), labels()
    x = dpo_logits(e, r, 100.0)
    x[:3] = 0
    report = {k: v.item() for k, v in loss_report(e, r, x, *weights(s)).items()}
    rows = [
        (si * xi, e_[w], e_[1 - w], e_[w] - r_[w], e_[1 - w] - r_[1 - w])
        for si, xi, e_, r_ in zip(s, x.tolist(), e.tolist(), r.tolist())
        if si
        for w in [0 if si > 0 else 1]
    ]
    m, we, le, ws, ls = np.mean(rows, 0)
    expected = dict(
        implicit_accuracy=np.mean([(a[0] > 0) + 0.5 * (a[0] == 0) for a in rows]),
        margin=m,
        winner_error=we,
        loser_error=le,
        winner_shift=ws,
        loser_shift=ls,
        decided=len(rows),
    )
    assert report == pytest.approx(expected, rel=1e-4)


def test_reports_of_parts_merge_to_the_report_of_the_whole():
    (e, r), s = errors(), labels()
    s[:10] = 0
    x = dpo_logits(e, r, 100.0)
    w0, w1 = weights(s)
    # the first has no decided pair
    parts = [
        loss_report(e[i], r[i], x[i], w0[i], w1[i])
        for i in (slice(0, 10), slice(10, 13), slice(13, 64))
    ]
    assert parts[0]['decided'] == 0
    assert all(torch.isfinite(v) for v in parts[0].values())
    assert_close(merge_reports(parts), loss_report(e, r, x, w0, w1))


def test_an_undecided_pair_with_bad_numbers_does_not_spoil_the_report():
    (e, r), s = errors(), labels()
    s[0] = 0
    e[0, 0] = float('nan')
    assert all(
        torch.isfinite(v) for v in loss_report(e, r, dpo_logits(e, r, 100.0), *weights(s)).values()
    )
    assert not any(
        v.requires_grad
        for v in loss_report(e.requires_grad_(), r, dpo_logits(e, r, 100.0), *weights(s)).values()
    )
