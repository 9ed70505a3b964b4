"""The rivals' losses: plain Python maths pair by pair, identities, closed-form gradients, and the
defects of public code that must not be here."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import (
    convert_beta,
    denoising_error,
    diffusion_dpo_loss,
    dpo_logits,
    log_snr,
    loss_report,
)
from balanceddpo.losses.methods import LOSSES, choose_loss
from balanceddpo.losses.outputs import Outputs, pair_logits
from balanceddpo.losses.pair_losses import (
    capo,
    dmpo,
    dpo,
    dspo,
    hinge,
    ipo,
    kl_estimate,
    kto,
    loser_scale,
    mapo,
    safeguarded,
    sft,
    smpo,
)

LN2 = torch.tensor(math.log(2)).item()
WITH_REFERENCE = [name for name, loss in LOSSES.items() if loss.needs_reference]
SAFEGUARDED = [name for name in LOSSES if name.endswith('_safeguarded')]
# a beta under which these random pairs have logits of order 1
MODERATE = dict.fromkeys(LOSSES, 4.0) | dict(mapo=0.3, dspo=0.2, dspo_safeguarded=0.2)


def signed_weights(s):
    return torch.stack([(1 + s) / 2, (1 - s) / 2], 1)


def make(n=24, seed=0, shape=(4, 3, 2), weights=None, grad=False, convention='mean', spread=0.5):
    """n random pairs: a target, a reference near it and a policy near that; labels of every kind,
    ties among them."""
    g = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn((n, 2, *shape), generator=g)

    target = noise()
    reference = target + 0.8 * noise()
    policy = reference + spread * noise()
    if weights is None:
        kinds = torch.tensor(
            [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.75, 0.25], [0.3, 0.7], [0.5, 0.5]]
        )
        weights = kinds[torch.arange(n) % len(kinds)]
    return Outputs(
        policy.requires_grad_(grad),
        reference,
        target,
        weights,
        torch.linspace(-6, 6, n),
        convention,
    )


def of_errors(e, r, weights, **more):
    "Pairs of one-element latents with these errors."
    p, q = (torch.tensor(v, dtype=torch.float32).sqrt()[..., None] for v in (e, r))
    return Outputs(p, q, torch.zeros_like(p), torch.tensor(weights), **more)


def run(name, outputs, **changes):
    return choose_loss(name, outputs.convention, **(dict(beta=MODERATE[name]) | changes))(outputs)


def gradient(name, outputs, **changes):
    p = outputs.prediction.detach().clone().requires_grad_()
    run(name, replace(outputs, prediction=p), **changes)[0].sum().backward()
    return p.grad


# values: one pair at a time in plain Python


def sigma(z):
    return 1 / (1 + math.exp(-z))


def softplus(z):
    return math.log1p(math.exp(-abs(z))) + max(z, 0)


def kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def phi(e, s):
    return s * e / (math.exp(s * e) - 1)


def by_hand(name, pair, beta, kappa):
    """The loss of one pair in float64, from its arrays alone; `pair` is (prediction, reference,
    target, weights, log SNR)."""
    p, q, t, (w0, w1), snr = pair
    (e0, e1), (r0, r1) = (
        ((p - t) ** 2).reshape(2, -1).mean(1),
        ((q - t) ** 2).reshape(2, -1).mean(1),
    )
    x, s = -beta / 2 * ((e0 - e1) - (r0 - r1)), w0 - w1

    def dspo_of(i, z):
        return np.mean(((p[i] - t[i]) - beta * (1 - sigma(z)) * (p[i] - q[i])) ** 2)

    def kto_of(g, sign):
        return 1 - sigma(sign * beta * (g - kappa))

    return dict(
        dpo=lambda: w0 * softplus(-x) + w1 * softplus(x),
        inpo=lambda: w0 * softplus(-x) + w1 * softplus(x),
        ipo=lambda: w0 * (x - 1) ** 2 + w1 * (x + 1) ** 2,
        hinge=lambda: w0 * max(0, 1 - x) + w1 * max(0, 1 + x),
        capo=lambda: (w0 + w1 > 0) * sigma(1.5 - snr) * (s - x) ** 2,
        smpo=lambda: (w0 + w1 > 0) * softplus(-10 * s * x),
        dmpo=lambda: w0 * kl(sigma(x), 0.99) + w1 * kl(sigma(-x), 0.99),
        sft=lambda: w0 * e0 + w1 * e1,
        dspo=lambda: w0 * dspo_of(0, x) + w1 * dspo_of(1, -x),
        mapo=lambda: sum(
            w * (e - beta * math.log(sigma(1000 * (phi(e, 0.5) - phi(other, 0.5)))))
            for w, e, other in ((w0, e0, e1), (w1, e1, e0))
        ),
        kto=lambda: sum(
            w * (kto_of(r - e, 1) + kto_of(o - f, -1)) / 2
            for w, e, r, f, o in ((w0, e0, r0, e1, r1), (w1, e1, r1, e0, r0))
        ),
    )[name.removesuffix('_safeguarded')]()


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_against_plain_python(name):
    outputs = make(spread=0.1 if name == 'mapo' else 0.5)
    # margins of order 1 at T = 1000
    if name == 'mapo':
        outputs = replace(
            outputs, prediction=outputs.target + 0.1 * (outputs.prediction - outputs.target)
        )
    arrays = [
        v.double().numpy()
        for v in (
            outputs.prediction,
            outputs.reference_prediction,
            outputs.target,
            outputs.weights,
            outputs.log_snr,
        )
    ]
    labelled = arrays[3].sum(1) > 0
    gains = (
        (((arrays[1] - arrays[2]) ** 2) - ((arrays[0] - arrays[2]) ** 2))
        .reshape(len(labelled), -1)
        .mean(1)[labelled]
    )
    expected = [by_hand(name, pair, MODERATE[name], max(0, gains.mean())) for pair in zip(*arrays)]
    losses, logits = run(name, outputs)
    assert losses.shape == logits.shape == (24,)
    assert losses.dtype == logits.dtype == torch.float32
    assert_close(losses, torch.tensor(expected, dtype=torch.float32), rtol=2e-4, atol=2e-5)
    assert losses[outputs.weights.sum(1) > 0].std() > 0.01


def test_kl_of_kto_is_the_mean_gain_of_labelled_images_and_not_below_0():
    gains = [[0.03, 0.01], [0.5, 0.9], [0.06, -0.02]]
    outputs = of_errors(
        [[1 - g for g in row] for row in gains],
        [[1.0, 1.0]] * 3,
        [[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]],
    )
    assert_close(kl_estimate(outputs), torch.tensor(0.02))  # (.03 + .01 + .06 - .02) / 4
    worse = of_errors([[1.2, 1.1]], [[1.0, 1.0]], [[1.0, 0.0]])
    assert kl_estimate(worse) == 0
    assert kl_estimate(replace(worse, weights=torch.zeros(1, 2))) == 0
    assert_close(kto(outputs, 10.0, kl=0.02)[0], kto(outputs, 10.0)[0])


# what holds for all


@pytest.mark.parametrize('name', LOSSES)
def test_no_label_no_loss_no_gradient(name):
    outputs = make(weights=torch.zeros(24, 2), grad=True)
    losses, _ = run(name, outputs)
    losses.sum().backward()
    assert not losses.any()
    assert not outputs.prediction.grad.any()
    mixed = make()
    assert not run(name, mixed)[0][2::6].any()
    assert not gradient(name, mixed)[2::6].any()
    assert gradient(name, mixed)[0].any()


@pytest.mark.parametrize('name', LOSSES)
def test_swapping_a_pair_and_its_weights_changes_nothing(name):
    outputs = make()
    swapped = replace(
        outputs,
        **{
            k: getattr(outputs, k).flip(1)
            for k in ('prediction', 'reference_prediction', 'target', 'weights')
        },
    )
    (losses, logits), (again, turned) = run(name, outputs), run(name, swapped)
    assert_close(again, losses)
    assert_close(turned, -logits)
    assert_close(gradient(name, swapped), gradient(name, outputs).flip(1))


@pytest.mark.parametrize('name', [name for name, loss in LOSSES.items() if loss.per_pair])
def test_a_pair_has_the_same_loss_in_any_company(name):
    outputs = make(13)
    fields = ('prediction', 'reference_prediction', 'target', 'weights', 'log_snr')
    whole = run(name, outputs)
    for size in (1, 5):
        parts = [
            run(name, Outputs(*(getattr(outputs, k)[i : i + size] for k in fields)))
            for i in range(0, 13, size)
        ]
        for i in (0, 1):
            assert_close(torch.cat([part[i] for part in parts]), whole[i])
        grads = [
            gradient(name, Outputs(*(getattr(outputs, k)[i : i + size] for k in fields)))
            for i in range(0, 13, size)
        ]
        assert_close(torch.cat(grads), gradient(name, outputs))


def test_kto_alone_depends_on_its_company_and_not_when_told_the_kl():
    assert [name for name, loss in LOSSES.items() if not loss.per_pair] == ['kto']
    outputs = make()
    better = replace(
        outputs, prediction=outputs.target + 0.5 * (outputs.prediction - outputs.target)
    )
    singles = [
        Outputs(
            *(
                getattr(better, k)[i : i + 1]
                for k in ('prediction', 'reference_prediction', 'target', 'weights')
            )
        )
        for i in range(24)
    ]
    first = singles[0]
    assert (
        torch.cat([kto(one, 4.0)[0] for one in singles]) - kto(better, 4.0)[0]
    ).abs().max() > 0.005
    known = kl_estimate(better).item()
    assert known > 0
    assert_close(kto(first, 4.0, kl=known)[0][0], kto(better, 4.0)[0][0])
    assert_close(run('kto', better)[0], run('kto', better, kl=known)[0])
    # the unlabelled take no part in the estimate
    shifted = replace(
        better, weights=torch.where((torch.arange(24) < 12)[:, None], better.weights, 0.0)
    )
    half = Outputs(
        *(
            getattr(better, k)[:12]
            for k in ('prediction', 'reference_prediction', 'target', 'weights')
        )
    )
    assert_close(kto(shifted, 4.0)[0][:12], kto(half, 4.0)[0])


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_policy_equal_to_reference(name):
    outputs = make(weights=torch.tensor([[1.0, 0.0]] * 12 + [[0.0, 1.0]] * 12))
    losses, logits = run(name, replace(outputs, prediction=outputs.reference_prediction.clone()))
    assert (logits == 0).all()
    assert (
        loss_report(outputs.errors, outputs.errors, logits, *outputs.weights.unbind(1))[
            'implicit_accuracy'
        ]
        == 0.5
    )
    base = name.removesuffix('_safeguarded')
    if base in ('dpo', 'smpo', 'inpo'):
        assert (losses == LN2).all()
    elif base in ('ipo', 'hinge'):
        assert (losses == 1).all()
    elif base == 'capo':
        assert_close(losses, (1.5 - outputs.log_snr).sigmoid())
    elif base == 'dmpo':
        assert_close(losses, torch.full((24,), math.log(0.5) - 0.5 * math.log(0.99 * 0.01)))
    elif base == 'kto':
        assert (losses == 0.5).all()
    else:
        assert base == 'dspo'
        assert_close(
            losses,
            outputs.reference_errors.gather(1, outputs.weights.argmax(1, keepdim=True)).squeeze(1),
        )


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_predictions_are_fp32_and_exact(name, dtype):
    outputs = make()
    tensors = ('prediction', 'reference_prediction', 'target')
    half = replace(outputs, **{k: getattr(outputs, k).to(dtype) for k in tensors})
    full = replace(half, **{k: getattr(half, k).float() for k in tensors})
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses, logits = run(name, half)
    assert losses.dtype == logits.dtype == torch.float32
    assert_close(losses, run(name, full)[0], rtol=1e-5, atol=1e-6)
    assert_close(logits, run(name, full)[1], rtol=1e-5, atol=1e-6)
    assert gradient(name, half).dtype == dtype
    assert torch.isfinite(gradient(name, half)).all()


@pytest.mark.parametrize(
    'name',
    [
        name
        for name, loss in LOSSES.items()
        if 'sum' in loss.conventions and name not in ('sft', 'kto')
    ],
)
def test_mean_and_sum_are_one_loss_under_the_converted_beta(name):
    mean = make()
    numel = 4 * 3 * 2
    assert_close(
        run(name, replace(mean, convention='sum'), beta=convert_beta(4.0, numel, 'sum'))[0],
        run(name, mean, beta=4.0)[0],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_gradients_are_finite_far_out(name):
    outputs = make()
    far = replace(outputs, prediction=outputs.target + 30 * (outputs.prediction - outputs.target))
    losses, _ = run(name, far)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient(name, far)).all()
    perfect = replace(outputs, prediction=outputs.target.clone())
    assert torch.isfinite(run(name, perfect)[0]).all()
    assert torch.isfinite(gradient(name, perfect)).all()


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_the_reference_gets_no_gradient(name):
    outputs = make(grad=True)
    reference = outputs.reference_prediction.clone().requires_grad_()
    run(name, replace(outputs, reference_prediction=reference))[0].sum().backward()
    assert reference.grad is None
    assert outputs.prediction.grad.any()


@pytest.mark.parametrize('name', ['mapo', 'sft'])
def test_methods_without_a_reference_do_not_look_at_one(name):
    outputs = make()
    assert_close(run(name, replace(outputs, reference_prediction=None)), run(name, outputs))


@pytest.mark.parametrize('name', LOSSES)
def test_a_step_against_the_gradient_favours_the_winner(name):
    outputs = make(weights=torch.tensor([[1.0, 0.0]] * 12 + [[0.0, 1.0]] * 12), spread=0.02)
    step = gradient(name, outputs)
    moved = replace(
        outputs,
        prediction=outputs.prediction
        - 1e-2 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1),
    )
    won = outputs.signed * ((moved.errors - outputs.errors) @ torch.tensor([-1.0, 1.0]))
    assert (won > 0).all()


# identities


def test_dpo_is_the_loss_of_the_losses_module():
    outputs = make()
    x = dpo_logits(outputs.errors, outputs.reference_errors, 4.0)
    losses, logits = dpo(outputs, 4.0)
    assert torch.equal(logits, x)
    assert torch.equal(losses, diffusion_dpo_loss(x, *outputs.weights.unbind(1)))
    assert_close(
        outputs.errors,
        torch.stack(
            [denoising_error(outputs.prediction[:, i], outputs.target[:, i]) for i in (0, 1)], 1
        ),
    )


def test_capo_with_target_1_and_a_constant_weight_is_ipo():
    hard = make(weights=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]] * 8))
    assert_close(capo(hard, 4.0, weighting='constant'), ipo(hard, 4.0))


def test_ipo_of_shared_votes_has_the_gradient_of_capo():
    "w0 (x - 1)^2 + w1 (x + 1)^2 and (w0 - w1 - x)^2 differ by a constant where w0 + w1 = 1."
    s = torch.linspace(-1, 1, 24)
    outputs = make(weights=signed_weights(s))
    assert_close(gradient('ipo', outputs), gradient('capo', outputs, weighting='constant'))
    assert_close(ipo(outputs, 4.0)[0] - capo(outputs, 4.0, weighting='constant')[0], 1 - s**2)


def test_capo_weighs_noisy_timesteps_more():
    outputs = make()
    plain = capo(outputs, 4.0, weighting='constant')[0]
    assert_close(capo(outputs, 4.0, bias=0.3)[0], plain / (1 + torch.exp(outputs.log_snr - 0.3)))
    a = torch.tensor([0.9991, 0.5, 0.0047])
    assert_close(
        (1.5 - log_snr('epsilon', a)).sigmoid(),
        torch.tensor([sigma(1.5 - math.log(v / (1 - v))) for v in a.tolist()]),
    )
    for kind in ('epsilon', 'v_prediction'):
        assert_close(log_snr(kind, a), torch.log(a) - torch.log1p(-a))
    s = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert log_snr('flow', s).tolist() == [math.inf, pytest.approx(2 * math.log(3)), 0, -math.inf]
    with pytest.raises(InputError, match='kind'):
        log_snr('sample', a)
    with pytest.raises(InputError, match='signal-to-noise'):
        capo(replace(outputs, log_snr=None), 4.0)
    with pytest.raises(InputError, match='weighting'):
        capo(outputs, 4.0, weighting='min-snr')


def test_smpo_with_weight_1_is_dpo():
    hard = make(weights=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]] * 8))
    assert_close(smpo(hard, 4.0, sensitivity=1.0), dpo(hard, 4.0))
    # no 1/2 before beta
    assert_close(smpo(hard, 4.0, sensitivity=1.0, variant='paper'), dpo(hard, 8.0))
    with pytest.raises(InputError, match='variant'):
        smpo(hard, 4.0, variant='Paper')


def test_smpo_as_the_public_code_has_it_for_every_pair_of_a_batch():
    """-0.5 beta (2p - 1) 10 (model_diff - ref_diff), winner first, p from PickScore cosines; the
    public code takes p of element 0 for all."""
    g = torch.Generator().manual_seed(1)
    cosines = 0.19 + 0.03 * torch.rand(24, 2, generator=g)
    norm = (cosines - 0.11543526500463486) / (0.28201571106910706 - 0.11543526500463486)
    p = norm.softmax(1)
    outputs = make(weights=p)
    losses, _ = smpo(outputs, 20.0)
    for i in range(24):
        w, o = (0, 1) if cosines[i, 0] > cosines[i, 1] else (1, 0)  # the winner and the other
        e, r = outputs.errors[i], outputs.reference_errors[i]
        inside = -0.5 * 20 * (2 * p[i, w] - 1) * 10 * ((e[w] - e[o]) - (r[w] - r[o]))
        assert_close(losses[i], -torch.nn.functional.logsigmoid(inside), rtol=1e-3, atol=1e-5)
    assert_close(
        p[:, 0] - p[:, 1],
        torch.tanh((cosines[:, 0] - cosines[:, 1]) / 0.16658044606542343 / 2),
        atol=1e-5,
        rtol=1e-4,
    )


def test_diffusers_ipo_with_its_margin_is_ours_at_four_times_beta():
    "(h - 1/(2 beta'))^2: the diffusers script reads args.beta, which does not exist."
    outputs = make(weights=torch.tensor([[1.0, 0.0]] * 24))
    b = 1.3
    e, r = outputs.errors, outputs.reference_errors
    h = (r[:, 0] - r[:, 1]) - (e[:, 0] - e[:, 1])
    assert_close(ipo(outputs, 4 * b)[0], 4 * b**2 * (h - 1 / (2 * b)) ** 2)
    at_margin = of_errors([[0.1, 0.3]], [[0.2, 0.2]], [[1.0, 0.0]])  # h = .2 = 1 / (2 x 2.5)
    assert_close(ipo(at_margin, 10.0), (torch.zeros(1), torch.ones(1)), atol=1e-6, rtol=0)


def test_diffusers_hinge_is_ours_at_twice_beta():
    outputs = make(weights=torch.tensor([[1.0, 0.0]] * 24))
    e, r = outputs.errors, outputs.reference_errors
    assert_close(
        hinge(outputs, 8.0)[0], (1 - 4.0 * ((r[:, 0] - r[:, 1]) - (e[:, 0] - e[:, 1]))).relu()
    )


def test_dspo_without_beta_is_fine_tuning():
    outputs = make()
    assert_close(dspo(outputs, 0.0)[0], sft(outputs)[0])
    # at the launcher's beta too, nearly
    assert (dspo(outputs, 0.001)[0] - sft(outputs)[0]).abs().max() < 2e-3 * sft(outputs)[0].max()


def test_mapo_keeps_the_digits_that_the_public_code_loses():
    e = np.array([[1e-3, 1.1e-3], [2e-4, 1e-4]])
    outputs = of_errors(e.tolist(), e.tolist(), [[1.0, 0.0], [1.0, 0.0]])
    exact = [1000 * (0.5 * a / math.expm1(0.5 * a) - 0.5 * b / math.expm1(0.5 * b)) for a, b in e]
    assert_close(mapo(outputs, 1.0)[1], torch.tensor(exact, dtype=torch.float32), atol=3e-4, rtol=0)
    y = 0.5 * torch.tensor(e, dtype=torch.float32)
    naive = y / (y.exp() - 1)
    assert (1000 * (naive[:, 0] - naive[:, 1]) - torch.tensor(exact)).abs().max() > 3e-3


# gradients in closed form: (loss, d loss / d logit) at the logit x, image 0 winning with weight w0
# and image 1 with w1

SLOPES = dict(
    dpo=lambda x, w0, w1, snr: w1 * sigma(x) - w0 * sigma(-x),
    inpo=lambda x, w0, w1, snr: w1 * sigma(x) - w0 * sigma(-x),
    ipo=lambda x, w0, w1, snr: 2 * w0 * (x - 1) + 2 * w1 * (x + 1),
    hinge=lambda x, w0, w1, snr: -w0 * (x < 1) + w1 * (x > -1),
    capo=lambda x, w0, w1, snr: -2 * (w0 + w1 > 0) * sigma(1.5 - snr) * (w0 - w1 - x),
    smpo=lambda x, w0, w1, snr: -10 * (w0 - w1) * sigma(-10 * (w0 - w1) * x),
    dmpo=lambda x, w0, w1, snr: (
        sigma(x) * sigma(-x) * (w0 * (x - math.log(99)) + w1 * (x + math.log(99)))
    ),
)


@pytest.mark.parametrize('name', SLOPES)
def test_gradients_of_logit_losses_in_closed_form(name):
    outputs = make()
    x = pair_logits(outputs, 4.0).tolist()
    slopes = torch.tensor(
        [SLOPES[name](*v) for v in zip(x, *outputs.weights.T.tolist(), outputs.log_snr.tolist())]
    )
    d = 2 * (outputs.prediction - outputs.target) / 24  # of the mean of 24 squares
    assert_close(
        gradient(name, outputs),
        slopes.view(-1, 1, 1, 1, 1) * -2.0 * torch.stack([d[:, 0], -d[:, 1]], 1),
        rtol=1e-3,
        atol=1e-5,
    )


def test_gradient_of_mapo_in_closed_form():
    e = [[0.010, 0.012], [0.3, 0.2]]
    outputs = of_errors(e, e, [[1.0, 0.0], [0.25, 0.75]])
    errors = outputs.errors.clone().requires_grad_()

    class Given:  # the loss as a function of the errors
        weights = outputs.weights

    Given.errors = errors
    mapo(Given, 0.3)[0].sum().backward()

    def slope(e, s=0.5):
        y = s * e
        return s * (math.exp(y) - 1 - y * math.exp(y)) / (math.exp(y) - 1) ** 2

    for (e0, e1), (w0, w1), got in zip(e, outputs.weights.tolist(), errors.grad.tolist()):
        x = 1000 * (phi(e0, 0.5) - phi(e1, 0.5))
        pull = 0.3 * 1000 * (w1 * sigma(x) - w0 * sigma(-x))
        assert got == pytest.approx([w0 + pull * slope(e0), w1 - pull * slope(e1)], rel=2e-3)


def test_gradient_of_kto_in_closed_form():
    e, r = [[0.3, 0.5], [0.2, 0.9]], [[0.4, 0.45], [0.5, 0.8]]
    outputs = of_errors(e, r, [[1.0, 0.0], [0.25, 0.75]])
    kappa = (0.1 - 0.05 + 0.3 - 0.1) / 4
    got = gradient('kto', outputs)
    root = outputs.prediction
    for i, ((w0, w1), g) in enumerate(zip(outputs.weights.tolist(), got.flatten(1).tolist())):
        for image, w in ((0, w0 - w1), (1, w1 - w0)):
            z = 4 * (r[i][image] - e[i][image] - kappa)  # no gradient through kappa
            assert g[image] == pytest.approx(
                w / 2 * 4 * sigma(z) * sigma(-z) * 2 * root[i, image].item(), rel=1e-3
            )


def test_gradient_of_dspo_in_closed_form_runs_through_the_sigmoid():
    p, q, t, beta = (0.3, 0.5), (0.1, 0.4), (-0.2, 0.1), 0.9
    outputs = Outputs(
        *(torch.tensor(v).reshape(1, 2, 1) for v in (p, q, t)), torch.tensor([[1.0, 0.0]])
    )
    x = (
        -beta
        / 2
        * (((p[0] - t[0]) ** 2 - (p[1] - t[1]) ** 2) - ((q[0] - t[0]) ** 2 - (q[1] - t[1]) ** 2))
    )
    c = sigma(-x)
    # of c by (p_i - t_i): up for the winner, down for the loser
    residual = (p[0] - t[0]) - beta * c * (p[0] - q[0])
    slope = c * (1 - c) * beta
    expected = [
        2 * residual * (1 - beta * c - beta * (p[0] - q[0]) * slope * (p[0] - t[0])),
        2 * residual * beta * (p[0] - q[0]) * slope * (p[1] - t[1]),
    ]
    assert gradient('dspo', outputs, beta=beta).flatten().tolist() == pytest.approx(
        expected, rel=1e-4
    )
    assert dspo(outputs, beta)[0].item() == pytest.approx(residual**2, rel=1e-5)


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in SAFEGUARDED])
def test_gradients_against_finite_differences(name):
    "The gradient is that of the loss: nothing is detached but kto's kl, which is given here."
    outputs = make(
        4, shape=(3,), weights=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.3], [0.4, 0.6]])
    )
    if name == 'mapo':
        outputs = replace(
            outputs, prediction=outputs.target + 0.05 * (outputs.prediction - outputs.target)
        )
    changes = dict(kl=0.1) if name == 'kto' else {}
    g, h = gradient(name, outputs, **changes), 1e-2 if name not in ('mapo', 'smpo') else 2e-3
    for place in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (2, 1, 0), (3, 0, 1)):
        step = torch.zeros_like(outputs.prediction)
        step[place] = h
        up, down = (
            run(name, replace(outputs, prediction=outputs.prediction + k * step), **changes)[0]
            .sum()
            .item()
            for k in (1, -1)
        )
        assert (up - down) / (2 * h) == pytest.approx(g[place].item(), rel=2e-2, abs=2e-3)


# the safeguard


@pytest.mark.parametrize('name', SAFEGUARDED)
def test_the_safeguard_changes_gradients_and_no_values(name):
    outputs = make(240, shape=(3,))
    plain = name.removesuffix('_safeguarded')
    for a, b in zip(run(name, outputs), run(plain, outputs)):
        assert torch.equal(a, b)
    mu = LOSSES[name].parameters['mu'].default
    scale = loser_scale(outputs, mu)
    assert_close(gradient(name, outputs), scale.view(240, 2, 1) * gradient(plain, outputs))
    assert (scale < 1).any()
    assert (scale == 1).any()


def test_the_scale_against_a_loop():
    outputs = make()
    scale = loser_scale(outputs, 0.3)
    for i, (w0, w1) in enumerate(outputs.weights.tolist()):
        if w0 == w1:
            assert scale[i].tolist() == [1, 1]
            continue
        w = 0 if w0 > w1 else 1
        d = (outputs.prediction - outputs.target)[i].flatten(1).double().tolist()
        dot, own = sum(a * b for a, b in zip(*d)), sum(a * a for a in d[w])
        lam = min(1, max(0, 0.7 * own / dot)) if dot > 0 else 1
        assert scale[i, w] == 1
        assert scale[i, 1 - w].item() == pytest.approx(lam, rel=1e-4)
    assert (loser_scale(outputs, 1.0) >= 0).all()
    assert not loser_scale(outputs, 1.0).isnan().any()


def winner_change(method, outputs, **parameters):
    """To first order, how a step against each pair's gradient by a common shift of its two
    predictions changes its winner's error: float64 [n]."""
    shift = torch.zeros_like(outputs.prediction[:, :1]).requires_grad_()
    moved = replace(outputs, prediction=outputs.prediction + shift)
    step = -torch.autograd.grad(
        method(moved, 0.5, **parameters)[0].sum(), shift, retain_graph=True
    )[0]
    winner = moved.errors.gather(1, (outputs.weights[:, :1] < outputs.weights[:, 1:]).long())
    return (torch.autograd.grad(winner.sum(), shift)[0] * step).flatten(1).double().sum(1)


@pytest.mark.parametrize('loss', [dpo, dmpo])
@pytest.mark.parametrize('seed', range(5))
def test_the_winner_is_not_worsened_to_first_order(loss, seed):
    outputs = make(
        400,
        seed,
        shape=(3,),
        weights=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.2], [0.1, 0.9]]).repeat(100, 1),
    )
    outputs = (
        replace(outputs, weights=outputs.weights.round())
        if loss is dmpo
        else replace(outputs, weights=(outputs.weights > 0.5).float())
    )
    assert (winner_change(loss, outputs) > 1e-3).any(), 'without it some winners get worse'
    assert winner_change(safeguarded, outputs, loss=loss, mu=0.0).max() < 1e-5
    change = winner_change(safeguarded, outputs, loss=loss, mu=0.9)
    assert (change < 0).all()


def test_mu_is_the_share_of_the_winners_own_descent_that_is_kept():
    outputs = make(400, shape=(3,), weights=torch.tensor([[1.0, 0.0]] * 400))
    d = (outputs.prediction - outputs.target)[:, 0]
    # of the winner's own gradient: beta/2, sigmoid, mean of 3
    pull = (
        0.5
        * (-pair_logits(outputs, 0.5)).sigmoid()
        / 2
        * (2 / 3) ** 2
        * d.flatten(1).square().sum(1)
    )
    for mu in (0.2, 0.9):
        assert (winner_change(safeguarded, outputs, loss=dpo, mu=mu) <= -mu * pull + 1e-6).all()


def test_the_safeguard_of_the_public_code_is_ours_for_one_pair():
    """gA, gB: gradients of the winner's and the loser's mean squared error by their predictions; (1
    - mu) |gA|^2 / (gB . gA), clipped."""
    outputs = make(24, weights=torch.tensor([[1.0, 0.0]] * 24))
    for i in range(24):
        winner, loser = (outputs.prediction[i, k].clone().requires_grad_() for k in (0, 1))
        (gA,) = torch.autograd.grad((winner - outputs.target[i, 0]).square().mean(), winner)
        (gB,) = torch.autograd.grad((loser - outputs.target[i, 1]).square().mean(), loser)
        dot = (gA * gB).sum()
        lam = (0.1 * gA.square().sum() / dot).clamp(0, 1) if dot > 0 else torch.tensor(1.0)
        assert_close(
            loser_scale(outputs, 0.9)[i],
            torch.stack([torch.tensor(1.0), lam]),
            rtol=1e-4,
            atol=1e-6,
        )
