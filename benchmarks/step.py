"""Row 1: one optimizer step of Diffusion-DPO, ours with cached inputs against the operation order
of two public scripts.

R1 is SalesforceAIResearch/DiffusionDPO `train.py` (full fine-tune), R2 is diffusers'
`train_diffusion_dpo.py` (LoRA). They are written here from the order of their operations: pixels
through the autoencoder, noise, text encoder, policy, reference, loss, backward, in every
micro-batch. All arms of a comparison have the same first weights, the same pairs, the same
precision and the same optimizer settings, in one process.

On a CPU ours takes the numeric path of the machine, as every training does from its start
(`balanceddpo.core.numerics.at_full_speed`), while the rivals' modules are copies of networks that
were never put on it and run by torch as it is, which is what a user of the public scripts gets;
only the memory that glibc keeps is a setting of the process, so the rivals have it too.

What favours the rivals: that memory; their pictures are decoded already; and they have no
`accelerate`, no tracker and no progress bar around them, while ours is timed with all that `train`
does in a step but the checkpoint. What favours ours: its latents and embeddings are there, made
once by `encode`. That costs a pass of the autoencoder for each image, as one visit of a rival does:
a run that visits less than what was encoded loses what the cache gives (`encode --limit`).

Numbers first: `gate` injects one noise into both and compares gradients and losses. At the first
step policy and reference are equal and the loss is ln 2 whatever the inputs are, so the first
loss proves nothing: the gradient does, and the later losses."""

from __future__ import annotations

import math
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from benchmarks.timing import BUDGET, SIZE, Arm, Log, read_command_line, time_arms
from benchmarks.world import GEOMETRIES, make_family, synthetic_pairs

# gates: relative L2 error and loss difference in fp32, cosine in bf16; on an H100 1.8e-5,
# presumably for its order of adding
GRADIENT, LOSS, COSINE = {'cpu': 1e-5, 'cuda': 1e-4}, 1e-4, 0.999
PAIRS = 8  # different pairs; the step visits them again and again
RATE = {'full': 1e-5, 'lora': 2e-4}  # so that the third loss has left ln 2
BETA = 500.0  # the rounding of the errors, 1e-7, comes into the losses multiplied by it
SHARE = 0.5  # of the time, for the full fine-tune
ENCODE_CHUNK = 8  # images R2 gives its autoencoder at once (its default)
ROW = 1
EQUAL_GOAL, SHIPPED_GOAL = '>= 1.5', '>= 3.0'  # at equal batch, and as the script ships


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
    from balanceddpo.models.config import EncodeConfig
    from balanceddpo.models.encoding import encode_pairs
    from balanceddpo.models.stable_diffusion import token_ids

    family = make_family(geometry, Path(folder) / 'model', device)
    pairs = list(synthetic_pairs(n, geometry.pixels))
    some = dict(resolution=geometry.pixels, storage='fp32', shard_size=n)
    config, out = EncodeConfig(model='benchmark', **some), Path(folder) / 'encoded'
    encoded = encode_pairs(pairs, family, config, out=out, progress=False)
    winners = torch.tensor([0 if pair.label_0 else 1 for pair in pairs])
    second = winners.float().numpy()
    labels = pd.DataFrame({'pair_id': encoded.pair_ids, 'w0': 1.0 - second, 'w1': second})
    pictures = [[pair.picture(slot) for slot in (0, 1)] for pair in pairs]
    images = [transform_pair(p, geometry.pixels, pair.pair_id) for p, pair in zip(pictures, pairs)]
    pixels = preferred_first(torch.stack(images).float() / 127.5 - 1, winners)
    length = family.part('text_encoder').config.max_position_embeddings
    ids = token_ids(family.part('tokenizer'), [pair.caption for pair in pairs], length)
    return World(geometry, family, encoded, labels, pixels, ids, winners)


def preferred_first(images, winners):
    "Tensor [n, 2, ...] with the image that `winners` [n] names (0 or 1) before the other one."
    import torch

    return torch.stack([pair if w == 0 else pair.flip(0) for pair, w in zip(images, winners)])


def train_config(geometry, mode, batch, precision='fp32', device='cpu', micro=None, **changes):
    """Settings of ours; the rivals take beta, rate, rank and batch from it. No caption is dropped
    on either side."""
    from balanceddpo.training.config import TrainConfig

    settings = dict(
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
    return TrainConfig(**settings | changes)


def start_ours(world, config, out):
    """Our run, as `train` starts it, on a copy of the world's denoiser; for LoRA its frozen weights
    are in the run's precision, as `train` loads them."""
    from balanceddpo.core.devices import pick_dtype
    from balanceddpo.training.loop import start
    from balanceddpo.training.run import LabelledPairs
    from balanceddpo.voting.config import LabelConfig

    unet = deepcopy(world.family.model)
    if config.mode == 'lora':
        unet = in_dtype(unet, pick_dtype(config.precision))
    family = replace(world.family, parts=world.family.parts | {'unet': unet})
    pairs = LabelledPairs(world.encoded, world.labels, LabelConfig())
    return start(config, pairs, out, family=family)


def our_step(run) -> float:
    "All that `train` does in a step, but for checkpoints; the loss."
    from balanceddpo.training.loop import record, refresh, update

    measures = update(run)
    run.step += 1
    no_bar = SimpleNamespace(update=lambda: None, tell=lambda **_: None)
    record(run, measures | {'refreshed': refresh(run), 'seconds': 0.0}, no_bar)
    return measures['loss']


def in_dtype(module, dtype):
    "`module` in `dtype`, untouched if it has it."
    return module if module.dtype == dtype else module.to(dtype)


class PublicStep:
    """What R1 and R2 share: modules, data, optimizer, accumulation of micro-batches of `micro`
    pairs. `inject` gives the gate's noise; else it is drawn as they do."""

    def __init__(self, world, config, unet, micro, inject=None):
        import torch
        from diffusers import DDPMScheduler

        from balanceddpo.core.devices import pick_dtype

        self.world, self.config, self.unet = world, config, unet
        self.micro, self.inject, self.step = micro, inject, 0
        self.dtype, self.device = pick_dtype(config.precision), world.family.device
        self.vae = in_dtype(deepcopy(world.family.part('vae')), self.dtype)
        self.text = in_dtype(deepcopy(world.family.part('text_encoder')), self.dtype)
        self.scheduler = DDPMScheduler.from_config(world.family.scheduler_config)
        self.parameters = [p for p in unet.parameters() if p.requires_grad]
        # not fused: as both scripts make it
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: 1.0)

    def autocast(self):
        "The context of the policy's forward pass: mixed precision, unless all is fp32."
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def noisy_batch(self, places) -> tuple:
        """Noisy latents [2n, ...] (the preferred images first), noise, timesteps and embeddings of
        a micro-batch, from pixels and token ids."""
        import torch

        pixels = torch.cat(self.world.pixels[places].unbind(1)).to(self.device, self.dtype)
        given = self.inject(self, places) if self.inject else None
        with torch.no_grad():
            latents = self.encode(pixels, given['latents'] if given else None)
            latents = latents * self.vae.config.scaling_factor
            hidden = self.text(self.world.tokens[places].to(self.device))[0].repeat(2, 1, 1)
        if given:
            noise, t = given['noise'].to(latents), given['t']
        else:
            n, timesteps = len(places), self.scheduler.config.num_train_timesteps
            noise = torch.randn_like(latents)[:n]
            t = torch.randint(0, timesteps, (n,), device=self.device)
        noise, t = noise.repeat(2, 1, 1, 1), t.repeat(2)
        return self.scheduler.add_noise(latents, noise, t), noise, t, hidden

    def sample_latents(self, pixels, z):
        "Latents of the autoencoder's Gaussian, by its own draw or by `z`."
        gaussian = self.vae.encode(pixels).latent_dist
        if z is None:
            return gaussian.sample()
        return gaussian.mean + gaussian.std * z.to(gaussian.mean)

    def error_difference(self, prediction, noise) -> tuple:
        """Error of the preferred image less that of the other [n], and the mean error, which the
        scripts log."""
        errors = (prediction.float() - noise.float()).square().mean(dim=(1, 2, 3))
        preferred, other = errors.chunk(2)
        return preferred - other, errors.mean()

    def update(self) -> float:
        "One optimizer step over `batch_size` pairs; the mean loss."
        import torch

        from balanceddpo.training.batches import plan

        config, n_pairs = self.config, len(self.world.winners)
        places = plan(n_pairs, config.batch_size, config.seed, self.step)
        micros = [places[i : i + self.micro] for i in range(0, len(places), self.micro)]
        total = 0.0
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
        self.reference = in_dtype(deepcopy(world.family.model), self.dtype)

    def encode(self, pixels, z):
        "Latents of all images at once."
        return self.sample_latents(pixels, z)

    def micro_step(self, places, share) -> float:
        "The gradient of some pairs, times their `share` of the step, added up; their loss."
        import torch

        noisy, noise, t, hidden = self.noisy_batch(places)
        with self.autocast():
            prediction = self.unet(noisy, t, hidden).sample
        difference, error = self.error_difference(prediction, noise)
        with torch.no_grad():
            prediction = self.reference(noisy, t, hidden).sample
            reference_difference, reference_error = self.error_difference(prediction, noise)
        logits = -self.config.beta / 2 * (difference - reference_difference)
        loss = -torch.nn.functional.logsigmoid(logits).mean()
        accuracy = (logits > 0).float().mean()
        logged = [value.item() for value in (loss, error, reference_error, accuracy)]
        (loss * share).backward()
        return logged[0]


class R2(PublicStep):
    """diffusers: LoRA, the reference the same network with its adapter off, images through the
    autoencoder eight at a time, four numbers read after each micro-batch."""

    def __init__(self, world, config, micro, inject=None, run=None, checkpointing=False):
        super().__init__(world, config, with_adapter_of(run, world, config), micro, inject)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()

    def encode(self, pixels, z):
        "Latents of the images, `ENCODE_CHUNK` at a time."
        import torch

        found = []
        for i in range(0, len(pixels), ENCODE_CHUNK):
            some = slice(i, i + ENCODE_CHUNK)
            found.append(self.sample_latents(pixels[some], None if z is None else z[some]))
        return torch.cat(found)

    def micro_step(self, places, share) -> float:
        "The gradient of some pairs, times their `share` of the step, added up; their loss."
        import torch

        noisy, noise, t, hidden = self.noisy_batch(places)
        with self.autocast():
            prediction = self.unet(noisy, t, hidden).sample
        difference, error = self.error_difference(prediction, noise)
        self.unet.disable_adapters()
        with torch.no_grad(), self.autocast():
            prediction = self.unet(noisy, t, hidden).sample
            reference_difference, reference_error = self.error_difference(prediction, noise)
        self.unet.enable_adapters()
        logits = reference_difference - difference
        # its `beta_dpo` has the half in it
        loss = -torch.nn.functional.logsigmoid(self.config.beta / 2 * logits).mean()
        (loss * share).backward()
        accuracy = (logits > 0).float().mean()
        logged = [v.item() for v in (loss.detach(), error.detach(), reference_error, accuracy)]
        return logged[0]


def with_adapter_of(run, world, config):
    "A copy of the denoiser with the adapter that our `run` has now."
    from peft import LoraConfig

    from balanceddpo.core.devices import pick_dtype
    from balanceddpo.training.reference import adapter_tensors

    unet = in_dtype(deepcopy(world.family.model), pick_dtype(config.precision))
    rank, targets = config.lora_rank, list(run.config.lora_targets)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    ours = adapter_tensors(run.policy, 'default')
    for name, tensor in adapter_tensors(unet, 'default').items():
        tensor.data = ours[name].detach().float().clone()
    return unet


def our_random_numbers(arm, places) -> dict:
    """The random numbers that ours draws for these pairs at this step, in the rivals' order:
    latents [2n, ...], noise [n, ...], t [n].

    A pair that comes again in a step draws anew: then `places` must be the whole step, for a
    part of it does not tell."""
    import torch

    from balanceddpo.losses.diffusion_dpo import draw_noise, draw_timesteps
    from balanceddpo.training.batches import visit_names, visits_before

    world, seed = arm.world, arm.config.seed
    ids = visit_names([world.encoded.pair_ids[i] for i in places], visits_before(places))
    shape = world.family.latent_shape(world.geometry.pixels)
    z = draw_noise(seed, arm.step, ids, (2, *shape), 'latents')
    z = preferred_first(z, world.winners[places])
    timesteps = arm.scheduler.config.num_train_timesteps
    return {
        'latents': torch.cat(z.unbind(1)).to(arm.device),
        'noise': draw_noise(seed, arm.step, ids, shape).to(arm.device),
        't': draw_timesteps(seed, arm.step, ids, timesteps).to(arm.device),
    }


def first_gradients(run, rival) -> tuple:
    """The gradients of the first step over the whole batch, ours and the rival's, each as one fp64
    vector; then none are left."""
    import torch

    from balanceddpo.training.batches import plan, visits_before
    from balanceddpo.training.loop import micro_step

    places = plan(len(run.rows), run.config.batch_size, run.config.seed, run.step)
    micro_step(run, places, visits_before(places))
    rival.micro_step(places, 1.0)

    def take_gradient(parameters):
        found = torch.cat([p.grad.detach().double().flatten() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        return found

    return take_gradient(run.parameters), take_gradient(rival.parameters)


def gate(log: Log, name: str, run, rival, row: int | str = ROW, stop: bool = True) -> bool:
    """Same work? Gradients of the first step, and the losses of three optimizer steps; without
    `stop` one that fails is only kept. Returns whether all held.

    In bf16 the cosine of the gradients, which is kept and stops nothing: R1 takes policy and
    reference through different roundings, so it differs from itself in fp32."""
    import torch

    ours, theirs = first_gradients(run, rival)
    if run.config.precision != 'fp32':
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, 0)
        what = f'{name}, cosine of the first gradients'
        return log.gate(row, what, cosine, COSINE, at_least=True, stop=False)
    error = (ours - theirs).norm() / theirs.norm()
    what = f'{name}, relative error of the first gradient'
    same_gradient = log.gate(row, what, error, GRADIENT[ours.device.type], stop=stop)
    losses = [(our_step(run), rival.update()) for _ in range(3)]
    apart = max(abs(mine - other) for mine, other in losses)
    what = f'{name}, difference of losses over three steps'
    same_losses = log.gate(row, what, apart, LOSS, stop=stop)
    moved = abs(losses[2][0] - math.log(2))
    what = f'{name}, the third loss has moved from ln 2 by'
    have_moved = log.gate(row, what, moved, 10 * LOSS, at_least=True, stop=stop)
    return same_gradient and same_losses and have_moved


def public_order(mode: str) -> tuple:
    "The class and the name of the rival for a mode of training."
    return (R1, 'R1 (DiffusionDPO)') if mode == 'full' else (R2, 'R2 (diffusers LoRA)')


def compare(log: Log, world: World, mode: str, folder: str, until: float) -> list:
    "Gate, then time ours against one public order until this process is `until` seconds old."
    batch = world.geometry.batch
    config = train_config(world.geometry, mode, batch)
    kind, name = public_order(mode)
    run = start_ours(world, config, Path(folder) / f'gate_{mode}')
    gate(log, name, run, kind(world, config, batch, our_random_numbers, run=run))
    run = start_ours(world, config, Path(folder) / mode)
    arms = [(Arm(f'step, {mode}', lambda: our_step(run)), ''), *rival_arms(world, config, run)]
    goals = {arm.name: goal for arm, goal in arms}
    return time_arms(log, ROW, goals, [arm for arm, _ in arms], until=until)


def rival_arms(world: World, config, run) -> list[tuple[Arm, str]]:
    """The rival's arms with their goals: at equal batch, one pair at a time, and for R2 with
    gradient checkpointing, as its README runs it.

    R1 ships with one pair at a time; for R2 that is shown too, without a goal."""
    kind, name = public_order(config.mode)
    batch, ships_so = config.batch_size, SHIPPED_GOAL if config.mode == 'full' else ''
    equal = kind(world, config, batch, run=run)
    one = kind(world, config, 1, run=run)
    arms = [
        (Arm(f'{name}, equal batch of {batch}', equal.update), EQUAL_GOAL),
        (Arm(f'{name}, one pair at a time', one.update), ships_so),
    ]
    if config.mode == 'lora':
        recomputing = kind(world, config, batch, run=run, checkpointing=True)
        what = f'{name}, equal batch, checkpointing as its README'
        arms.append((Arm(what, recomputing.update), SHIPPED_GOAL))
    return arms


def main() -> None:
    "Both modes."
    read_command_line(__doc__)
    geometry = GEOMETRIES[SIZE]
    log = Log('step', geometry=geometry.name, batch=geometry.batch, pixels=geometry.pixels)
    for mode, until in (('full', SHARE * BUDGET), ('lora', BUDGET)):
        with tempfile.TemporaryDirectory() as folder:
            compare(log, make_world(geometry, folder), mode, folder, until)


if __name__ == '__main__':
    main()
