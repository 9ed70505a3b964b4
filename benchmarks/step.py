"""Row 1: one optimizer step of Diffusion-DPO, ours with cached inputs against the operation order
of two public scripts.

R1 is SalesforceAIResearch/DiffusionDPO `train.py` (full fine-tune), R2 is diffusers'
`train_diffusion_dpo.py` (LoRA). They are written here from the order of
their operations: pixels through the autoencoder, noise, text encoder, policy, reference, loss,
backward, in every micro-batch. All arms of a comparison have the same first weights, the same
pairs, the same precision and the same optimizer settings, in one process. What favours the
rivals: their pictures are decoded already, and they have no `accelerate`, no tracker and no
progress bar around them, while ours is timed with all that `train` does in a step but the
checkpoint.
What favours ours: its latents and embeddings are there, made once by `encode`. That costs a pass
of the autoencoder for each image, as one visit of a rival does: a run that visits less than what
was encoded loses what the cache gives (`encode --limit`).

Numbers first: `gate` injects one noise into both and compares gradients and losses. At the first
step policy and reference are equal and the loss is ln 2 whatever the inputs are, so the first
loss proves nothing: the gradient does, and the later losses."""

from __future__ import annotations

import math
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from benchmarks.timing import BUDGET, SIZE, Arm, Log, asked, versus
from benchmarks.world import GEOMETRIES, make_family, synthetic_pairs

# gates: relative L2 error and loss difference in fp32, cosine in bf16; on an H100 1.8e-5,
# presumably for its order of adding
GRADIENT, LOSS, COSINE = {'cpu': 1e-5, 'cuda': 1e-4}, 1e-4, 0.999
PAIRS = 8  # different pairs; the step visits them again and again
RATE = {'full': 1e-5, 'lora': 2e-4}  # so that the third loss has left ln 2
BETA = 500.0  # the rounding of the errors, 1e-7, comes into the losses multiplied by it
SHARE = 0.5  # of the time, for the full fine-tune
ENCODE_CHUNK = 8  # images R2 gives its autoencoder at once (its default)


@dataclass
class World:
    """A family, its pairs encoded for ours and as pixels and token ids for the rivals, and their
    labels."""

    geometry: object
    family: object
    encoded: object  # EncodedPairs
    labels: object  # DataFrame
    # fp32 [n, 2, 3, h, w] in [-1, 1], the preferred image first: what the public loaders give
    pixels: object
    tokens: object  # int64 [n, length]
    winners: object  # int64 [n], the number of the preferred image


def make_world(geometry, folder, device='cpu', n=PAIRS) -> World:
    "Encode `n` synthetic pairs, kept in fp32, so that the rivals' latents are the same numbers."
    import pandas as pd
    import torch

    from balanceddpo.data.pairs import transform_pair
    from balanceddpo.models.encoding import EncodeConfig, encode_pairs
    from balanceddpo.models.families import tokens

    family, pairs = (
        make_family(geometry, Path(folder) / 'model', device),
        list(synthetic_pairs(n, geometry.pixels)),
    )
    encoded = encode_pairs(
        pairs,
        family,
        EncodeConfig(model='benchmark', resolution=geometry.pixels, storage='fp32', shard_size=n),
        out=Path(folder) / 'encoded',
        progress=False,
    )
    winners = torch.tensor([0 if p.label_0 else 1 for p in pairs])
    labels = pd.DataFrame(
        {
            'pair_id': encoded.pair_ids,
            'w0': 1.0 - winners.float().numpy(),
            'w1': winners.float().numpy(),
        }
    )
    pixels = (
        torch.stack([transform_pair(p.images, geometry.pixels, p.pair_id) for p in pairs]).float()
        / 127.5
        - 1
    )
    pixels = torch.stack([x if w == 0 else x.flip(0) for x, w in zip(pixels, winners)])
    ids = tokens(
        family.part('tokenizer'),
        [p.caption for p in pairs],
        family.part('text_encoder').config.max_position_embeddings,
    )
    return World(geometry, family, encoded, labels, pixels, ids, winners)


def train_config(geometry, mode, batch, precision='fp32', device='cpu', micro=None, **changes):
    """Settings of ours; the rivals take beta, rate, rank and batch from it. No caption is dropped
    on either side."""
    from balanceddpo.training.loop import TrainConfig

    return TrainConfig(
        **dict(
            model='benchmark',
            mode=mode,
            resolution=geometry.pixels,
            max_steps=10**6,
            batch_size=batch,
            micro_batch_size=micro or batch,
            learning_rate=RATE[mode],
            beta=BETA,
            empty_prompt_rate=0,
            precision=precision,
            device=device,
            tracker='none',
        )
        | changes
    )


def start_ours(world, config, out):
    """Our run, as `train` starts it, on a copy of the world's denoiser; for LoRA its frozen weights
    are in the run's precision, as `train` loads them."""
    from dataclasses import replace

    from balanceddpo.core.devices import pick_dtype
    from balanceddpo.training.loop import start
    from balanceddpo.voting.labels import LabelConfig

    unet = deepcopy(world.family.model)
    family = replace(
        world.family,
        parts=world.family.parts
        | {'unet': cast(unet, pick_dtype(config.precision)) if config.mode == 'lora' else unet},
    )
    return start(config, world.encoded, world.labels, LabelConfig(), out, family=family)


def our_step(run) -> float:
    "All that `train` does in a step, but for checkpoints; the loss."
    from balanceddpo.training.loop import record, refresh, update

    measures = update(run)
    run.step += 1
    record(
        run,
        measures | {'refreshed': refresh(run), 'seconds': 0.0},
        SimpleNamespace(update=lambda: None, set_postfix=lambda **_: None),
    )
    return measures['loss']


def cast(module, dtype):
    "`module` in `dtype`, untouched if it has it."
    return module if module.dtype == dtype else module.to(dtype)


class PublicStep:
    """What R1 and R2 share: modules, data, optimizer, accumulation of micro-batches of `micro`
    pairs. `inject` gives the gate's noise; else it is drawn as they do."""

    def __init__(self, world, config, unet, micro, inject=None):
        import torch
        from diffusers import DDPMScheduler

        from balanceddpo.core.devices import pick_dtype

        self.world, self.config, self.unet, self.micro, self.inject, self.step = (
            world,
            config,
            unet,
            micro,
            inject,
            0,
        )
        self.dtype = pick_dtype(config.precision)
        self.vae, self.text = (
            cast(deepcopy(world.family.part(n)), self.dtype) for n in ('vae', 'text_encoder')
        )
        self.scheduler, self.device = (
            DDPMScheduler.from_config(world.family.scheduler_config),
            world.family.device,
        )
        self.parameters = [p for p in unet.parameters() if p.requires_grad]
        # not fused: as both scripts make it
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: 1.0)

    def autocast(self):
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def noised(self, places):
        """Noisy latents [2n, ...] (the preferred images first), noise, timesteps and embeddings of
        a micro-batch, from pixels and token ids."""
        import torch

        pixels = torch.cat(self.world.pixels[places].unbind(1)).to(self.device, self.dtype)
        n = len(places)
        with torch.no_grad():
            latents = (
                self.encode(pixels, self.inject and self.inject(self, places)['latents'])
                * self.vae.config.scaling_factor
            )
            hidden = self.text(self.world.tokens[places].to(self.device))[0].repeat(2, 1, 1)
        if self.inject:
            noise, t = (
                self.inject(self, places)['noise'].to(latents),
                self.inject(self, places)['t'],
            )
        else:
            noise, t = (
                torch.randn_like(latents)[:n],
                torch.randint(
                    0, self.scheduler.config.num_train_timesteps, (n,), device=self.device
                ),
            )
        noise, t = noise.repeat(2, 1, 1, 1), t.repeat(2)
        return self.scheduler.add_noise(latents, noise, t), noise, t, hidden

    def sample(self, pixels, z):
        "Latents of the autoencoder's Gaussian, by its own draw or by `z`."
        gaussian = self.vae.encode(pixels).latent_dist
        return (
            gaussian.sample() if z is None else gaussian.mean + gaussian.std * z.to(gaussian.mean)
        )

    def difference(self, prediction, noise):
        """Error of the preferred image less that of the other [n], and the mean error, which the
        scripts log."""
        errors = (prediction.float() - noise.float()).square().mean(dim=(1, 2, 3))
        w, l = errors.chunk(2)
        return w - l, errors.mean()

    def update(self) -> float:
        "One optimizer step over `batch_size` pairs; the mean loss."
        import torch

        from balanceddpo.training.loop import plan

        places, total = (
            plan(len(self.world.winners), self.config.batch_size, self.config.seed, self.step),
            0.0,
        )
        micros = [places[i : i + self.micro] for i in range(0, len(places), self.micro)]
        for some in micros:
            total += self.micro_step(some, 1 / len(micros)) / len(micros)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total


class R1(PublicStep):
    """DiffusionDPO: full fine-tune, the reference a module of its own in half precision, four
    numbers read from the device before each backward."""

    def __init__(self, world, config, micro, inject=None, **_):
        unet = deepcopy(world.family.model).requires_grad_(True)
        super().__init__(world, config, unet, micro, inject)
        self.reference = cast(deepcopy(world.family.model), self.dtype)

    def encode(self, pixels, z):
        return self.sample(pixels, z)

    def micro_step(self, places, share) -> float:
        import torch

        noisy, noise, t, hidden = self.noised(places)
        with self.autocast():
            prediction = self.unet(noisy, t, hidden).sample
        difference, error = self.difference(prediction, noise)
        with torch.no_grad():
            reference_difference, reference_error = self.difference(
                self.reference(noisy, t, hidden).sample, noise
            )
        logits = -self.config.beta / 2 * (difference - reference_difference)
        loss = -torch.nn.functional.logsigmoid(logits).mean()
        logged = [v.item() for v in (loss, error, reference_error, (logits > 0).float().mean())]
        (loss * share).backward()
        return logged[0]


class R2(PublicStep):
    """diffusers: LoRA, the reference the same network with its adapter off, images through the
    autoencoder eight at a time, four numbers read after each micro-batch."""

    def __init__(self, world, config, micro, inject=None, run=None, checkpointing=False):
        super().__init__(world, config, lora_like(world, config, run), micro, inject)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()

    def encode(self, pixels, z):
        import torch

        parts = range(0, len(pixels), ENCODE_CHUNK)
        return torch.cat(
            [
                self.sample(
                    pixels[i : i + ENCODE_CHUNK], None if z is None else z[i : i + ENCODE_CHUNK]
                )
                for i in parts
            ]
        )

    def micro_step(self, places, share) -> float:
        import torch

        noisy, noise, t, hidden = self.noised(places)
        with self.autocast():
            prediction = self.unet(noisy, t, hidden).sample
        difference, error = self.difference(prediction, noise)
        self.unet.disable_adapters()
        with torch.no_grad(), self.autocast():
            reference_difference, reference_error = self.difference(
                self.unet(noisy, t, hidden).sample, noise
            )
        self.unet.enable_adapters()
        logits = reference_difference - difference
        # its `beta_dpo` has the half in it
        loss = -torch.nn.functional.logsigmoid(self.config.beta / 2 * logits).mean()
        (loss * share).backward()
        return [
            v.item()
            for v in (loss.detach(), error.detach(), reference_error, (logits > 0).float().mean())
        ][0]


def lora_like(world, config, run):
    "A copy of the denoiser with the adapter that our `run` has now."
    from peft import LoraConfig

    from balanceddpo.core.devices import pick_dtype
    from balanceddpo.training.reference import adapter_tensors

    unet = cast(deepcopy(world.family.model), pick_dtype(config.precision))
    unet.add_adapter(
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            target_modules=list(run.config.lora_targets),
        )
    )
    mine, theirs = adapter_tensors(unet, 'default'), adapter_tensors(run.policy, 'default')
    for name, p in mine.items():
        p.data = theirs[name].detach().float().clone()
    return unet


def injected(arm, places) -> dict:
    """The random numbers that ours draws for these pairs at this step, in the rivals' order:
    latents [2n, ...], noise [n, ...], t [n].

    A pair that comes again in a step draws anew: then `places` must be the whole step, for a
    part of it does not tell."""
    import torch

    from balanceddpo.losses.diffusion_dpo import draw_noise, draw_timesteps
    from balanceddpo.training.loop import visit_names, visits_before

    world, seed = arm.world, arm.config.seed
    ids = visit_names([world.encoded.pair_ids[i] for i in places], visits_before(places))
    shape = world.family.latent_shape(world.geometry.pixels)
    z = draw_noise(seed, arm.step, ids, (2, *shape), 'latents')
    z = torch.stack([x if w == 0 else x.flip(0) for x, w in zip(z, world.winners[places])])
    return {
        'latents': torch.cat(z.unbind(1)).to(arm.device),
        'noise': draw_noise(seed, arm.step, ids, shape).to(arm.device),
        't': draw_timesteps(seed, arm.step, ids, arm.scheduler.config.num_train_timesteps).to(
            arm.device
        ),
    }


def gradients(run, rival) -> tuple:
    """The gradients of the first step over the whole batch, ours and the rival's, each as one fp64
    vector; then none are left."""
    import torch

    from balanceddpo.training.loop import micro_step, plan, visits_before

    places = plan(len(run.rows), run.config.batch_size, run.config.seed, run.step)
    micro_step(run, places, visits_before(places))
    rival.micro_step(places, 1.0)

    def taken(parameters):
        found = torch.cat([p.grad.detach().double().flatten() for p in parameters])
        for p in parameters:
            p.grad = None
        return found

    return taken(run.parameters), taken(rival.parameters)


def gate(log, name, run, rival, row=1, stop=True) -> bool:
    """Same work? Gradients of the first step, and the losses of three optimizer steps; without
    `stop` one that fails is only kept. Returns whether all held.

    In bf16 the cosine of the gradients, which is kept and stops nothing: R1 takes policy and
    reference through different roundings, so it differs from itself in fp32."""
    import torch

    ours, theirs = gradients(run, rival)
    if run.config.precision != 'fp32':
        return log.gate(
            row,
            f'{name}, cosine of the first gradients',
            torch.nn.functional.cosine_similarity(ours, theirs, 0),
            COSINE,
            at_least=True,
            stop=False,
        )
    held = [
        log.gate(
            row,
            f'{name}, relative error of the first gradient',
            (ours - theirs).norm() / theirs.norm(),
            GRADIENT[ours.device.type],
            stop=stop,
        )
    ]
    losses = [(our_step(run), rival.update()) for _ in range(3)]
    held.append(
        log.gate(
            row,
            f'{name}, difference of losses over three steps',
            max(abs(a - b) for a, b in losses),
            LOSS,
            stop=stop,
        )
    )
    held.append(
        log.gate(
            row,
            f'{name}, the third loss has moved from ln 2 by',
            abs(losses[2][0] - math.log(2)),
            10 * LOSS,
            at_least=True,
            stop=stop,
        )
    )
    return all(held)


def compare(
    log,
    world,
    mode,
    folder,
    batch,
    precision='fp32',
    device='cpu',
    goals=(1.5, 3.0),
    row=1,
    changes=None,
    how='',
    **options,
) -> list:
    """Gate, then time ours against one public order: at equal batch, and as it ships (the second
    goal): R1 with one pair at a time, R2 with gradient checkpointing, as its README runs it. R2
    with one pair at a time is shown too, without a goal.

    `changes` to our settings may compile it or lay its weights out anew, which `how` says, and
    has to pass the gate so."""
    config = train_config(world.geometry, mode, batch, precision, device, **changes or {})
    rival, name = (R1, 'R1 (DiffusionDPO)') if mode == 'full' else (R2, 'R2 (diffusers LoRA)')
    run = start_ours(world, config, Path(folder) / f'gate_{mode}')
    gate(log, name, run, rival(world, config, batch, injected, run=run), row)
    run = start_ours(world, config, Path(folder) / mode)
    arms = {
        f'{name}, equal batch of {batch}': (rival(world, config, batch, run=run), goals[0]),
        f'{name}, one pair at a time': (
            rival(world, config, 1, run=run),
            goals[1] if mode == 'full' else None,
        ),
    }
    if mode == 'lora':
        arms[f'{name}, equal batch, checkpointing as its README'] = (
            rival(world, config, batch, run=run, checkpointing=True),
            goals[1],
        )
    ours = Arm(f'step, {mode}{how}', lambda: our_step(run))
    return versus(
        log,
        row,
        {n: f'>= {g}' if g else '' for n, (_, g) in arms.items()},
        [ours, *(Arm(n, a.update) for n, (a, _) in arms.items())],
        **options,
    )


def main() -> None:
    "Both modes."
    asked(__doc__)
    geometry = GEOMETRIES[SIZE]
    log = Log('step', geometry=geometry.name, batch=geometry.batch, pixels=geometry.pixels)
    for mode, until in (('full', SHARE * BUDGET), ('lora', BUDGET)):
        with tempfile.TemporaryDirectory() as folder:
            compare(log, make_world(geometry, folder), mode, folder, geometry.batch, until=until)


if __name__ == '__main__':
    main()
