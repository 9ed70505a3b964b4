"""DDIM inversion: diffusers' own scheduler, a denoiser whose inversion is solvable by hand, and
latents that lie at the timestep they are used at."""

import math

import pytest
import torch
from torch.testing import assert_close

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import add_noise, training_target
from balanceddpo.losses.inversion import (
    INVERSIONS,
    Denoiser,
    ancestral_deviation,
    ddim_step,
    implied_noise,
    inversion_times,
    invert,
    noise_by_inversion,
)
from balanceddpo.losses.methods import LOSSES
from balanceddpo.losses.outputs import Outputs
from balanceddpo.losses.pair_losses import dpo, smpo

SD = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    clip_sample=False,
    set_alpha_to_one=True,
)
ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


def schedulers(**more):
    from balanceddpo.core.devices import ensure_torchvision

    ensure_torchvision()
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    return DDIMInverseScheduler(**SD, **more), DDIMScheduler(**SD, **more)


def predictor(seed=0):
    "A small nonlinear denoiser that hears the timestep."
    g = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(12, 12, generator=g) / 4 for _ in range(2))

    def predict(x, t, rows=None):
        flat = x.flatten(1)
        return torch.tanh(flat @ A + (t[:, None] / 1000) * (flat @ B)).view(x.shape)

    return predict


def denoiser(predict, kind='epsilon'):
    "With the schedule of Stable Diffusion."
    return Denoiser(predict, kind, ALPHAS)


def latents(n, seed=0):
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


# against diffusers


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
@pytest.mark.parametrize('steps, offset', [(10, 1), (5, 1), (10, 0), (50, 1)])
def test_inversion_on_the_grid_is_the_inverse_scheduler_of_diffusers(kind, steps, offset):
    inverse, _ = schedulers(prediction_type=kind, steps_offset=offset)
    inverse.set_timesteps(steps)
    predict, x0 = predictor(), latents(4)
    assert_close(inverse.alphas_cumprod, ALPHAS)
    x = x0
    for i, time in enumerate(inverse.timesteps):
        x = inverse.step(predict(x, time.repeat(4)), int(time), x).prev_sample
        if i in (0, 2, steps - 1):
            t = time.repeat(4)
            times = inversion_times(t, steps, offset=offset)
            assert times[:, 0].tolist() == inverse.timesteps[: i + 1].tolist()
            assert_close(invert(denoiser(predict, kind), x0, times), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
def test_a_step_towards_the_data_is_the_ddim_scheduler(kind):
    _, ddim = schedulers(prediction_type=kind, steps_offset=1)
    ddim.set_timesteps(10)
    x, prediction = latents(3), latents(3, 1)
    for time in ddim.timesteps[:-1].tolist():
        expected = ddim.step(prediction, time, x).prev_sample
        assert_close(
            ddim_step(kind, prediction, x, ALPHAS[[time] * 3], ALPHAS[[time - 100] * 3]),
            expected,
            rtol=1e-4,
            atol=1e-5,
        )


def test_renoise_at_each_step_as_the_public_code_of_smpo_with_the_inverse_scheduler():
    """predict, step, predict there, average, step again: on the grid, where landing and timestep
    agree."""
    inverse, _ = schedulers(steps_offset=1)
    inverse.set_timesteps(5)
    predict, x0 = predictor(), latents(2)
    x = x0
    for time in inverse.timesteps[:3]:
        t = time.repeat(2)
        first = predict(x, t)
        there = inverse.step(first, int(time), x).prev_sample
        x = inverse.step((first + predict(there, t)) / 2, int(time), x).prev_sample
    times = inversion_times(torch.tensor([401, 401]), 5)
    assert_close(invert(denoiser(predict), x0, times, 'each'), x, rtol=1e-4, atol=1e-5)


# by hand


def factors(levels, c, renoise):
    "x_t / x_0 of the denoiser eps = c x, in float64 and step by step."
    total, last = 1.0, None
    for a, b in zip(levels, levels[1:]):
        p = math.sqrt(b / a)
        q = math.sqrt(1 - b) - p * math.sqrt(1 - a)
        plain = p + q * c
        last = (total, p, q, plain)
        total *= p + q * c * (1 + plain) / 2 if renoise == 'each' else plain
    before, p, q, plain = last
    return before * (p + q * c * plain) if renoise == 'end' else total


@pytest.mark.parametrize('renoise', ['none', 'each', 'end'])
def test_a_linear_denoiser_by_hand(renoise):
    x0, t, c = latents(3), torch.tensor([450, 201, 990]), 0.7
    times = inversion_times(t, 5)
    x = invert(denoiser(lambda x, t, rows: c * x), x0, times, renoise)
    for i, column in enumerate(times.T.tolist()):
        levels = [1.0] + [
            ALPHAS[k].item() for j, k in enumerate(column) if j == 0 or k > column[j - 1]
        ]
        assert_close(x[i], x0[i] * factors(levels, c, renoise), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
def test_many_steps_follow_the_exact_path_of_normal_data(kind):
    "Data of variance v: x_t has the variance a v + 1 - a, and the sampler's path only stretches."
    v, t = 0.5, torch.tensor([300, 700])

    def predict(x, t, rows):
        a = ALPHAS[t].view(-1, 1, 1, 1)
        noise = (1 - a).sqrt() / (a * v + 1 - a) * x
        if kind == 'epsilon':
            return noise
        return training_target(kind, (x - (1 - a).sqrt() * noise) / a.sqrt(), noise, ALPHAS[t])

    x0, a = latents(2), ALPHAS[t].view(-1, 1, 1, 1)
    exact = x0 * ((a * v + 1 - a) / v).sqrt()

    def errors(steps):
        x = invert(denoiser(predict, kind), x0, inversion_times(t, steps, spacing='even'))
        return (x / exact - 1).abs().amax((1, 2, 3))

    assert (errors(100) < 0.03).all()
    assert (errors(100) < errors(10) / 4).all()


def test_renoise_brings_sampling_closer_to_where_it_started():
    "The last step down from x_t, predicted at x_t, should give the latent before it."
    predict, x0, t = predictor(), latents(16), torch.full((16,), 801)
    times = inversion_times(t, 5)
    before = invert(denoiser(predict), x0, times[:-1])

    def gap(renoise):
        x = invert(denoiser(predict), x0, times, renoise)
        down = ddim_step('epsilon', predict(x, t), x, ALPHAS[times[-1]], ALPHAS[times[-2]])
        return (down - before).square().mean().item()

    assert gap('end') < gap('none') / 2


# the timestep


@pytest.mark.parametrize('spacing', ['scheduler', 'even'])
@pytest.mark.parametrize('steps', [1, 5, 9, 10])
def test_every_way_rises_and_ends_at_its_timestep(spacing, steps):
    t = torch.arange(1000)
    times = inversion_times(t, steps, spacing=spacing)
    assert torch.equal(times[-1], t)
    assert (times.diff(dim=0) >= 0).all()
    assert times.min() >= 0
    assert times.dtype == torch.int64
    assert len(times) == (steps if spacing == 'even' else steps + 1)
    if spacing == 'even':
        assert_close(
            times.double(),
            torch.arange(1, steps + 1)[:, None] * t.double() / steps,
            atol=0.5,
            rtol=0,
        )
    else:
        assert set(times[:-1, -1].tolist()) == {k * (1000 // steps) + 1 for k in range(steps)}


@pytest.mark.parametrize('name', INVERSIONS)
def test_the_latent_lies_at_the_timestep_it_is_used_at(name):
    """Pure noise predicted truly: a denoiser that knows the noise must give back exactly x_t at t,
    and the noise as the target."""
    x0, eps, t = latents(6), latents(6, 1), torch.tensor([450, 0, 1, 201, 777, 999])
    knowing = denoiser(lambda x, t, rows: eps[rows])
    x_t, target = noise_by_inversion(name, knowing, x0, t, draw=lambda k: torch.zeros_like(x0))
    assert_close(x_t, add_noise('epsilon', x0, eps, ALPHAS[t]), rtol=1e-4, atol=1e-4)
    assert_close(target, eps, rtol=1e-3, atol=2e-3)
    for wrong in (401, 601):  # where the public code's latent for 450 is
        off = implied_noise(
            add_noise('epsilon', x0[:1], eps[:1], ALPHAS[[wrong]]), x0[:1], ALPHAS[[450]]
        )
        assert (off - eps[:1]).abs().max() > 0.1


def test_the_target_of_a_v_model():
    x0, t = latents(3), torch.tensor([100, 500, 900])
    a = ALPHAS[t].view(-1, 1, 1, 1)
    x_t, v = noise_by_inversion('smpo_paper', denoiser(predictor(), 'v_prediction'), x0, t)
    noise = (x_t - a.sqrt() * x0) / (1 - a).sqrt()
    assert_close(v, a.sqrt() * noise - (1 - a).sqrt() * x0, rtol=1e-4, atol=1e-4)


# batches, noise, precision


@pytest.mark.parametrize('name', INVERSIONS)
def test_an_image_is_inverted_alike_in_any_company(name):
    model, x0, t = denoiser(predictor()), latents(5), torch.tensor([450, 3, 999, 201, 640])
    noise = [latents(5, 10 + k) for k in range(12)]

    def inverted(images):
        return noise_by_inversion(
            name, model, x0[images], t[images], draw=lambda k: noise[k][images]
        )

    whole = inverted(slice(None))
    for i in range(5):
        alone = inverted(slice(i, i + 1))
        for part, all_ in zip(alone, whole):
            assert_close(part[0], all_[i], rtol=1e-4, atol=1e-4)


def test_eta_adds_the_ancestral_deviation_of_diffusers():
    _, ddim = schedulers()
    for low, high in ((1, 101), (401, 450), (801, 999)):
        assert_close(
            ancestral_deviation(ALPHAS[low], ALPHAS[high]) ** 2,
            ddim._get_variance(high, low),
            rtol=1e-3,
            atol=1e-6,
        )
    x0, t, eps, e = latents(2), torch.tensor([201, 201]), latents(2, 1), latents(2, 2)
    knowing, times = denoiser(lambda x, t, rows: eps[rows]), inversion_times(t, 5)
    x = invert(knowing, x0, times, eta=0.1, draw=lambda k: e)
    plain = invert(knowing, x0, times)
    # the first step, from the clean image, has none
    assert_close(
        x - plain, 0.1 * ancestral_deviation(ALPHAS[1], ALPHAS[201]) * e, rtol=1e-3, atol=1e-5
    )


# by 1, 101, ..., 401; 1, 112, ..., 445 and once more; 1, 201, 401, each twice
@pytest.mark.parametrize('name, expected', [('inpo', 6), ('smpo_paper', 7), ('smpo_code', 8)])
def test_predictions_are_counted(name, expected):
    calls = []

    def predict(x, t, rows):
        calls.append(t.tolist())
        return 0 * x

    noise_by_inversion(name, denoiser(predict), latents(1), torch.tensor([450]))
    assert len(calls) == expected
    assert calls[-1] == [450]


@pytest.mark.parametrize('name', INVERSIONS)
def test_only_images_under_way_are_predicted_and_their_mean_is_the_cost(name):
    """One image for each timestep: their predictions together, each for its own image, are what the
    mean says."""
    x0, seen = torch.arange(1000.0)[:, None], []

    def predict(x, t, rows):
        # image i is on its way to timestep i
        assert torch.equal(rows.sort().values, rows)
        assert (t <= rows).all()
        seen.append(rows)
        return torch.zeros_like(x)

    t = torch.arange(1000)
    noise_by_inversion(name, denoiser(predict), x0, t, draw=lambda k: torch.zeros_like(x0))
    times = torch.cat(seen).bincount(minlength=1000)
    assert times.double().mean().item() == pytest.approx(INVERSIONS[name].passes())
    assert times[0] == times.min() >= 1
    # by 1, 201, 401, ..., each step twice
    if name == 'smpo_code':
        assert times[[0, 1, 2, 201, 450, 999]].tolist() == [2, 2, 4, 4, 8, 12]


def test_inversion_is_fp32_and_without_gradient():
    weight = torch.ones((), requires_grad=True)
    x0 = latents(2).half()
    half = denoiser(lambda x, t, rows: (weight * x).half())
    x_t, target = noise_by_inversion('smpo_code', half, x0, torch.tensor([300, 600]))
    assert x_t.dtype == target.dtype == torch.float32
    assert not x_t.requires_grad
    assert not target.requires_grad


def test_what_does_not_fit_is_refused():
    x0, t = latents(1), torch.tensor([450])
    model, flow = denoiser(predictor()), denoiser(predictor(), 'flow')
    for call, reason in (
        (lambda: noise_by_inversion('renoise', model, x0, t), 'unknown inversion.*smpo_code'),
        (lambda: noise_by_inversion('inpo', flow, x0, t), "not 'flow'"),
        (lambda: noise_by_inversion('inpo_code', model, x0, t), 'draw'),
        (lambda: invert(model, x0, t[None], 'always'), 'renoise'),
        (lambda: inversion_times(t, 0), 'steps'),
        (lambda: inversion_times(t, 5, spacing='trailing'), 'spacing'),
    ):
        with pytest.raises(InputError, match=reason):
            call()


# with the losses


def test_the_noise_of_the_methods_is_in_the_table():
    assert {loss.noise for loss in LOSSES.values()} <= {'random', *INVERSIONS}
    assert {name for name, loss in LOSSES.items() if loss.noise != 'random'} == {'smpo', 'inpo'}


def test_smpo_with_weight_1_and_plain_noise_is_dpo():
    """The whole chain: x_t and target made with drawn noise instead of inversion, then the two
    losses."""
    x0, eps, t = (
        latents(8),
        latents(4, 1).repeat_interleave(2, 0),
        torch.tensor([5, 300, 640, 990]).repeat_interleave(2),
    )
    noisy = add_noise('epsilon', x0, eps, ALPHAS[t])
    policy, reference = predictor(1), predictor(2)
    pairs = [
        v.view(4, 2, 3, 2, 2)
        for v in (policy(noisy, t), reference(noisy, t), implied_noise(noisy, x0, ALPHAS[t]))
    ]
    outputs = Outputs(*pairs, torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2))
    assert_close(pairs[2], eps.view(4, 2, 3, 2, 2), rtol=1e-3, atol=2e-3)
    assert_close(smpo(outputs, 5.0, sensitivity=1.0), dpo(outputs, 5.0))
