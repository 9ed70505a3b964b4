"""Rows that name a public launcher do what it does: with the same draws of noise, timesteps,
mirrored images and dropped captions, our loss and gradient are those of the launcher's order of
operations, written here anew from pixels to loss, on tiny random models.

The models are moved away from the reference first: at equal weights the loss is ln 2 whatever the
inputs are. The pictures are as high as the square, so that scaling, which libraries round in
different ways, plays no part."""

import io
import math
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torchvision import transforms
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from balanceddpo.data.pairs import make_pair
from balanceddpo.losses.diffusion_dpo import draw_noise, draw_uniform
from balanceddpo.models.config import EncodeConfig
from balanceddpo.models.encoding import encode_pairs
from balanceddpo.models.families import load_family
from balanceddpo.pipeline.alignment import encoding_for
from balanceddpo.recipes.config import AlignConfig
from balanceddpo.recipes.settings import settings_of
from balanceddpo.training.batches import draw_mirrors, plan, timesteps_of
from balanceddpo.training.loop import gradient_of_step, start
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.config import LabelConfig
from tiny_models import SIZE, tiny_folder

N, STEP = 12, 3
FAR = {'full': 0.02, 'lora': 0.25}  # how far the policy is moved
# both sides have this share of their beta: at thousands, the rounding of the errors, 1e-7, would
# come into the loss multiplied
SHARE = 0.02
CAPTIONS = ('a red cat', 'a dog', 'two dogs', 'a red dog and a cat')


@dataclass(frozen=True)
class Launcher:
    "What a public script does, in the words of its own options."

    folder: str  # which tiny model
    beta: float  # its --beta_dpo
    half: bool  # whether its loss has the 1/2
    rank: int = 0  # of its adapter; 0 trains all weights
    loss: str = 'sigmoid'  # its --loss_type
    told: tuple = ()  # SDXL: the time ids that it gives pictures of SIZE x SIZE + 32
    turbo: bool = False  # four timesteps, the last of them pure noise


SQUARE, OWN = (SIZE, SIZE, 0, 0, SIZE, SIZE), (SIZE, SIZE + 32, 0, 16, SIZE, SIZE)
CASES = {
    ('DiffusionDPO', 'sd15'): Launcher('sd15', 5000, half=True),
    ('DiffusionDPO', 'sd15_lora'): Launcher('sd15', 2500, half=False, rank=8),
    ('SLiC (hinge)', 'sd15_lora'): Launcher('sd15', 2500, half=False, rank=8, loss='hinge'),
    ('DiffusionDPO', 'sdxl'): Launcher('sdxl', 5000, half=True, told=SQUARE),
    ('DiffusionDPO', 'sdxl_lora'): Launcher('sdxl', 5000, half=True, rank=8, told=OWN),
    ('DiffusionDPO', 'sdxl_turbo'): Launcher('sdxl', 5000, half=True, told=SQUARE, turbo=True),
    ('DiffusionDPO', 'sdxl_turbo_lora'): Launcher(
        'sdxl', 5000, half=True, rank=8, told=OWN, turbo=True
    ),
}


# --- the world, and our side


def picture(i):
    "A PNG of smooth random colours, 32 pixels wider than high."
    small = np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((SIZE + 32, SIZE), Image.Resampling.BICUBIC).save(buffer, 'PNG')
    return buffer.getvalue()


PAIRS = [
    make_pair(CAPTIONS[i % 4], (picture(2 * i), picture(2 * i + 1)), float(i % 3 > 0))
    for i in range(N)
]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    return {kind: tiny_folder(root / kind, kind) for kind in ('sd15', 'sdxl')}


def our_run(row, kind, folder, out):
    "A run of a row at step `STEP`, its policy moved away from the reference."
    changes = dict(resolution=SIZE, batch_size=N, micro_batch_size=4, device='cpu', tracker='none')
    own = settings_of(row, folder, kind)
    if own.empty_prompt_rate:
        changes['empty_prompt_rate'] = 0.4  # so that some of few captions are dropped
    changes['beta'] = SHARE * own.beta
    settings = settings_of(row, folder, kind, precision='fp32', **changes)
    asked = encoding_for(settings, AlignConfig())
    config = EncodeConfig(**vars(asked) | dict(storage='fp32', shard_size=5, batch_size=3))
    family = load_family(folder, device='cpu')
    encoded = encode_pairs(PAIRS, family, config, out / 'encoded', progress=False)
    wins = [p.label_0 for p in PAIRS]
    labels = pd.DataFrame({'pair_id': encoded.pair_ids, 'w0': wins, 'w1': [1 - w for w in wins]})
    run = start(settings, LabelledPairs(encoded, labels, LabelConfig('human')), out / 'run')
    run.step = STEP
    draw, far = torch.Generator().manual_seed(1), FAR[settings.mode]
    for p in run.parameters:
        p.data += far * torch.randn(p.shape, generator=draw)
    return run


def draws_of(run):
    """What chance decides at this step, in the order in which it visits the pairs: places in PAIRS,
    noise, the autoencoder's noise, timesteps, mirrored images, dropped captions."""
    config, places = run.config, plan(N, N, run.config.seed, STEP)
    seed, names = config.seed, [PAIRS[i].pair_id for i in places]
    shape = run.family.latent_shape(SIZE)
    return SimpleNamespace(
        pairs=[PAIRS[i] for i in places],
        noise=draw_noise(seed, STEP, names, shape),
        z=draw_noise(seed, STEP, names, (2, *shape), 'latents'),
        t=timesteps_of(run, names),
        mirrors=draw_mirrors(seed, STEP, names, config.mirror),
        dropped=draw_uniform(seed, STEP, names, 'empty prompt') < config.empty_prompt_rate,
    )


# --- the launcher's order of operations


def preferred_first(pair, zero, one):
    "What belongs to the two images, the preferred image's first: the scripts' order."
    return (zero, one) if pair.label_0 == 1 else (one, zero)


def launcher_pixels(draws):
    "Pixels [2n, 3, SIZE, SIZE] in [-1, 1]: the preferred images, then the others."
    flip = transforms.RandomHorizontalFlip(p=1.0)
    prepare = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(SIZE),
        ]
    )
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    rows = []
    for pair, mirrored in zip(draws.pairs, draws.mirrors):
        images = [prepare(Image.open(io.BytesIO(data)).convert('RGB')) for data in pair.images]
        seen = [finish(flip(im) if m else im) for im, m in zip(images, mirrored)]
        rows.append(preferred_first(pair, *seen))
    return torch.cat([torch.stack(column) for column in zip(*rows)])


def launcher_latents(folder, draws):
    "Latents [2n, c, h, w], sampled afresh and scaled."
    vae = AutoencoderKL.from_pretrained(folder, subfolder='vae')
    z = [preferred_first(pair, *both) for pair, both in zip(draws.pairs, draws.z)]
    with torch.no_grad():
        gaussian = vae.encode(launcher_pixels(draws)).latent_dist
    sample = gaussian.mean + gaussian.std * torch.cat([torch.stack(c) for c in zip(*z)])
    return sample * vae.config.scaling_factor


def launcher_text(folder, draws, told):
    "Keyword arguments of the denoiser for 2n images: the text, and for SDXL what goes with it."
    captions = ['' if d else pair.caption for pair, d in zip(draws.pairs, draws.dropped)]
    kinds = (CLIPTextModel, CLIPTextModelWithProjection) if told else (CLIPTextModel,)
    hidden = []
    for kind, suffix in zip(kinds, ('', '_2')):
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=f'tokenizer{suffix}')
        ids = tokenizer(
            captions,
            padding='max_length',
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors='pt',
        ).input_ids
        encoder = kind.from_pretrained(folder, subfolder=f'text_encoder{suffix}')
        with torch.no_grad():
            out = encoder(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2] if told else out[0])
    text = dict(encoder_hidden_states=torch.cat(hidden, -1).repeat(2, 1, 1))
    if not told:
        return text
    added = dict(
        text_embeds=out[0].repeat(2, 1), time_ids=torch.tensor([told]).float().repeat(2 * N, 1)
    )
    return text | dict(added_cond_kwargs=added)


def launcher_unets(launcher, folder, run):
    "The script's reference and policy, with the weights of our policy."
    reference = UNet2DConditionModel.from_pretrained(folder, subfolder='unet')
    policy = deepcopy(reference)
    if launcher.rank:
        from peft import LoraConfig

        attention = ['to_k', 'to_q', 'to_v', 'to_out.0']
        policy.requires_grad_(False)
        policy.add_adapter(
            LoraConfig(r=launcher.rank, lora_alpha=launcher.rank, target_modules=attention)
        )
    # ours has an adapter for the reference too, which has not moved
    ours = {k: v.clone() for k, v in run.policy.state_dict().items() if '.reference.' not in k}
    policy.load_state_dict(ours)
    return reference, policy


def launcher_scheduler(launcher, folder):
    "The script's noise levels; for SDXL-Turbo moved and stretched so that the last has no signal."
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder='scheduler')
    if launcher.turbo:
        root = (1 - scheduler.betas).cumprod(0).sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        levels = root**2
        steps = torch.cat([levels[:1], levels[1:] / levels[:-1]])
        scheduler.alphas_cumprod = steps.cumprod(0)
    return scheduler


def launcher_loss(launcher, folder, run, draws):
    "The script's loss for this batch, and its policy, which has the gradient."
    reference, policy = launcher_unets(launcher, folder, run)
    latents = launcher_latents(folder, draws)
    noise, t = draws.noise.repeat(2, 1, 1, 1), draws.t.repeat(2)
    noisy = launcher_scheduler(launcher, folder).add_noise(latents, noise, t)
    text = launcher_text(folder, draws, launcher.told)

    def difference(unet):
        errors = (unet(noisy, t, **text).sample - noise).pow(2).mean(dim=[1, 2, 3])
        winners, losers = errors.chunk(2)
        return winners - losers

    with torch.no_grad():
        of_reference = difference(reference)
    logits = (of_reference - difference(policy)) * (0.5 if launcher.half else 1.0)
    logits = SHARE * launcher.beta * logits
    if launcher.loss == 'hinge':
        loss = torch.relu(1 - logits).mean()
    else:
        loss = -F.logsigmoid(logits).mean()
    loss.backward()
    return loss.item(), policy


# --- both


def gradient(model):
    "Name -> gradient of the trained parameters."
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('row, kind', CASES, ids=[' '.join(case) for case in CASES])
def test_a_row_has_the_loss_and_the_gradient_of_its_launcher(row, kind, folders, tmp_path):
    launcher = CASES[row, kind]
    folder = folders[launcher.folder]
    run = our_run(row, kind, folder, tmp_path)
    draws = draws_of(run)
    theirs, policy = launcher_loss(launcher, folder, run, draws)
    ours = sum(r.losses.sum().item() for r in gradient_of_step(run)) / N
    # nothing is compared with a draw that did not happen
    assert draws.mirrors.any()
    assert not draws.mirrors.all()
    assert draws.dropped.any() == (kind in ('sd15', 'sdxl'))
    of_the_pair = kind in ('sdxl_lora', 'sdxl_turbo_lora')
    assert (draws.mirrors[:, 0] == draws.mirrors[:, 1]).all() == of_the_pair
    assert {*draws.t.tolist()} == {249, 499, 749, 999} or not launcher.turbo
    at_rest = 1.0 if launcher.loss == 'hinge' else math.log(2)
    assert abs(theirs - at_rest) > 0.005
    assert ours == pytest.approx(theirs, rel=1e-5)
    a, b = gradient(run.policy), gradient(policy)
    assert a.keys() == b.keys()
    a, b = (torch.cat([g[n].flatten() for n in sorted(a)]) for g in (a, b))
    assert F.cosine_similarity(a, b, dim=0) >= 0.9999
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)
