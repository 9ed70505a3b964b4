"""Training: Algorithm 1 against a loop written by hand, resume bit for bit after a kill, refusals,
and results that plain diffusers loads."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import draw_noise, draw_timesteps, draw_uniform
from balanceddpo.losses.methods import LOSSES
from balanceddpo.models.families import load_family
from balanceddpo.training import loop as training
from balanceddpo.training.checkpoints import checkpoints, newest_checkpoint
from balanceddpo.training.loop import (
    TrainConfig,
    micro_batch,
    micro_step,
    plan,
    start,
    trained_state,
)
from balanceddpo.voting.labels import LabelConfig, label_pairs
from short_runs import LN2, SIZE, N, begin, go, metrics, score_rows, settings
from tiny_models import KINDS


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != 'seconds')
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_equal_runs(a, b, but=()):
    "Same checkpoints bit for bit, same metrics, same result."
    x, y = newest_checkpoint(a / 'checkpoints'), newest_checkpoint(b / 'checkpoints')
    assert x.step == y.step
    for part in {'policy', 'reference', 'optimizer', 'random', 'progress'} - set(but):
        assert same(x.load(part), y.load(part)), part
    assert metrics(a) == metrics(b)
    # a LoRA file's header has no fixed order
    for file in (a / 'model').rglob('*.safetensors'):
        assert same(load_file(file), load_file(b / file.relative_to(a)))


# --- the loop, written a second time


def by_hand(inputs, config, steps):
    """Diffusion-DPO as the public script orders it, winner first: plain torch, no code of
    training.py but the order of pairs."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    policy = UNet2DConditionModel.from_pretrained(inputs.base, subfolder='unet')
    policy.eval()
    reference = UNet2DConditionModel.from_pretrained(inputs.base, subfolder='unet')
    reference.eval()
    scheduler = DDPMScheduler.from_pretrained(inputs.base, subfolder='scheduler')
    scale = json.loads((inputs.base / 'vae' / 'config.json').read_text())['scaling_factor']
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        foreach=False,
    )
    decided = inputs.labels[inputs.labels.s != 0].set_index('pair_id').s
    usable = [i for i, p in enumerate(inputs.encoded.pair_ids) if p in decided.index]
    for step in range(steps):
        chosen = [usable[i] for i in plan(len(usable), config.batch_size, config.seed, step)]
        ids = [inputs.encoded.pair_ids[i] for i in chosen]
        moments, text = (
            inputs.encoded.moments(chosen),
            inputs.encoded.conditioning(chosen)['prompt_embeds'],
        )
        z = draw_noise(config.seed, step, ids, (2, 4, SIZE // 8, SIZE // 8), 'latents')
        latents = scale * (moments[:, :, :4] + torch.exp(moments[:, :, 4:] / 2) * z)
        first_wins = torch.tensor([decided[p] == 1 for p in ids]).view(-1, 1, 1, 1)
        winner, loser = (
            torch.where(first_wins, latents[:, 0], latents[:, 1]),
            torch.where(first_wins, latents[:, 1], latents[:, 0]),
        )
        dropped = draw_uniform(config.seed, step, ids, 'empty prompt') < config.empty_prompt_rate
        text = torch.stack(
            [
                inputs.encoded.empty_conditioning['prompt_embeds'][0] if d else e
                for d, e in zip(dropped, text)
            ]
        )
        noise, t = (
            draw_noise(config.seed, step, ids, (4, SIZE // 8, SIZE // 8)).repeat(2, 1, 1, 1),
            draw_timesteps(config.seed, step, ids, 1000).repeat(2),
        )
        noisy, text = (
            scheduler.add_noise(torch.cat([winner, loser]), noise, t),
            text.repeat(2, 1, 1),
        )
        model_w, model_l = (policy(noisy, t, text).sample - noise).pow(2).mean([1, 2, 3]).chunk(2)
        with torch.no_grad():
            ref_w, ref_l = (
                (reference(noisy, t, text).sample - noise).pow(2).mean([1, 2, 3]).chunk(2)
            )
        loss = -torch.nn.functional.logsigmoid(
            -0.5 * config.beta * ((model_w - model_l) - (ref_w - ref_l))
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
        optimizer.step()
        if (step + 1) % config.refresh_every == 0:
            reference.load_state_dict(policy.state_dict())
    return policy.state_dict()


def test_three_steps_equal_a_loop_written_by_hand(made, tmp_path):
    inputs = made()
    changes = dict(
        max_steps=3, refresh_every=2, learning_rate=1e-4, empty_prompt_rate=0.5, micro_batch_size=3
    )
    family = load_family(inputs.base, device='cpu')
    before = {k: v.clone() for k, v in family.model.state_dict().items()}
    go(inputs, tmp_path / 'run', family=family, **changes)
    expected = by_hand(inputs, settings(inputs, **changes), 3)
    weights, ours, start_ = (
        torch.cat([state[k].flatten() for k in before])
        for state in (expected, family.model.state_dict(), before)
    )
    moved, apart = (weights - start_).norm(), (weights - ours).norm()
    # of the weights, and of what three steps moved them by
    assert apart < 1e-5 * weights.norm()
    assert apart < 1e-3 * moved


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_a_reference_refreshed_by_drift_is_never_left_further_behind(made, tmp_path, mode):
    """The policy walks as without a refresh until it is as far as the drift; then, and only then,
    the reference is with it and the next loss is ln 2."""
    inputs = made()
    changes = dict(mode=mode, max_steps=12, learning_rate=1e-4)
    go(inputs, tmp_path / 'never', **changes)
    free = [r['distance'] for r in metrics(tmp_path / 'never')]
    drift = (free[2] + free[3]) / 2
    assert free == sorted(free)
    out = go(inputs, tmp_path / 'drift', refresh_drift=drift, **changes)
    rows = metrics(tmp_path / 'drift')
    when = [r['step'] for r in rows if r['refreshed']]
    assert when[0] == 4
    assert 2 <= len(when) < 6
    assert [r['distance'] for r in rows[:3]] == free[:3]
    assert all(r['distance'] == 0 if r['refreshed'] else 0 < r['distance'] <= drift for r in rows)
    assert all(rows[step]['loss'] == LN2 for step in when if step < 12)
    assert (
        f'the reference refreshed once the policy was {drift:g} away'
        in (out / 'README.md').read_text()
    )


# --- families, full and LoRA, loaded in plain diffusers


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize('kind', KINDS)
def test_two_steps_of_every_family_load_in_plain_diffusers(made, tmp_path, kind, mode):
    from diffusers import DiffusionPipeline

    inputs = made(kind)
    family = load_family(inputs.base, device='cpu')
    out = go(inputs, tmp_path / 'run', family=family, mode=mode, max_steps=2, refresh_every=1)
    # the first step, and the one after a refresh: exactly ln 2
    assert [r['loss'] for r in metrics(tmp_path / 'run')] == [LN2, LN2]
    assert all(
        r['grad_norm'] > 0 and r['implicit_accuracy'] == 0.5 and r['margin'] == 0
        for r in metrics(tmp_path / 'run')
    )
    base = DiffusionPipeline.from_pretrained(inputs.base, local_files_only=True)
    x, t, conditioning = (
        torch.randn(2, 4, 4, 4),
        torch.tensor([10, 900]),
        inputs.encoded.conditioning([0, 1]),
    )

    def predict(model):
        with torch.no_grad():
            return family.predict(model, x, t, conditioning, SIZE)

    untrained = predict(base.unet)
    if mode == 'full':
        loaded = DiffusionPipeline.from_pretrained(out, local_files_only=True)
    else:
        loaded = base
        loaded.load_lora_weights(out, local_files_only=True)
    torch.testing.assert_close(predict(loaded.unet), predict(family.model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(predict(loaded.unet), untrained, rtol=1e-4, atol=1e-4)
    assert not list(out.rglob('*.bin'))
    assert not list(out.rglob('*.p*t'))


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_bf16_has_one_numeric_path(made, tmp_path, mode):
    out = go(
        made(), tmp_path / 'run', mode=mode, precision='bf16', max_steps=3, refresh_every=2
    ).parent
    rows = metrics(out)
    assert rows[0]['loss'] == rows[2]['loss'] == LN2 != rows[1]['loss']
    assert all(
        t.dtype == torch.float32
        for t in newest_checkpoint(out / 'checkpoints').load('policy').values()
    )


def test_gradient_checkpointing_changes_nothing(made, tmp_path):
    for name, on in (('a', False), ('b', True)):
        go(
            made(),
            tmp_path / name,
            mode='lora',
            max_steps=3,
            refresh_every=2,
            gradient_checkpointing=on,
        )
    a, b = (newest_checkpoint(tmp_path / n / 'checkpoints').load('policy') for n in 'ab')
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-7)


@pytest.fixture
def traced(monkeypatch):
    """torch.compile traces but generates no code, which would need a compiler and minutes; the
    fixture counts the graphs."""
    graphs, compiled = [], torch.compile

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', lambda f, *args, **options: compiled(f, backend=count))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def apart(folder, untrained) -> float:
    """How far the weights of the runs `a` and `b` are from each other, over how far `a` has come:
    Adam makes much of rounding where a gradient is nearly zero."""
    a, b = (newest_checkpoint(folder / n / 'checkpoints').load('policy') for n in 'ab')
    first = {n: p.detach() for n, p in untrained.policy.named_parameters() if p.requires_grad}
    assert a.keys() == b.keys() == first.keys()
    return (
        (
            sum((a[k] - b[k]).square().sum() for k in a)
            / sum((a[k] - first[k]).square().sum() for k in a)
        )
        .sqrt()
        .item()
    )


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize(
    'changes', [dict(compiled='blocks'), dict(compiled='whole'), dict(channels_last=True)], ids=str
)
def test_compiled_models_and_other_layouts_change_nothing(made, tmp_path, traced, mode, changes):
    """The reference moves at step 2: code that had kept its old weights would give another third
    step."""
    for name, some in (('a', {}), ('b', changes)):
        go(made(), tmp_path / name, mode=mode, max_steps=4, refresh_every=2, beta=50.0, **some)
    assert bool(traced) == ('compiled' in changes)
    a, b = (metrics(tmp_path / n) for n in 'ab')
    assert [r['loss'] for r in b] == pytest.approx([r['loss'] for r in a], abs=1e-5)
    assert b[2]['loss'] == LN2 != b[3]['loss']
    assert apart(tmp_path, begin(made(), tmp_path / 'c', mode=mode)) < 1e-3


def test_a_run_goes_on_compiled_and_in_another_layout(made, tmp_path, traced):
    go(made(), tmp_path / 'a', max_steps=4, refresh_every=2)
    go(made(), tmp_path / 'b', max_steps=2, refresh_every=2, compiled='blocks', channels_last=True)
    go(made(), tmp_path / 'b', max_steps=4, refresh_every=2)
    assert apart(tmp_path, begin(made(), tmp_path / 'c')) < 1e-3


@pytest.mark.parametrize('first', [True, False], ids=['channels_last', 'as they were'])
def test_a_run_with_channels_last_goes_on_to_the_same_bits(made, tmp_path, first):
    """A checkpoint keeps no layout, and a fused AdamW walks through weights and moments side by
    side: they must be laid out alike again."""
    changes = dict(optimizer='adamw', refresh_every=2, beta=50.0)
    if first:
        go(made(), tmp_path / 'a', max_steps=4, channels_last=True, **changes)
    else:  # the same two steps in each layout, without a stop between them
        run = begin(made(), tmp_path / 'a', max_steps=4, **changes)
        for _ in range(2):
            training.update(run)
            run.step += 1
            training.refresh(run)
        for model in (run.policy, run.reference.model):
            model.to(memory_format=torch.channels_last)
        training.lay_out(run.optimizer)
        for _ in range(2):
            training.update(run)
            run.step += 1
            training.refresh(run)
    for steps, layout in ((2, first), (4, True)):
        go(made(), tmp_path / 'b', max_steps=steps, channels_last=layout, **changes)
    kept = newest_checkpoint(tmp_path / 'b' / 'checkpoints').load('policy')
    ours = (
        newest_checkpoint(tmp_path / 'a' / 'checkpoints').load('policy')
        if first
        else {n: p.detach() for n, p in run.policy.named_parameters()}
    )
    for k in ours:
        assert torch.equal(ours[k], kept[k]), k


def test_the_state_of_an_optimizer_is_laid_out_as_its_weights():
    weight = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).weight
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[weight].items()}
    optimizer.state[weight] = {k: v.contiguous() for k, v in optimizer.state[weight].items()}
    assert optimizer.state[weight]['exp_avg'].stride() != weight.stride()
    training.lay_out(optimizer)
    assert (
        optimizer.state[weight]['exp_avg'].stride()
        == optimizer.state[weight]['exp_avg_sq'].stride()
        == weight.stride()
    )
    for k, v in before.items():
        assert torch.equal(v, optimizer.state[weight][k])


# --- the same pairs, noise and gradient, however the step is cut


def gradients(run, size):
    places = plan(len(run.rows), run.config.batch_size, run.config.seed, run.step)
    for i in range(0, len(places), size):
        micro_step(run, places[i : i + size])
    found = torch.cat([p.grad.flatten() for p in run.parameters])
    run.optimizer.zero_grad()
    return found


def test_a_pair_visited_again_in_a_step_is_seen_otherwise(made, tmp_path):
    """Three pairs and eight visits a step: every visit has noise, timestep and latents of its own,
    whatever the micro-batches; the first visit's are those of a pair alone."""
    run = begin(made(), tmp_path, batch_size=8)
    run.rows, run.labels = run.rows[:3], run.labels.iloc[:3]
    seen, real = [], training.micro_batch

    def spy(run, *places):
        seen.append(real(run, *places))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'micro_batch', spy)
        training.update(run)
        run.optimizer.zero_grad()
    ids, noisy = sum((b.pair_ids for b in seen), []), torch.cat([b.noisy for b in seen])[::2]
    t, target = (
        torch.cat([b.timesteps for b in seen])[::2],
        torch.cat([b.target for b in seen])[::2],
    )
    assert len(ids) == 8
    assert len(set(ids)) == 3
    assert len(t.unique()) > 3
    for i in range(8):
        for j in range(i):
            assert not torch.equal(target[i], target[j])
    alone = [real(run, plan(3, 8, 0, 0)[[i]]) for i in range(8)]
    for i in range(8):
        assert torch.equal(alone[i].noisy[0], noisy[i]) == (ids[i] not in ids[:i])


def test_micro_batches_do_not_change_a_step(made, tmp_path):
    run = begin(made(), tmp_path, batch_size=8, beta=50.0)
    run.step = 5
    torch.manual_seed(3)
    # away from the reference, or every loss is ln 2
    with torch.no_grad():
        [p.add_(0.01 * torch.randn_like(p)) for p in run.parameters]
    places = plan(len(run.rows), 8, 0, 5)
    whole = micro_batch(run, places)
    for size in (1, 3):
        cut = [micro_batch(run, places[i : i + size]) for i in range(0, 8, size)]
        assert sum((b.pair_ids for b in cut), []) == whole.pair_ids
        for name in ('noisy', 'target', 'timesteps', 'weights'):
            assert torch.equal(torch.cat([getattr(b, name) for b in cut]), getattr(whole, name)), (
                name
            )
        assert torch.equal(
            torch.cat([b.conditioning['prompt_embeds'] for b in cut]),
            whole.conditioning['prompt_embeds'],
        )
    expected = gradients(run, 8)
    for size in (1, 2, 3):
        assert (gradients(run, size) - expected).norm() < 1e-5 * expected.norm()


def test_both_images_of_a_pair_share_noise_timestep_and_caption(made, tmp_path):
    run = begin(made('sdxl'), tmp_path, batch_size=8, empty_prompt_rate=0.5)
    batch = micro_batch(run, np.arange(8))
    a = run.family.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    assert torch.equal(batch.target[0::2], batch.target[1::2])
    assert torch.equal(batch.timesteps[0::2], batch.timesteps[1::2])
    x0 = (batch.noisy - (1 - a).sqrt() * batch.target) / a.sqrt()
    assert not torch.allclose(x0[0::2], x0[1::2])  # the images themselves differ
    for v in batch.conditioning.values():
        assert torch.equal(v[0::2], v[1::2])
    empty = (batch.conditioning['pooled'][::2] == run.encoded.empty_conditioning['pooled']).all(1)
    assert 0 < empty.sum() < 8
    assert torch.equal(
        empty,
        (
            batch.conditioning['prompt_embeds'][::2]
            == run.encoded.empty_conditioning['prompt_embeds']
        )
        .flatten(1)
        .all(1),
    )


def test_the_latents_are_sampled_afresh_or_are_the_mean(made, tmp_path):
    inputs = made()
    run = begin(inputs, tmp_path / 'a')
    mean = begin(inputs, tmp_path / 'b', sample_latents=False)
    x0 = {}
    for name, r in (('sampled', run), ('mean', mean)):
        for r.step in (0, 1):
            b = micro_batch(r, np.arange(4))
            a = r.family.alphas_cumprod[b.timesteps].view(-1, 1, 1, 1)
            x0[name, r.step] = (b.noisy - (1 - a).sqrt() * b.target) / a.sqrt()
    expected = (
        inputs.encoded.moments(run.rows[:4])[:, :, :4].flatten(0, 1)
        * run.family.vae_config['scaling_factor']
    )
    for step in (0, 1):
        torch.testing.assert_close(x0['mean', step], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(x0['sampled', 0], x0['sampled', 1], atol=1e-2)


def test_the_random_method_asks_another_scorer_at_each_step(made, tmp_path):
    inputs = made()
    config = LabelConfig('random')
    labels = label_pairs(score_rows(inputs.encoded.pair_ids), config)
    run = start(settings(inputs), inputs.encoded, labels, config, tmp_path)
    weights = []
    for run.step in range(12):
        weights.append(training.weights_of(run, np.arange(len(run.rows))))
    assert all((w.sum(1) == 1).all() for w in weights)
    assert 1 < len({tuple(w[:, 0].tolist()) for w in weights}) <= 4
    # the pair with 2:2 votes counts here
    assert run.counts == {
        'encoded': N + 2,
        'without a label': 0,
        'undecided': 1,
        'trained on': N + 1,
    }


# --- the order of the pairs


@pytest.mark.parametrize('n,batch', [(10, 4), (7, 7), (3, 8), (11, 2)])
def test_every_epoch_visits_every_pair_once(n, batch):
    visits = np.concatenate([plan(n, batch, 0, step) for step in range(4 * n)])
    epochs = visits[: len(visits) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    assert len({tuple(e) for e in epochs}) > 1
    assert not np.array_equal(
        visits, np.concatenate([plan(n, batch, 1, step) for step in range(4 * n)])
    )


def visited(monkeypatch, run_it):
    "Step -> pair ids of all micro-batches."
    seen, real = {}, training.micro_batch

    def spy(run, *places):
        batch = real(run, *places)
        seen.setdefault(run.step, []).extend(batch.pair_ids)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(training, 'micro_batch', spy)
        run_it()
    return seen


# in the middle of epoch 0, and of epoch 1 (ten pairs, four a step)
@pytest.mark.parametrize('stop', [1, 4])
def test_a_stop_within_an_epoch_loses_and_repeats_no_pair(made, tmp_path, monkeypatch, stop):
    inputs = made()
    straight = visited(monkeypatch, lambda: go(inputs, tmp_path / 'a', max_steps=6))
    first = visited(monkeypatch, lambda: go(inputs, tmp_path / 'b', max_steps=stop))
    second = visited(
        monkeypatch, lambda: go(inputs, tmp_path / 'b', max_steps=6, micro_batch_size=4)
    )
    assert first | second == straight
    assert list(second) == list(range(stop, 6))
    epoch = sum((straight[s] for s in range(5)), [])
    assert sorted(epoch[:N]) == sorted(epoch[N:]) == sorted(set(epoch))
    assert len(set(epoch)) == N


# --- stopping and going on

CHILD = """
import sys, os, signal, json
sys.path[:0] = {paths!r}
import torch; torch.set_num_threads({threads})
from balanceddpo.training import loop as training
from balanceddpo.voting.labels import read_labels
from balanceddpo.models.encoding import EncodedPairs
job = json.loads(sys.argv[1])
real, kill_at, count = training.micro_step, job['kill_at'], 0
def micro_step(run, *places):
    global count
    count += 1
    if count == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    return real(run, *places)
training.micro_step = micro_step
labels, label_config = read_labels(job['labels'])
config = job['config'] | {{'lora_targets': tuple(job['config']['lora_targets'])}}
encoded = EncodedPairs.open(job['encoded'])
config = training.TrainConfig(**config)
training.train(config, encoded, labels, label_config, job['out'], progress=False)
"""


def spawn(inputs, out, kill_at=None, env={}, **changes):
    "Train in another process, which kills itself at its `kill_at`-th micro-step."
    job = dict(
        config=asdict(settings(inputs, **changes)),
        encoded=str(inputs.folder),
        labels=str(inputs.file),
        out=str(out),
        kill_at=kill_at,
    )
    script = CHILD.format(
        paths=[str(Path(__file__).parents[1]), str(Path(training.__file__).parents[2])],
        threads=torch.get_num_threads(),
    )
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', script, json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def test_a_killed_run_goes_on_to_the_same_bits(made, tmp_path):
    """Twelve steps; and twelve steps killed (-9) between two micro-steps of the tenth, with the
    last checkpoint at the seventh."""
    inputs = made()
    changes = dict(
        refresh_every=5, checkpoint_every=7, log_every=4, optimizer='adamw', warmup_steps=3
    )
    child = spawn(inputs, tmp_path / 'b', kill_at=20, **changes)
    go(inputs, tmp_path / 'a', **changes)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL, errors
    assert [c.step for c in checkpoints(tmp_path / 'b' / 'checkpoints')] == [7]
    assert [r['step'] for r in metrics(tmp_path / 'b')] == [4, 8]
    go(inputs, tmp_path / 'b', **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [(r['step'], r['refreshed']) for r in metrics(tmp_path / 'b')] == [
        (4, False),
        (8, True),
        (12, True),
    ]


@pytest.mark.parametrize(
    'changes',
    [dict(mode='lora', optimizer='adamw'), dict(optimizer='adafactor', precision='bf16')],
    ids=['lora', 'adafactor-bf16'],
)
def test_a_stopped_run_goes_on_to_the_same_bits(made, tmp_path, changes):
    """Also where the last refresh lies behind the checkpoint: the reference is neither the base
    model nor the policy of the checkpoint."""
    changes |= dict(refresh_every=3)
    go(made(), tmp_path / 'a', max_steps=7, **changes)
    for n in (1, 5, 7):
        go(made(), tmp_path / 'b', max_steps=n, **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [r['step'] for r in metrics(tmp_path / 'b') if r['refreshed']] == [3, 6]
    # of step 5, refreshed at 3
    reference, policy = (
        checkpoints(tmp_path / 'b' / 'checkpoints')[0].load(part)
        for part in ('reference', 'policy')
    )
    assert any(not torch.equal(reference[k], v) for k, v in zip(reference, policy.values()))


def test_a_model_that_could_not_be_saved_is_refused_before_training(made, tmp_path):
    import shutil

    inputs = made()
    base = shutil.copytree(inputs.base, tmp_path / 'base')
    shutil.rmtree(base / 'text_encoder')
    with pytest.raises(InputError, match="names the part 'text_encoder'"):
        go(inputs, tmp_path / 'run', model=str(base))
    assert not checkpoints(tmp_path / 'run' / 'checkpoints')


def test_a_damaged_checkpoint_costs_one_interval_and_is_named(made, tmp_path):
    inputs = made()
    go(inputs, tmp_path / 'a', max_steps=6, checkpoint_every=2)
    go(inputs, tmp_path / 'b', max_steps=4, checkpoint_every=2)
    weights = tmp_path / 'b' / 'checkpoints' / 'step-00000004' / 'reference.safetensors'
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.warns(UserWarning, match='step 4 not used: .*reference.safetensors'):
        go(inputs, tmp_path / 'b', max_steps=6, checkpoint_every=2, keep_checkpoints=1)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [c.step for c in checkpoints(tmp_path / 'b' / 'checkpoints')] == [6]


# Python ends by the signal it was interrupted by
@pytest.mark.parametrize(
    'number, code', [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_writes_a_checkpoint_and_a_second_process_is_refused(made, tmp_path, number, code):
    inputs, out = made(), tmp_path / 'run'
    child = spawn(inputs, out, max_steps=100_000)
    try:
        while (
            not (out / 'metrics.jsonl').exists()
            or len((out / 'metrics.jsonl').read_text().splitlines()) < 2
        ):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.05)
        with pytest.raises(InputError, match=f'in use by process {child.pid}'):
            go(inputs, out, max_steps=100_000)
        asked = time.monotonic()
        child.send_signal(number)
        assert child.wait(60) == code
    finally:
        child.kill()
        child.communicate()
    step = newest_checkpoint(out / 'checkpoints').step
    assert step == metrics(out)[-1]['step'] >= 2
    assert not (out / 'model').exists()
    assert time.monotonic() - asked < 60
    go(inputs, out, max_steps=step + 1)  # and it goes on
    assert [r['step'] for r in metrics(out)] == list(range(1, step + 2))


def test_a_finished_run_is_returned_and_can_be_prolonged(made, tmp_path, monkeypatch):
    inputs = made()
    out = go(inputs, tmp_path / 'a', max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(training, 'start', lambda *a: pytest.fail('trained again'))
        assert go(inputs, tmp_path / 'a', max_steps=2) == out
    # written anew from the checkpoint
    (out / 'README.md').write_text('damaged')
    go(inputs, tmp_path / 'a', max_steps=2)
    assert 'balanceddpo' in (out / 'README.md').read_text()
    go(inputs, tmp_path / 'a', max_steps=3)
    go(inputs, tmp_path / 'b', max_steps=3)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(InputError, match='already at step 3: max_steps 1 is behind it'):
        go(inputs, tmp_path / 'a', max_steps=1)


def test_another_run_in_the_same_folder_is_refused_by_name(made, tmp_path):
    inputs = made()
    go(inputs, tmp_path / 'a', max_steps=1)
    with pytest.raises(InputError, match='training.learning_rate = 0.001, not 0.002'):
        go(inputs, tmp_path / 'a', max_steps=2, learning_rate=2e-3)
    with pytest.raises(InputError, match='step 1: resume it'):
        go(inputs, tmp_path / 'a', max_steps=2, resume=False)
    inputs.labels.loc[0, ['w0', 'w1']] = inputs.labels.loc[0, ['w1', 'w0']].to_numpy()
    with pytest.raises(InputError, match='labels.w0'):
        go(inputs, tmp_path / 'a', max_steps=2)
    with pytest.raises(InputError, match='base|pairs'):
        go(made('sd21'), tmp_path / 'a', max_steps=2)
    assert [c.step for c in checkpoints(tmp_path / 'a' / 'checkpoints')] == [1]


# --- numbers that are not


class Poisoned:
    "Encoded pairs, some of which have NaN latents."

    def __init__(self, encoded, bad):
        self.encoded, self.bad = encoded, set(bad)

    def __getattr__(self, name):
        return getattr(self.encoded, name)

    def batch(self, rows):
        moments, conditioning = self.encoded.batch(rows)
        for i, r in enumerate(rows):
            if self.encoded.pair_ids[r] in self.bad:
                moments[i] = math.nan
        return moments, conditioning


@pytest.mark.filterwarnings('ignore:step .* skipped')
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_pair(made, tmp_path, monkeypatch):
    inputs = made()
    bad = inputs.encoded.pair_ids[0]
    inputs.encoded = Poisoned(inputs.encoded, [bad])
    states, real = [], training.update

    def spy(run):
        before = (
            {k: v.clone() for k, v in trained_state(run).items()},
            [s.clone() for o in run.optimizer.state_dict()['state'].values() for s in o.values()],
        )
        measures = real(run)
        after = (
            trained_state(run),
            [s for o in run.optimizer.state_dict()['state'].values() for s in o.values()],
        )
        states.append((measures['skipped'], same(before, after)))
        return measures

    monkeypatch.setattr(training, 'update', spy)
    out = go(inputs, tmp_path / 'run', max_steps=5, log_every=5).parent
    rows, _, _ = training.decided_pairs(inputs.encoded.pair_ids, inputs.labels)
    hit = [bad in [inputs.encoded.pair_ids[r] for r in rows[plan(N, 4, 0, s)]] for s in range(5)]
    assert any(hit)
    assert not all(hit)
    assert states == [(h, h) for h in hit]  # skipped exactly there; unchanged exactly there
    told = [json.loads(l) for l in (out / 'skipped.jsonl').read_text().splitlines()]
    assert [t['step'] for t in told] == [s + 1 for s, h in enumerate(hit) if h]
    assert all(t['pair_ids'] == [bad] and t['loss'] == 'nan' for t in told)
    (row,) = metrics(out)
    assert row['skipped'] == sum(hit)
    assert math.isfinite(row['loss'])
    assert all(
        t.isfinite().all() for t in newest_checkpoint(out / 'checkpoints').load('policy').values()
    )


def test_a_run_of_bad_steps_stops(made, tmp_path):
    inputs = made()
    go(inputs, tmp_path / 'run', max_steps=2)
    inputs.encoded = Poisoned(inputs.encoded, inputs.encoded.pair_ids)
    with (
        pytest.warns(UserWarning) as told,
        pytest.raises(InputError, match='3 steps in a row up to step 5.*skipped.jsonl'),
    ):
        go(inputs, tmp_path / 'run', max_steps=20, max_bad_steps=3, checkpoint_every=1)
    assert [str(w.message).split(',')[0] for w in told] == [
        f'step {s} skipped: loss nan' for s in (3, 4, 5)
    ]
    assert all(
        t.isfinite().all()
        for c in checkpoints(tmp_path / 'run' / 'checkpoints')
        for t in c.load('policy').values()
    )
    assert newest_checkpoint(tmp_path / 'run' / 'checkpoints').load('progress')['bad_steps'] == 2


# --- two processes


def test_two_processes_take_the_steps_of_one(made, tmp_path):
    inputs = made()
    changes = dict(
        max_steps=3,
        refresh_every=2,
        learning_rate=1e-4,
        micro_batch_size=1,
        checkpoint_every=2,
        beta=50.0,
    )
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    common = dict(
        WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true'
    )
    children = [
        spawn(
            inputs, tmp_path / 'two', env=common | {'RANK': str(r), 'LOCAL_RANK': str(r)}, **changes
        )
        for r in range(2)
    ]
    one = go(inputs, tmp_path / 'one', **changes).parent
    for c in children:
        _, errors = c.communicate(timeout=600)
        assert c.returncode == 0, errors
    for a, b in zip(metrics(one), metrics(tmp_path / 'two'), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=2e-5)
    assert metrics(tmp_path / 'two')[0]['grad_norm'] == pytest.approx(
        metrics(one)[0]['grad_norm'], rel=1e-6
    )
    a, b = (newest_checkpoint(f / 'checkpoints').load('policy') for f in (one, tmp_path / 'two'))
    a, b = (torch.cat([t.flatten() for t in x.values()]) for x in (a, b))
    assert (a - b).norm() < 1e-5 * a.norm()


# --- settings, card, tracker


@pytest.mark.parametrize(
    'field,value',
    [
        ('batch_size', 0),
        ('learning_rate', 0.0),
        ('learning_rate', math.nan),
        ('clip', -1.0),
        ('empty_prompt_rate', 1.5),
        ('refresh_alpha', 0.0),
        ('refresh_every', -1),
        ('beta', math.inf),
        ('keep_checkpoints', 0),
        ('method', 'ppo'),
        ('mode', 'qlora'),
        ('precision', 'fp8'),
        ('log_every', 0),
        ('warmup_steps', -3),
    ],
)
def test_a_setting_without_sense_is_named(field, value):
    with pytest.raises(InputError, match=f'^{field} must be'):
        TrainConfig(model='x', **{field: value})


def test_a_whole_number_is_the_same_setting():
    "A preset says beta=5000, the command line 5000.0: one run, not two."
    assert asdict(TrainConfig(model='x', beta=5000, clip=1)) == asdict(
        TrainConfig(model='x', beta=5000.0, clip=1.0)
    )
    assert type(TrainConfig(model='x', beta=5000).beta) is float
    assert type(TrainConfig(model='x').max_steps) is int


def test_what_does_not_fit_is_refused(made, tmp_path):
    inputs = made()
    with pytest.raises(InputError, match='encoded at 32 pixels, the run wants 64'):
        go(inputs, tmp_path / 'a', resolution=64)
    with pytest.raises(InputError, match='nothing_like_it'):
        go(inputs, tmp_path / 'b', mode='lora', lora_targets=('nothing_like_it',))
    with pytest.raises(InputError, match='fp16 needs a GPU'):
        go(inputs, tmp_path / 'c', precision='fp16')
    with pytest.raises(InputError, match='unknown device'):
        go(inputs, tmp_path / 'd', device='gpu')
    inputs.labels = inputs.labels[inputs.labels.s == 0]
    with pytest.raises(InputError, match='10 of 12 encoded pairs have no label, 2 are undecided'):
        go(inputs, tmp_path / 'e')


@pytest.mark.parametrize('name', ['metrics.jsonl', 'skipped.jsonl'])
def test_torn_and_later_rows_go(tmp_path, name):
    (tmp_path / name).write_bytes(
        b'{"step": 1}\n{"step": 3}\nnot json\n[1]\n{"step": 2}\n{"ste\xff'
    )
    training.keep_rows(tmp_path / name, 2)
    assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'
    training.keep_rows(tmp_path / 'absent', 2)
    assert not (tmp_path / 'absent').exists()


def test_the_card_says_what_taught_the_model(made, tmp_path):
    import yaml

    inputs = made()
    data = 'my pairs\n---\nlicense: mit\n```'
    out = go(inputs, tmp_path / 'run', max_steps=1, mode='lora', refresh_every=100, data=data)
    text = (out / 'README.md').read_text()
    _, front, body = text.split('---\n', 2)
    assert yaml.safe_load(front).keys() == {'library_name', 'pipeline_tag', 'tags'}
    assert 'lora' in yaml.safe_load(front)['tags']
    assert 'hps, clip, pickscore, aesthetic' in body
    assert '12 encoded' in body
    assert '2 undecided' in body
    assert 'refreshed every 100 steps' in body
    assert '\n---' not in body
    assert 'my pairs' in body
    assert 'icon world' not in body
    # no path of this machine
    assert str(tmp_path) not in text
    assert str(inputs.base.parent) not in text
    facts = json.loads((out / 'training.json').read_text())
    assert facts['step'] == 1
    assert facts['config']['beta'] == 500
    assert facts['versions']['torch']
    assert facts['pairs']['trained on'] == N


def test_the_card_of_an_icon_model_says_so(made, tmp_path):
    text = (go(made(), tmp_path / 'run', max_steps=1, data='icons') / 'README.md').read_text()
    assert '**icon world**' in text
    assert '**simulated annotators**' in text


def test_the_tracker_gets_every_row_and_a_resume_replaces_later_ones(made, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    inputs = made()
    for n in (2, 3):
        go(inputs, tmp_path / 'run', max_steps=n, tracker='tensorboard')
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard'))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('grad_norm')] == [
        (r['step'], pytest.approx(r['grad_norm'])) for r in metrics(tmp_path / 'run')
    ]


def test_warm_up_is_linear_then_constant():
    config = TrainConfig(model='x', learning_rate=1e-4, warmup_steps=4)
    assert [training.learning_rate(config, s) for s in range(6)] == pytest.approx(
        [2.5e-5, 5e-5, 7.5e-5, 1e-4, 1e-4, 1e-4]
    )
    assert training.learning_rate(replace(config, warmup_steps=0), 0) == 1e-4


# --- the rivals, in the same loop

# where policy and reference are one model
FIRST = {
    'dpo': math.log(2),
    'ipo': 1.0,
    'hinge': 1.0,
    'kto': 0.5,
    'inpo': math.log(2),
    'smpo': math.log(2),
    'dmpo': 0.5 * math.log(0.5 / 0.99) + 0.5 * math.log(0.5 / 0.01),
    'dpo_safeguarded': math.log(2),
}


@pytest.mark.parametrize('mode', ['full', 'lora'])
@pytest.mark.parametrize('method', LOSSES)
def test_every_method_trains_and_its_first_loss_is_known(made, tmp_path, method, mode):
    inputs = made()
    out = tmp_path / 'run'
    model = go(
        inputs,
        out,
        method=method,
        mode=mode,
        beta=None,
        max_steps=2,
        batch_size=4,
        micro_batch_size=4,
        empty_prompt_rate=0.0,
    )
    first, second = metrics(out)
    if method in FIRST:
        assert first['loss'] == pytest.approx(FIRST[method], abs=1e-6)
    # the winner's error alone
    if method in ('sft', 'dspo'):
        assert first['loss'] == pytest.approx(first['winner_error'], rel=1e-5)
    assert math.isfinite(second['loss'])
    assert first['grad_norm'] > 0
    assert (first['distance'] is None) == (not LOSSES[method].needs_reference)
    if mode == 'full':
        assert not same(
            load_file(model / 'unet/diffusion_pytorch_model.safetensors'),
            load_file(inputs.base / 'unet/diffusion_pytorch_model.safetensors'),
        )


def test_processes_must_not_share_a_batch_whose_pairs_are_compared(monkeypatch, tmp_path):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda self: 2))
    config = lambda **more: TrainConfig(
        model='none',
        method='kto',
        beta=None,
        batch_size=4,
        micro_batch_size=4,
        device='cpu',
        precision='fp32',
        tracker='none',
        **more,
    )
    with pytest.raises(
        InputError, match='kto compares a pair with the others of its batch, which 2 processes'
    ):
        training.open_accelerator(config(), tmp_path)
    assert training.open_accelerator(config(options=('kl=0',)), tmp_path).num_processes == 2


def test_smpo_with_plain_noise_and_weight_one_is_dpo(made, tmp_path):
    inputs = made()
    go(inputs, tmp_path / 'dpo', max_steps=3, refresh_every=2)
    go(
        inputs,
        tmp_path / 'smpo',
        max_steps=3,
        refresh_every=2,
        method='smpo',
        noise='random',
        options=('sensitivity=1',),
    )
    assert_equal_runs(tmp_path / 'dpo', tmp_path / 'smpo')


def test_noise_by_inversion_belongs_to_the_image_and_the_pair_alone(made, tmp_path):
    run = begin(made(), tmp_path, method='smpo', batch_size=8, sample_latents=False)
    whole = micro_batch(run, np.arange(4))
    plain = begin(made(), tmp_path / 'plain', batch_size=8, sample_latents=False)
    a = run.family.alphas_cumprod[whole.timesteps].view(-1, 1, 1, 1)
    before = micro_batch(plain, np.arange(4))
    x0 = (before.noisy - (1 - a).sqrt() * before.target) / a.sqrt()
    # the target is the noise that is in it
    torch.testing.assert_close(
        a.sqrt() * x0 + (1 - a).sqrt() * whole.target, whole.noisy, rtol=1e-3, atol=1e-3
    )
    assert torch.equal(whole.timesteps, before.timesteps)
    assert not torch.allclose(whole.target[0], whole.target[1])
    alone = [micro_batch(run, np.arange(i, i + 1)) for i in range(4)]
    torch.testing.assert_close(
        torch.cat([b.noisy for b in alone]), whole.noisy, rtol=1e-4, atol=1e-4
    )


def test_a_method_without_a_reference_keeps_none_and_resumes(made, tmp_path):
    inputs = made()
    changes = dict(method='mapo', beta=None, checkpoint_every=2)
    go(inputs, tmp_path / 'whole', max_steps=4, **changes)
    go(inputs, tmp_path / 'cut', max_steps=2, **changes)
    go(inputs, tmp_path / 'cut', max_steps=4, **changes)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')
    assert newest_checkpoint(tmp_path / 'cut/checkpoints').load('reference') == {}


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(method='mapo', refresh_every=10), 'mapo has no reference that could be refreshed'),
        (dict(method='sft', refresh_drift=0.1), 'sft has no reference that could be refreshed'),
        (dict(refresh_drift=-0.1), 'refresh_drift must be 0 or more'),
        (dict(method='kto', micro_batch_size=2), 'kto compares a pair with the others'),
        (dict(options=('mu=0.5',)), "dpo has no parameter 'mu'"),
        (dict(method='dmpo', options=('alpha',)), 'an option of a method is NAME=VALUE'),
        (dict(method='mapo', beta_convention='sum'), 'mapo is made for errors that are a mean'),
        (dict(noise='inverse'), 'noise must be one of auto, random'),
        (dict(method='dspo', beta=5000.0), 'beta must be from 0 to 1 for dspo'),
    ],
)
def test_what_does_not_fit_a_method_is_refused_with_the_reason(made, changes, reason):
    with pytest.raises(InputError, match=reason):
        settings(made(), **changes)


def test_another_gpu_than_the_first_is_not_silently_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(training, 'pick_device', torch.device)
    config = TrainConfig(model='none', device='cuda:1', tracker='none')
    with pytest.raises(InputError, match='CUDA_VISIBLE_DEVICES=1'):
        training.open_accelerator(config, tmp_path)


def test_blocks_can_be_compiled_only_where_there_are_some():
    with pytest.raises(
        InputError, match='Linear names no blocks that repeat: set compiled to whole'
    ):
        training.compile_models([torch.nn.Linear(1, 1)], 'blocks')


def test_training_asks_for_no_autoencoder(made, tmp_path):
    with pytest.raises(InputError, match='the vae of .* was not loaded'):
        begin(made(), tmp_path).family.vae
