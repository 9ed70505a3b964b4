"""Training: Algorithm 1 against a loop written by hand, results that plain diffusers loads, steps
that are not finite, several processes, and the rivals in the same loop."""

import json
import math
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from balanceddpo.core.errors import InputError
from balanceddpo.losses.diffusion_dpo import draw_noise, draw_timesteps, draw_uniform
from balanceddpo.losses.methods import LOSSES
from balanceddpo.models.families import load_family
from balanceddpo.training import loop as training
from balanceddpo.training.batches import micro_batch, plan
from balanceddpo.training.checkpoints import checkpoints, newest_checkpoint
from balanceddpo.training.config import TrainConfig
from balanceddpo.training.loop import micro_step
from balanceddpo.training.run import decided_pairs, trained_state
from short_runs import (
    LN2,
    SIZE,
    N,
    assert_equal_runs,
    begin,
    go,
    metrics,
    same,
    settings,
    spawn,
)
from tiny_models import KINDS

# --- the loop, written a second time


def latents_by_hand(inputs, config, step, chosen, first_wins):
    "The latents of winners and losers, drawn from the autoencoder's Gaussian."
    scale = json.loads((inputs.base / 'vae' / 'config.json').read_text())['scaling_factor']
    ids = [inputs.encoded.pair_ids[i] for i in chosen]
    moments = inputs.encoded.moments(chosen)
    z = draw_noise(config.seed, step, ids, (2, 4, SIZE // 8, SIZE // 8), 'latents')
    latents = scale * (moments[:, :, :4] + torch.exp(moments[:, :, 4:] / 2) * z)
    winner = torch.where(first_wins, latents[:, 0], latents[:, 1])
    loser = torch.where(first_wins, latents[:, 1], latents[:, 0])
    return winner, loser


def text_by_hand(inputs, config, step, chosen):
    "The captions' embeddings, the empty caption's where the draw says so."
    ids = [inputs.encoded.pair_ids[i] for i in chosen]
    text = inputs.encoded.conditioning(chosen)['prompt_embeds']
    empty = inputs.encoded.empty_conditioning['prompt_embeds'][0]
    dropped = draw_uniform(config.seed, step, ids, 'empty prompt') < config.empty_prompt_rate
    return torch.stack([empty if d else e for d, e in zip(dropped, text)])


def batch_by_hand(inputs, config, scheduler, step):
    "What the models of a step get, winners first: noisy latents, timesteps, text; and the noise."
    decided = inputs.labels[inputs.labels.s != 0].set_index('pair_id').s
    usable = [i for i, p in enumerate(inputs.encoded.pair_ids) if p in decided.index]
    chosen = [usable[i] for i in plan(len(usable), config.batch_size, config.seed, step)]
    ids = [inputs.encoded.pair_ids[i] for i in chosen]
    first_wins = torch.tensor([decided[p] == 1 for p in ids]).view(-1, 1, 1, 1)
    latents = torch.cat(latents_by_hand(inputs, config, step, chosen, first_wins))
    text = text_by_hand(inputs, config, step, chosen).repeat(2, 1, 1)
    noise = draw_noise(config.seed, step, ids, (4, SIZE // 8, SIZE // 8)).repeat(2, 1, 1, 1)
    t = draw_timesteps(config.seed, step, ids, 1000).repeat(2)
    return (scheduler.add_noise(latents, noise, t), t, text), noise


def by_hand(inputs, config, steps):
    """Diffusion-DPO as the public script orders it, winner first: plain torch, no code of the loop
    but the order of pairs."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    policy = UNet2DConditionModel.from_pretrained(inputs.base, subfolder='unet').eval()
    reference = UNet2DConditionModel.from_pretrained(inputs.base, subfolder='unet').eval()
    scheduler = DDPMScheduler.from_pretrained(inputs.base, subfolder='scheduler')
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        foreach=False,
    )

    def errors(model, given, noise):
        return (model(*given).sample - noise).pow(2).mean([1, 2, 3]).chunk(2)

    for step in range(steps):
        given, noise = batch_by_hand(inputs, config, scheduler, step)
        model_w, model_l = errors(policy, given, noise)
        with torch.no_grad():
            ref_w, ref_l = errors(reference, given, noise)
        margin = (model_w - model_l) - (ref_w - ref_l)
        loss = -torch.nn.functional.logsigmoid(-0.5 * config.beta * margin).mean()
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
    rows, _, _ = decided_pairs(inputs.encoded.pair_ids, inputs.labels)
    hit = [bad in [inputs.encoded.pair_ids[r] for r in rows[plan(N, 4, 0, s)]] for s in range(5)]
    assert any(hit)
    assert not all(hit)
    assert states == [(h, h) for h in hit]  # skipped exactly there; unchanged exactly there
    told = [json.loads(line) for line in (out / 'skipped.jsonl').read_text().splitlines()]
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


# --- tracker, warm-up


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


def test_any_tracker_of_accelerates_gets_the_settings_and_every_row(made, tmp_path, monkeypatch):
    from accelerate import tracking

    class Mine(tracking.GeneralTracker):
        name, requires_logging_directory = 'mine', False
        settings, rows, ended = {}, [], []

        def __init__(self, run_name, **_):
            super().__init__()

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            self.settings.update(values)

        def log(self, values, step, **_):
            self.rows.append((step, values['grad_norm']))

        def finish(self):
            self.ended.append(True)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, 'mine', Mine)
    go(made(), tmp_path / 'run', max_steps=2, tracker='mine')
    assert Mine.settings['max_steps'] == 2
    assert isinstance(Mine.settings['lora_targets'], list)  # as JSON has it, which all of them take
    assert Mine.rows == [(r['step'], r['grad_norm']) for r in metrics(tmp_path / 'run')]
    assert Mine.ended == [True]


def test_warm_up_is_linear_then_constant():
    config = TrainConfig(model='x', learning_rate=1e-4, warmup_steps=4)
    assert [training.learning_rate_at(config, s) for s in range(6)] == pytest.approx(
        [2.5e-5, 5e-5, 7.5e-5, 1e-4, 1e-4, 1e-4]
    )
    assert training.learning_rate_at(replace(config, warmup_steps=0), 0) == 1e-4


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
