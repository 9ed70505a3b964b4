"""The reference: equal at the start and after a refresh in every precision, frozen in between,
invisible to the policy, and state."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn
from torch.testing import assert_close

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import denoising_error, diffusion_dpo_loss, dpo_logits
from balanceddpo.training.reference import (
    AdapterReference,
    CopyReference,
    adapter_tensors,
    blend_,
    make_reference,
    refresh_due,
)
from random_networks import TINY, make_unet

LN2 = torch.tensor(math.log(2)).item()
torch.set_num_threads(1)


@pytest.fixture(scope='module')
def base():
    torch.manual_seed(0)
    return make_unet(TINY)


def full(base):
    return copy.deepcopy(base).train()


def lora(base, **settings):
    unet = copy.deepcopy(base).requires_grad_(False).train()
    torch.manual_seed(1)
    unet.add_adapter(
        LoraConfig(
            **{
                'r': 2,
                'lora_alpha': 4,
                'target_modules': ['to_q', 'to_k', 'to_v', 'to_out.0', 'conv1'],
                **settings,
            }
        )
    )
    return unet


KINDS = {'copy': (full, CopyReference), 'adapter': (lora, AdapterReference)}
both = pytest.mark.parametrize('make,kind', KINDS.values(), ids=KINDS)


def trained(policy):
    return {n: p for n, p in policy.named_parameters() if p.requires_grad}


def nudge(policy, size=0.05, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trained(policy).values():
            p += size * torch.randn(p.shape, generator=g)


G = torch.Generator().manual_seed(5)
NOISY, TEXT, EPS, T = (
    torch.randn(6, 4, 8, 8, generator=G),
    torch.randn(6, 5, 32, generator=G),
    torch.randn(6, 4, 8, 8, generator=G),
    torch.tensor([10, 500, 990]).repeat_interleave(2),
)


def run(model):
    return model(NOISY, T, TEXT).sample


def logits(policy, reference, beta=5000.0, dtype=torch.float32):
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        e, r = (denoising_error(p, EPS).view(-1, 2) for p in (run(policy), reference.predict(run)))
    return dpo_logits(e, r, beta)


# the schedule and the blend


def test_refresh_every_t_steps():
    assert [t for t in range(1, 13) if refresh_due(t, 4)] == [4, 8, 12]
    assert [t for t in range(1, 4) if refresh_due(t, 1)] == [1, 2, 3]
    assert not any(refresh_due(t, 0) for t in range(1, 200))


def test_blend_is_in_place_exact_at_1_and_inert_at_0():
    g = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(5, 3, generator=g), torch.randn(7, generator=g)] for _ in range(2))
    before = [t.clone() for t in a]
    where = [t.data_ptr() for t in a]
    blend_(a, b, 0)
    assert all(map(torch.equal, a, before))
    blend_(a, b, 0.3)
    [assert_close(t, 0.7 * x + 0.3 * y) for t, x, y in zip(a, before, b)]
    blend_(a, b, 1)
    assert all(map(torch.equal, a, b))
    assert [t.data_ptr() for t in a] == where
    for alpha in (-0.1, 1.1, float('nan')):
        with pytest.raises(InputError, match='alpha'):
            blend_(a, b, alpha)


# what both kinds promise


@both
@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.bfloat16, torch.float16], ids=['fp32', 'bf16', 'fp16']
)
def test_the_loss_is_exactly_ln_2_at_the_start_and_after_a_refresh(base, make, kind, dtype):
    policy = make(base)
    nudge(policy)
    reference = kind(policy)
    for refreshed in (False, True):
        x = logits(policy, reference, dtype=dtype)
        assert x.dtype == torch.float32
        assert (x == 0).all()
        assert (diffusion_dpo_loss(x, torch.ones(3), torch.zeros(3)) == LN2).all()
        if not refreshed:
            nudge(policy, seed=1)
            assert (logits(policy, reference, dtype=dtype).abs() > 1e-2).all()
            reference.refresh()


@both
def test_the_reference_stays_until_it_is_refreshed_and_owns_its_memory(base, make, kind):
    policy = make(base)
    nudge(policy)
    reference = kind(policy)
    start = run(policy).detach()
    where = {n: t.data_ptr() for n, t in reference.tensors().items()}
    assert not set(where.values()) & {p.data_ptr() for p in reference.policy_tensors().values()}
    nudge(policy, seed=1)
    moved = run(policy).detach()
    assert torch.equal(reference.predict(run), start)
    assert not torch.equal(moved, start)
    reference.refresh()
    assert torch.equal(reference.predict(run), moved)
    nudge(policy, seed=2)
    assert torch.equal(reference.predict(run), moved)
    assert {n: t.data_ptr() for n, t in reference.tensors().items()} == where


@both
def test_the_policy_does_not_notice(base, make, kind):
    policy = make(base)
    nudge(policy)
    before = run(policy).detach()
    names = list(trained(policy))
    weights = {n: p.clone() for n, p in trained(policy).items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    # no global random number is used up
    reference = kind(policy, keep_initial=True)
    assert torch.equal(torch.rand(3), expected)
    prediction = reference.predict(run)
    reference.distance()
    reference.refresh()
    assert not prediction.requires_grad
    assert list(trained(policy)) == names
    assert all(torch.equal(p, weights[n]) for n, p in trained(policy).items())
    assert torch.equal(run(policy), before)
    assert run(policy).requires_grad
    assert policy.training
    assert len(reference.tensors()) == len(names)
    assert not any(p.requires_grad or p.grad is not None for p in reference.tensors().values())


@both
@pytest.mark.parametrize('checkpointing', [False, True])
def test_predicting_between_forward_and_backward_leaves_the_gradient_alone(
    base, make, kind, checkpointing
):
    policy = make(base)
    nudge(policy)
    reference = kind(policy)
    nudge(policy, seed=1)
    if checkpointing:
        policy.enable_gradient_checkpointing()

    def gradients(between):
        e = denoising_error(run(policy), EPS)
        between()
        return torch.autograd.grad(e.mean(), list(trained(policy).values()))

    alone, beside = gradients(lambda: None), gradients(lambda: reference.predict(run))
    assert all(map(torch.equal, alone, beside))
    assert sum(g.abs().sum() for g in alone) > 0


@both
def test_an_error_inside_leaves_everything_as_it_was(base, make, kind):
    policy = make(base)
    nudge(policy)
    reference = kind(policy)
    nudge(policy, seed=1)
    before = run(policy)
    names = list(trained(policy))

    def fail(model):
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        reference.predict(fail)
    assert torch.is_grad_enabled()
    assert torch.equal(run(policy), before)
    assert list(trained(policy)) == names


@both
def test_soft_refreshes_are_the_recurrence(base, make, kind):
    policy = make(base)
    reference = kind(policy)
    expected = {n: t.clone() for n, t in reference.state_dict().items()}
    for i in range(3):
        nudge(policy, seed=i)
        reference.refresh(0.6)
        expected = {n: 0.4 * t + 0.6 * reference.policy_tensors()[n] for n, t in expected.items()}
    for n, t in reference.state_dict().items():
        assert_close(t, expected[n].detach())


@both
def test_a_resumed_reference_is_the_one_that_never_stopped(base, make, kind):
    policy = make(base)
    reference = kind(policy, keep_initial=True)
    nudge(policy)
    reference.refresh()
    nudge(policy, seed=1)
    state, weights = (
        copy.deepcopy(reference.state_dict()),
        {n: p.clone() for n, p in trained(policy).items()},
    )
    # from the base model, before anything is loaded
    policy_2 = make(base)
    reference_2 = kind(policy_2, keep_initial=True)
    where = [t.data_ptr() for t in reference_2.tensors().values()]
    with torch.no_grad():
        [p.copy_(weights[n]) for n, p in trained(policy_2).items()]
    # files have an order of their own
    reference_2.load_state_dict({n: state[n] for n in sorted(state, reverse=True)})
    assert torch.equal(logits(policy, reference), logits(policy_2, reference_2))
    assert [t.data_ptr() for t in reference_2.tensors().values()] == where
    assert reference.distance() == reference_2.distance() > 0
    assert reference.distance('initial') == reference_2.distance('initial') > reference.distance()
    # the state was copied
    state[next(iter(state))].zero_()
    assert torch.equal(logits(policy, reference), logits(policy_2, reference_2))


@both
def test_a_state_that_does_not_fit_is_refused_by_name(base, make, kind):
    reference = kind(make(base))
    state = dict(reference.state_dict())
    name = sorted(state)[3]
    before = reference.predict(run)
    for bad, match in (
        ({n: t for n, t in state.items() if n != name}, 'has no tensor'),
        (state | {'zzz': torch.zeros(1)}, "unexpected tensor 'zzz'"),
        (state | {name: torch.zeros(1, 1)}, 'as'),
    ):
        with pytest.raises(InputError, match=match):
            reference.load_state_dict(bad)
    assert torch.equal(reference.predict(run), before)


@both
def test_distance_to_the_start_needs_to_be_asked_for(base, make, kind):
    policy = make(base)
    reference = kind(policy)
    assert reference.distance() == 0
    with pytest.raises(InputError, match='keep_initial'):
        reference.distance('initial')


# distances by hand


def test_distance_of_a_full_copy_by_numpy(base):
    policy = full(base)
    reference = CopyReference(policy, keep_initial=True)
    nudge(policy)
    a, b = (
        np.concatenate([p.detach().numpy().ravel() for p in m.parameters()]).astype(float)
        for m in (policy, base)
    )
    expected = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert reference.distance() == pytest.approx(expected, rel=1e-5)
    reference.refresh(0.5)
    assert reference.distance() == pytest.approx(
        np.linalg.norm(a - b) / 2 / np.linalg.norm((a + b) / 2), rel=1e-5
    )
    assert reference.distance('initial') == pytest.approx(expected, rel=1e-5)


def test_distance_of_adapters_is_that_of_the_merged_weights(base):
    policy = lora(base)
    reference = AdapterReference(policy)
    nudge(policy)
    adapted, old = {}, {}
    for name in {n.rsplit('.lora_', 1)[0] for n in reference.policy_tensors()}:
        a, b = (reference.policy_tensors()[f'{name}.lora_{x}.weight'].detach() for x in 'AB')
        w = base.get_submodule(name).weight.detach()
        delta = 2 * (b.flatten(1) @ a.flatten(1)).view(w.shape)  # lora_alpha / r = 4 / 2
        adapted[name], old[name] = w + delta, w  # the reference still has B = 0
    assert any(w.ndim == 4 for w in old.values())
    assert any(w.ndim == 2 for w in old.values())
    expected = math.sqrt(
        sum((adapted[n] - old[n]).square().sum() for n in old)
        / sum(w.square().sum() for w in old.values())
    )
    assert reference.distance() == pytest.approx(expected, rel=1e-5)


# the adapter


def test_the_second_adapter_against_a_whole_second_network(base):
    """A copy of the network with its own LoRA is an independent implementation; the two trainings
    must agree bit for bit."""
    paths = []
    for kind in (AdapterReference, CopyReference):
        policy = lora(base)
        reference = kind(policy)
        optimizer = torch.optim.AdamW(trained(policy).values(), lr=0.01)
        seen = []
        for step in range(1, 7):
            x = logits(policy, reference, beta=200.0)
            loss = diffusion_dpo_loss(
                x, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
            ).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append((loss.item(), reference.predict(run)))
            if refresh_due(step, 3):
                reference.refresh()
        paths.append(seen)
    losses = [[loss for loss, _ in path] for path in paths]
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*paths))
    # it learns, and starts afresh
    assert losses[0][0] == losses[0][3] == pytest.approx(LN2, abs=1e-7)
    assert losses[0][2] < losses[0][1] < LN2
    assert losses[0][5] < LN2


@pytest.mark.parametrize(
    'settings',
    [
        dict(use_rslora=True, r=4),
        dict(init_lora_weights='gaussian'),
        dict(init_lora_weights='olora', target_modules=['to_q', 'to_v']),
        dict(rank_pattern={'to_q': 3}, alpha_pattern={'to_q': 1}),
        dict(use_dora=True, target_modules=['to_q', 'to_v']),
    ],
    ids=lambda s: next(iter(s)) + str(next(iter(s.values()))),
)
def test_other_kinds_of_lora_are_followed_exactly(base, settings):
    policy = lora(base, **settings)
    before = run(policy).detach()
    nudge(policy)
    reference = AdapterReference(policy)
    assert (logits(policy, reference) == 0).all()
    nudge(policy, seed=1)
    reference.refresh()
    assert (logits(policy, reference) == 0).all()
    # the base weights are as they were
    untouched = lora(base, **settings)
    AdapterReference(untouched)
    assert torch.equal(run(untouched), before)


def test_the_adapter_to_be_saved_is_the_policys_alone(base):
    policy = lora(base)
    before = get_peft_model_state_dict(policy, adapter_name='default')
    AdapterReference(policy, keep_initial=True)
    after = get_peft_model_state_dict(policy, adapter_name='default')
    assert before.keys() == after.keys()
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    assert set(policy.peft_config) == {'default', 'reference', 'reference_initial'}


def test_the_reference_takes_the_precision_of_the_policys_adapter(base):
    policy = lora(base)
    nn.Module.to(policy, torch.bfloat16)
    # a bf16 network under fp32 adapters, as LoRA is trained
    for p in trained(policy).values():
        p.data = p.data.float()
    reference = AdapterReference(policy)
    nudge(policy)
    reference.refresh()
    assert {t.dtype for t in reference.tensors().values()} == {torch.float32}
    assert (logits(policy, reference, dtype=torch.bfloat16) == 0).all()


def test_a_policy_that_cannot_have_an_adapter_reference_is_refused(base):
    with pytest.raises(InputError, match="no adapter 'default', only none"):
        AdapterReference(full(base))
    with pytest.raises(InputError, match="no adapter 'style', only default"):
        AdapterReference(lora(base), 'style')
    policy = lora(base)
    AdapterReference(policy)
    with pytest.raises(InputError, match='another name'):
        AdapterReference(policy)
    policy = lora(base)
    policy.conv_in.weight.requires_grad_(True)
    with pytest.raises(InputError, match='conv_in.weight is trained'):
        AdapterReference(policy)
    with pytest.raises(InputError, match='dropout 0.1'):
        AdapterReference(lora(base, lora_dropout=0.1))


def test_what_is_trained_in_an_adapter_stays_the_users_choice(base):
    policy = lora(base)
    for n, p in policy.named_parameters():
        p.requires_grad_('lora_B' in n)  # only the B are trained
    names = list(trained(policy))
    reference = AdapterReference(policy)
    seen = []
    reference.predict(lambda m: seen.append(list(trained(m))))
    assert list(trained(policy)) == seen[0] == names
    assert names
    nudge(policy)
    reference.refresh()
    assert (logits(policy, reference) == 0).all()


def test_a_refresh_within_one_autocast_is_seen(base):
    policy = lora(base)
    reference = AdapterReference(policy)
    nudge(policy)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        old = reference.predict(run)
        reference.refresh()
        new = reference.predict(run)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        expected = run(policy)
    assert torch.equal(new, expected)
    assert not torch.equal(old, new)


def test_another_name_for_the_policys_adapter(base):
    policy = copy.deepcopy(base).requires_grad_(False)
    policy.add_adapter(LoraConfig(r=2, target_modules=['to_q']), 'learner')
    reference = AdapterReference(policy, 'learner', 'teacher')
    nudge(policy)
    reference.refresh()
    assert (logits(policy, reference) == 0).all()
    assert policy.active_adapters() == ['learner']
    assert adapter_tensors(policy, 'teacher').keys() == adapter_tensors(policy, 'learner').keys()
    assert len(reference.tensors()) == len(trained(policy))


# the copy


def test_what_is_not_trained_is_shared_and_never_copied(base):
    policy = full(base).requires_grad_(False)
    policy.conv_out.requires_grad_(True)
    reference = CopyReference(policy)
    assert set(reference.tensors()) == {'conv_out.weight', 'conv_out.bias'}
    assert reference.model.conv_in.weight is policy.conv_in.weight
    nudge(policy)
    assert not torch.equal(run(policy), reference.predict(run))
    reference.refresh()
    assert (logits(policy, reference) == 0).all()


def test_a_copy_takes_no_gradients_along(base):
    policy = full(base)
    run(policy).mean().backward()
    reference = CopyReference(policy)
    assert all(p.grad is None for p in reference.model.parameters())
    assert policy.conv_in.weight.grad is not None


def test_a_policy_that_cannot_have_a_copy_is_refused(base):
    with pytest.raises(InputError, match='no parameter that is trained'):
        CopyReference(full(base).requires_grad_(False))
    with pytest.raises(InputError, match='1 has dropout 0.5'):
        CopyReference(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))


def test_the_kind_follows_the_policy(base):
    assert isinstance(make_reference(full(base)), CopyReference)
    assert isinstance(make_reference(lora(base)), AdapterReference)
    assert make_reference(lora(base), keep_initial=True).distance('initial') == 0


# --- the same product


class Transposed(torch.nn.Module):
    "A linear layer on a transposed view, as the projections of SD2.1's attention get one."

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32)

    def forward(self, x):
        return self.linear(x.flatten(2).transpose(1, 2))


def test_policy_and_reference_multiply_in_the_same_way(monkeypatch):
    """torch folds the batch of a transposed view into the product where the weight asks for a
    gradient: the reference's must ask too, and only while it predicts."""
    policy, seen = Transposed(), []
    reference = CopyReference(policy)
    x = torch.randn(4, 32, 2, 2)
    real = torch.nn.functional.linear

    def spy(x, weight, bias=None):
        seen.append((weight.requires_grad, torch.is_grad_enabled()))
        return real(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, 'linear', spy)
    theirs = reference.predict(lambda model: model(x))
    assert torch.equal(theirs, policy(x))
    assert seen == [(True, False), (True, True)]
    assert not theirs.requires_grad
    assert not any(w.requires_grad for w in reference.tensors().values())
