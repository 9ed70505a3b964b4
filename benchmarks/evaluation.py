"""Row 3: from prompts to win rates of one model over another; ours against a `diffusers` pipeline
called a prompt at a time with its images scored one at a time.

Both load the two models from the same folders, use the same sampler, steps, guidance and
starting noise, and the same loaded scorers, and end with win rates by the best of a prompt's
images. Ours writes PNGs with an index and hashes, keeps scores in Parquet and bootstraps
intervals; the rival keeps its images in memory, writes nothing and has no intervals. The rival
draws all images of a prompt in one call, which is kinder than the usual script that draws one.

A second arm of ours compares another model with the same base, whose images and scores are there
already: its share of the first arm's time should be a half."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from balanceddpo.scoring.registry import PAPER_SCORERS
from benchmarks.labelling import fresh_scores, load_four
from benchmarks.timing import SIZE, Arm, Log, read_command_line, time_arms

ROW = 3
RIVAL, BASE_KEPT = 'a pipeline a prompt at a time', 'ours, base images and scores kept'  # arms
GOALS = {RIVAL: '>= 1.5', BASE_KEPT: '<= 0.6'}
# few steps and prompts, so that ten rounds fit; the shares of the work stay alike
PROMPTS, IMAGES, STEPS = {'tiny': (2, 2, 2), 'cpu': (6, 2, 5)}[SIZE]
GUIDANCE, SCHEDULER = 3.0, 'dpm++'  # the icons scale's
BATCH = 16  # images ours draws at once
CHANGE = 0.1  # relative size of the random change that makes another model of the base
TOLERANCE = 0.005  # of a score, in standard deviations: 8-bit images after batches of another size


def write_model(folder, seed) -> Path:
    """The icon world's model with its denoiser's weights changed a little at random: a second model
    to compare."""
    import torch

    from balanceddpo.models.families import load_family
    from balanceddpo.models.saving import save_pipeline

    network = load_family('icons', device='cpu', components=('denoiser',)).model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise * weight.std().nan_to_num() * CHANGE)
    return save_pipeline('icons', network, folder)


def config_of(model, batch=BATCH):
    "The settings by which ours draws images of a model, `batch` at once."
    from balanceddpo.models.config import SampleConfig

    return SampleConfig(
        model=str(model),
        images_per_prompt=IMAGES,
        steps=STEPS,
        guidance=GUIDANCE,
        scheduler=SCHEDULER,
        batch_size=batch,
        device='cpu',
    )


def our_scores(name, model, prompts, scorers, folder):
    "DataFrame: the scores of a model's images; drawn and scored if they are not in `folder` yet."
    from balanceddpo.evaluation.scores import score_images
    from balanceddpo.models.sampling import sample

    store = sample(config_of(model), prompts, out=folder / name, progress=False)
    return score_images(store, scorers, out=folder / f'{name}.parquet', model=name, progress=False)


def our_win_rates(name, models, prompts, scorers, folder):
    "DataFrame: win rates of model `name` over the base."
    import pandas as pd

    from balanceddpo.evaluation.win_rates import compare

    tables = pd.concat([our_scores(n, models[n], prompts, scorers, folder) for n in ('base', name)])
    return compare(tables, [(name, 'base')], PAPER_SCORERS)


def rival_images(model, prompts) -> list:
    "PIL images [prompts][images] by one pipeline call a prompt."
    import torch
    from diffusers import StableDiffusionPipeline

    from balanceddpo.models.sampling import image_seed, initial_latents, make_scheduler

    pipeline = StableDiffusionPipeline.from_pretrained(
        model, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).to(torch.float32)
    pipeline.scheduler = make_scheduler(SCHEDULER, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size
    shape = (pipeline.unet.config.in_channels, side, side)
    options = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    found = []
    for identity, prompt in zip(prompts.ids, prompts.prompts):
        latents = initial_latents([image_seed(identity, k) for k in range(IMAGES)], shape)
        with torch.inference_mode():
            drawn = pipeline(prompt, num_images_per_prompt=IMAGES, latents=latents, **options)
        found.append(drawn.images)
    return found


def rival_scores(model, prompts, scorers):
    "Scores fp32 [prompts, images, K], each image scored by itself."
    import numpy as np

    def scores_of(image, prompt):
        return [float(fresh_scores(scorer, [image], [prompt])) for scorer in scorers]

    found = []
    for images, prompt in zip(rival_images(model, prompts), prompts.prompts):
        found.append([scores_of(image, prompt) for image in images])
    return np.array(found, 'float32')


def rival_win_rates(name, models, prompts, scorers):
    """Win rates [K] of model `name` over the base: the share of prompts at which its best image is
    better."""
    own, base = (rival_scores(models[n], prompts, scorers).max(1) for n in (name, 'base'))
    return ((own > base) + (own == base) / 2).mean(0)


def gate(log, models, prompts, scorers, folder) -> None:
    """Same images, same scores, same win rates: scores within 8-bit rounding, and no win rate
    differs by more than the prompts that are too close to call; those are few."""
    import numpy as np

    theirs = {name: rival_scores(models[name], prompts, scorers) for name in ('base', 'a')}
    for name, scores in theirs.items():
        table = our_scores(name, models[name], prompts, scorers, folder)
        mine = table[list(PAPER_SCORERS)].to_numpy().reshape(scores.shape)
        apart = float((np.abs(mine - scores) / deviations(scores)).max())
        what = f'evaluation, {name}: largest difference of a score in standard deviations'
        log.gate(ROW, what, apart, TOLERANCE)
    difference = np.abs(theirs['a'].max(1) - theirs['base'].max(1))
    near = difference <= 2 * TOLERANCE * deviations(theirs['base'])
    what = 'evaluation: share of prompts that are decided'
    log.gate(ROW, what, 1 - near.mean(), 0.8, at_least=True)
    mine = our_win_rates('a', models, prompts, scorers, folder)['win_rate'].to_numpy()
    apart = np.abs(mine - rival_win_rates('a', models, prompts, scorers))
    beyond = float(np.maximum(apart * len(prompts) - near.sum(0), 0).max())
    log.gate(ROW, 'evaluation: prompts by which a win rate differs, beyond those', beyond, 1e-6)


def deviations(scores):
    "The standard deviation of each scorer's scores [prompts, images, K] over all images: [K]."
    return scores.reshape(-1, len(PAPER_SCORERS)).std(0)


def hide_progress_bars() -> None:
    "No progress bars from loading."
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()


def compare(log, folder, **options) -> list:
    """Gate, then time both with nothing drawn yet, and ours for another model whose base is there
    from the arm before it."""
    from balanceddpo.data.prompts import read_prompts
    from balanceddpo.models.folders import local_folder

    hide_progress_bars()
    folder, scorers = Path(folder), load_four()
    prompts = read_prompts('icons:pickapic', limit=PROMPTS)
    models = {
        'base': local_folder('icons'),
        'a': write_model(folder / 'model-a', 1),
        'b': write_model(folder / 'model-b', 2),
    }
    gate(log, models, prompts, scorers, folder / 'gate')
    arms = evaluation_arms(models, prompts, scorers, folder / 'runs')
    return time_arms(log, ROW, GOALS, arms, **options)


def evaluation_arms(models, prompts, scorers, runs) -> list[Arm]:
    "Ours with nothing drawn yet, the rival, and ours with the base's images and scores in `runs`."

    def forget(*names):
        for scorer in scorers:
            scorer.encoder.forget()
        for name in names:
            shutil.rmtree(runs / name, ignore_errors=True)
            (runs / f'{name}.parquet').unlink(missing_ok=True)

    def ours(name):
        return our_win_rates(name, models, prompts, scorers, runs)

    def rival():
        return rival_win_rates('a', models, prompts, scorers)

    everything = f'evaluation of {PROMPTS} prompts'
    return [
        Arm(everything, lambda: ours('a'), before=lambda: forget('base', 'a')),
        Arm(RIVAL, rival),
        Arm(BASE_KEPT, lambda: ours('b'), before=lambda: forget('b')),
    ]


def main() -> None:
    "Compare, with the sizes above."
    read_command_line(__doc__)
    log = Log('evaluation', prompts=PROMPTS, images=IMAGES, steps=STEPS, batch=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        compare(log, folder)


if __name__ == '__main__':
    main()
