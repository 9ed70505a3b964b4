"""Flow DPO against a loop written by hand, and short runs of SD3, SD3.5 and FLUX; tiny random
models."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import draw_noise, draw_timesteps, draw_uniform
from balanceddpo.losses.methods import LOSSES
from balanceddpo.models.families import load_family, lora_targets, part_digests
from balanceddpo.training import loop as training
from balanceddpo.training.batches import micro_batch, plan
from balanceddpo.training.resume import run_inputs
from balanceddpo.training.run import LabelledPairs
from short_runs import LN2, begin, go, metrics, settings
from short_runs import SIZE as SMALL
from tiny_models import FLOW_KINDS, diffusers_pipeline

SIDE = SMALL // 8  # latents a side of the small images
FLUX_KINDS = ('flux', 'schnell')
# of the schedule, at the size of the small images
SHIFT = {
    'sd3': 3.0,
    'flux': float(np.exp(0.5 + 0.65 * ((SIDE // 2) ** 2 - 256) / 3840)),
    'schnell': 1.0,
}


# --- flow DPO by hand


def velocity_by_hand(kind, model, batch):
    "What a model predicts for the noisy latents of a batch, [n, 16, h, w]."
    if kind not in FLUX_KINDS:
        return model(
            hidden_states=batch.noisy,
            timestep=1000 * batch.sigma,
            encoder_hidden_states=batch.text,
            pooled_projections=batch.pooled,
        ).sample
    n, half = len(batch.noisy), SIDE // 2
    packed = model(
        hidden_states=FluxPipeline._pack_latents(batch.noisy, n, 16, SIDE, SIDE),
        timestep=batch.sigma,
        guidance=torch.full((n,), 3.5) if kind == 'flux' else None,
        encoder_hidden_states=batch.text,
        pooled_projections=batch.pooled,
        img_ids=FluxPipeline._prepare_latent_image_ids(0, half, half, 'cpu', torch.float32),
        txt_ids=torch.zeros(batch.text.shape[1], 3),
    ).sample
    return FluxPipeline._unpack_latents(packed, SMALL, SMALL, 8)


def latents_by_hand(inputs, config, step, chosen):
    "Latents [n, 16, h, w] of the winners of the chosen pairs, and of their losers."
    ids = [inputs.encoded.pair_ids[i] for i in chosen]
    moments = inputs.encoded.moments(chosen)
    z = draw_noise(config.seed, step, ids, (2, 16, SIDE, SIDE), 'latents')
    latents = 1.5 * (moments[:, :, :16] + torch.exp(moments[:, :, 16:] / 2) * z - 0.06)
    sides = inputs.labels.set_index('pair_id').s
    first_wins = torch.tensor([sides[p] == 1 for p in ids]).view(-1, 1, 1, 1)
    first, second = latents[:, 0], latents[:, 1]
    return torch.where(first_wins, first, second), torch.where(first_wins, second, first)


def text_by_hand(inputs, config, step, chosen):
    "Embeddings and pooled embeddings of the chosen pairs, some of them the empty prompt's."
    ids = [inputs.encoded.pair_ids[i] for i in chosen]
    given, empty = inputs.encoded.conditioning(chosen), inputs.encoded.empty_conditioning
    dropped = draw_uniform(config.seed, step, ids, 'empty prompt') < config.empty_prompt_rate
    return [
        torch.stack([empty[k][0] if d else e for d, e in zip(dropped, given[k])])
        for k in ('prompt_embeds', 'pooled')
    ]


def batch_by_hand(inputs, config, step, kind):
    "A step's noisy latents (winners, then losers), velocities, noise levels and text."
    decided = set(inputs.labels[inputs.labels.s != 0].pair_id)
    usable = [i for i, p in enumerate(inputs.encoded.pair_ids) if p in decided]
    chosen = [usable[i] for i in plan(len(usable), config.batch_size, config.seed, step)]
    ids = [inputs.encoded.pair_ids[i] for i in chosen]
    clean = torch.cat(latents_by_hand(inputs, config, step, chosen))
    noise = draw_noise(config.seed, step, ids, (16, SIDE, SIDE)).repeat(2, 1, 1, 1)
    u = (draw_timesteps(config.seed, step, ids, 1000, density='logit_normal') + 1) / 1000
    sigma = (SHIFT[kind] * u / (1 + (SHIFT[kind] - 1) * u)).repeat(2)
    s = sigma.view(-1, 1, 1, 1)
    text, pooled = text_by_hand(inputs, config, step, chosen)
    return SimpleNamespace(
        noisy=(1 - s) * clean + s * noise,
        velocity=noise - clean,
        sigma=sigma,
        text=torch.cat([text, text]),
        pooled=torch.cat([pooled, pooled]),
    )


def loss_by_hand(kind, policy, reference, batch, beta):
    "The mean of -log sigmoid over the pairs of a batch."

    def errors(model):
        apart = velocity_by_hand(kind, model, batch) - batch.velocity
        return apart.pow(2).mean([1, 2, 3]).chunk(2)

    model_w, model_l = errors(policy)
    with torch.no_grad():
        ref_w, ref_l = errors(reference)
    logits = -0.5 * beta * ((model_w - model_l) - (ref_w - ref_l))
    return -torch.nn.functional.logsigmoid(logits).mean()


def train_by_hand(inputs, config, steps, kind):
    """Flow DPO on all weights in plain torch, winner first: no code of the training loop or the
    families but the order of the pairs; returns the weights and the losses."""
    transformer = FluxTransformer2DModel if kind in FLUX_KINDS else SD3Transformer2DModel
    policy, reference = (
        transformer.from_pretrained(inputs.base, subfolder='transformer').eval() for _ in range(2)
    )
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        foreach=False,
    )
    losses = []
    for step in range(steps):
        batch = batch_by_hand(inputs, config, step, kind)
        loss = loss_by_hand(kind, policy, reference, batch, config.beta)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
        optimizer.step()
        if (step + 1) % config.refresh_every == 0:
            reference.load_state_dict(policy.state_dict())
    return policy.state_dict(), losses


@pytest.mark.parametrize('kind', ['sd3', 'flux', 'schnell'])
def test_four_steps_equal_a_loop_written_by_hand(made, tmp_path, kind):
    inputs = made(kind)
    changes = dict(
        max_steps=4, refresh_every=3, learning_rate=1e-4, empty_prompt_rate=0.5, micro_batch_size=3
    )
    family = load_family(inputs.base, device='cpu')
    before = {k: v.clone() for k, v in family.model.state_dict().items()}
    go(inputs, tmp_path / 'run', family=family, **changes)
    expected, losses = train_by_hand(inputs, settings(inputs, **changes), 4, kind)
    assert [r['loss'] for r in metrics(tmp_path / 'run')] == pytest.approx(losses, abs=1e-4)
    assert abs(losses[1] - LN2) > 1e-3
    assert losses[3] == LN2
    weights, ours, start = (
        torch.cat([state[k].flatten() for k in before])
        for state in (expected, family.model.state_dict(), before)
    )
    moved, apart = (weights - start).norm(), (weights - ours).norm()
    assert apart < 1e-5 * weights.norm()
    assert apart < 3e-3 * moved


# --- one pair, and every method


def test_the_loss_of_one_pair_by_hand(made, tmp_path):
    """A policy that predicts the velocity plus 1, a reference that predicts it exactly for image 0
    and plus 2 for image 1: errors 1, 1, 0, 4."""
    run = begin(made('sd3'), tmp_path, beta=1.0)
    batch = micro_batch(run, np.arange(1))
    sigma = run.family.sigmas(batch.noisy)[batch.timesteps].view(-1, 1, 1, 1)
    x0 = batch.noisy - sigma * batch.target  # x_t = x0 + sigma (eps - x0)
    # one noise, two images
    assert torch.allclose((x0 + batch.target)[0], (x0 + batch.target)[1], atol=1e-5)
    assert not torch.allclose(x0[0], x0[1])
    run.reference = SimpleNamespace(
        predict=lambda call: batch.target + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    )
    run.family = SimpleNamespace(predict=lambda *_: batch.target + 1)
    outputs = replace(training.outputs_of(run, batch), weights=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(outputs.errors, torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(outputs.reference_errors, torch.tensor([[0.0, 4.0]]))
    loss, logit = training.loss_of(run.config)(outputs)
    assert logit.item() == pytest.approx(-0.5 * ((1 - 1) - (0 - 4)))
    assert loss.item() == pytest.approx(np.log1p(np.exp(2)))
    torch.testing.assert_close(outputs.log_snr, 2 * ((1 - sigma) / sigma).log().flatten()[::2])


def test_every_method_that_needs_no_inversion_has_a_loss_and_the_others_are_refused(made, tmp_path):
    """One gradient each, with random noise. A timestep of pure noise (log signal-to-noise ratio
    -inf) does no harm."""
    inputs = made('sd35')
    run = begin(inputs, tmp_path / 'run')
    batch = micro_batch(run, np.arange(4))
    last = replace(batch, log_snr=run.family.log_snr(batch.noisy, torch.tensor([999, 999, 500, 0])))
    assert last.log_snr[:2].tolist() == [-np.inf] * 2
    with torch.no_grad():
        for p in run.parameters:
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    for method in LOSSES:
        run.config = replace(
            run.config, method=method, beta=None, noise='random', micro_batch_size=4
        )
        losses, logits = training.loss_of(run.config)(training.outputs_of(run, last))
        losses.sum().backward()
        assert losses.isfinite().all() and all(
            p.grad.isfinite().all() for p in run.parameters if p.grad is not None
        ), method
        assert sum(p.grad.abs().sum() for p in run.parameters if p.grad is not None) > 0, method
        run.optimizer.zero_grad()
    for method in ('smpo', 'inpo'):
        with pytest.raises(
            InputError,
            match=f'{method} gets its noise by DDIM inversion .*, which flow models have not',
        ):
            begin(inputs, tmp_path / method, method=method)
    with pytest.raises(InputError, match='is a flow model, whose last timestep is pure noise'):
        begin(inputs, tmp_path / 'zero', zero_terminal_snr=True)


# --- short runs


def loaded_in_diffusers(base, out, mode):
    "The library's pipeline with what a run has written: a whole folder, or a LoRA for `base`."
    if mode == 'full':
        return diffusers_pipeline(out)
    pipeline = diffusers_pipeline(base)
    pipeline.load_lora_weights(out, local_files_only=True)
    return pipeline


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize('kind', FLOW_KINDS)
def test_two_steps_of_every_family_load_in_plain_diffusers(made, tmp_path, kind, mode):
    inputs = made(kind)
    family = load_family(inputs.base, device='cpu')
    out = go(inputs, tmp_path / 'run', family=family, mode=mode, max_steps=2, refresh_every=1)
    rows = metrics(tmp_path / 'run')
    # before the first step, and after a refresh
    assert [r['loss'] for r in rows] == [LN2, LN2]
    assert all(r['grad_norm'] > 0 and r['refreshed'] for r in rows)
    assert all(r['margin'] == 0 and r['distance'] == 0 for r in rows)
    x = torch.randn(2, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    t, text = torch.tensor([10, 900]), inputs.encoded.conditioning([0, 1])

    def predict(model):
        with torch.no_grad():
            return family.predict(model, x, t, text, SMALL)

    untrained = predict(diffusers_pipeline(inputs.base).transformer)
    trained = predict(loaded_in_diffusers(inputs.base, out, mode).transformer)
    torch.testing.assert_close(trained, predict(family.model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(trained, untrained, rtol=1e-4, atol=1e-4)
    card = (out / 'README.md').read_text()
    if mode == 'lora':
        assert 'add_q_proj' in card
        assert 'load_lora_weights' in card
    else:
        assert 'from_pretrained("this folder")' in card
        new, old = part_digests(out), part_digests(inputs.base)
        assert {k for k in new if new[k] != old[k]} == {'transformer'}


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize('kind', ['sd35', 'flux'])
def test_bf16_has_one_numeric_path(made, tmp_path, kind, mode):
    out = go(
        made(kind), tmp_path / 'run', mode=mode, precision='bf16', max_steps=3, refresh_every=2
    )
    rows = metrics(out.parent)
    assert rows[0]['loss'] == rows[2]['loss'] == LN2 != rows[1]['loss']


@pytest.mark.parametrize('kind', ['sd3', 'flux'])
def test_the_reference_follows_by_its_alpha_and_gradients_can_be_recomputed(made, tmp_path, kind):
    runs = {
        on: go(
            made(kind),
            tmp_path / str(on),
            mode='lora',
            max_steps=4,
            refresh_every=2,
            refresh_alpha=0.5,
            gradient_checkpointing=on,
        ).parent
        for on in (False, True)
    }
    a, b = (metrics(folder) for folder in runs.values())
    assert [r['refreshed'] for r in a] == [False, True, False, True]
    assert 0 < a[1]['distance'] < a[0]['distance'] * 2
    for x, y in zip(a, b):
        assert x['loss'] == pytest.approx(y['loss'], abs=1e-5)


def test_the_family_names_the_layers_of_a_lora_and_the_key_of_a_run_says_them(made, tmp_path):
    for kind, targets in (
        ('sd15', ('to_q', 'to_k', 'to_v', 'to_out.0')),
        (
            'sd3',
            (
                'to_q',
                'to_k',
                'to_v',
                'to_out.0',
                'add_q_proj',
                'add_k_proj',
                'add_v_proj',
                'to_add_out',
            ),
        ),
    ):
        inputs = made(kind)
        config = settings(inputs, mode='lora')
        pairs = LabelledPairs(inputs.encoded, inputs.labels, inputs.label_config)
        keys = [
            run_inputs(c, pairs, inputs.base)
            for c in (config, replace(config, lora_targets=targets))
        ]
        assert keys[0] == keys[1]
        assert keys[0]['training']['lora_targets'] == targets == lora_targets(inputs.base)
        assert begin(inputs, tmp_path / kind, mode='lora').config.lora_targets == targets
    only = begin(made('sd3'), tmp_path / 'only', mode='lora', lora_targets=('to_add_out',))
    assert {
        n.split('.lora_')[0].split('.')[-1]
        for n, p in only.policy.named_parameters()
        if p.requires_grad
    } == {'to_add_out'}
