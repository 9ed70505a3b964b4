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

from balanceddpo.scoring.scorers import PAPER_SCORERS
from benchmarks.labelling import features, load_four
from benchmarks.timing import SIZE, Arm, Log, asked, versus

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

    from balanceddpo.models.families import load_family, save_pipeline

    network, g = (
        load_family('icons', device='cpu', components=('denoiser',)).model,
        torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=g) * p.std().nan_to_num() * CHANGE)
    return save_pipeline('icons', network, folder)


def config_of(model, batch=BATCH):
    from balanceddpo.models.sampling import SampleConfig

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
    from balanceddpo.evaluation.win_rates import score_images
    from balanceddpo.models.sampling import sample

    store = sample(config_of(model), prompts, out=folder / name, progress=False)
    return score_images(store, scorers, out=folder / f'{name}.parquet', model=name, progress=False)


def ours(name, models, prompts, scorers, folder):
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
    shape, found = (pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2), []
    for i, prompt in zip(prompts.ids, prompts.prompts):
        latents = initial_latents([image_seed(i, k) for k in range(IMAGES)], shape)
        with torch.inference_mode():
            found.append(
                pipeline(
                    prompt,
                    num_images_per_prompt=IMAGES,
                    latents=latents,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                ).images
            )
    return found


def rival_scores(model, prompts, scorers):
    "Scores fp32 [prompts, images, K], each image scored by itself."
    import numpy as np

    return np.array(
        [
            [[float(features(s, [image], [prompt])) for s in scorers] for image in row]
            for row, prompt in zip(rival_images(model, prompts), prompts.prompts)
        ],
        'float32',
    )


def rival(name, models, prompts, scorers):
    """Win rates [K] of model `name` over the base: the share of prompts at which its best image is
    better."""
    a, b = (rival_scores(models[n], prompts, scorers).max(1) for n in (name, 'base'))
    return ((a > b) + (a == b) / 2).mean(0)


def gate(log, models, prompts, scorers, folder) -> None:
    """Same images, same scores, same win rates: scores within 8-bit rounding, and no win rate
    differs by more than the prompts that are too close to call; those are few."""
    import numpy as np

    theirs = {n: rival_scores(models[n], prompts, scorers) for n in ('base', 'a')}
    for name, scores in theirs.items():
        mine = (
            our_scores(name, models[name], prompts, scorers, folder)[list(PAPER_SCORERS)]
            .to_numpy()
            .reshape(scores.shape)
        )
        apart = float((np.abs(mine - scores) / scores.reshape(-1, 4).std(0)).max())
        log.gate(
            3,
            f'evaluation, {name}: largest difference of a score in standard deviations',
            apart,
            TOLERANCE,
        )
    near = np.abs(theirs['a'].max(1) - theirs['base'].max(1)) <= 2 * TOLERANCE * theirs[
        'base'
    ].reshape(-1, 4).std(0)
    log.gate(
        3, 'evaluation: share of prompts that are decided', 1 - near.mean(), 0.8, at_least=True
    )
    apart = np.abs(
        ours('a', models, prompts, scorers, folder)['win_rate'].to_numpy()
        - rival('a', models, prompts, scorers)
    )
    log.gate(
        3,
        'evaluation: prompts by which a win rate differs, beyond those',
        float(np.maximum(apart * len(prompts) - near.sum(0), 0).max()),
        1e-6,
    )


def quiet() -> None:
    "No progress bars from loading."
    from diffusers.utils import logging as d
    from transformers.utils import logging as t

    d.disable_progress_bar()
    t.disable_progress_bar()


def compare(log, folder, **options) -> list:
    """Gate, then time both with nothing drawn yet, and ours for another model whose base is there
    from the arm before it."""
    from balanceddpo.data.pairs import read_prompts
    from balanceddpo.models.families import local_folder

    quiet()
    folder, scorers, prompts = (
        Path(folder),
        load_four(),
        read_prompts('icons:pickapic', limit=PROMPTS),
    )
    models = {
        'base': local_folder('icons'),
        'a': write_model(folder / 'model-a', 1),
        'b': write_model(folder / 'model-b', 2),
    }
    gate(log, models, prompts, scorers, folder / 'gate')
    runs = folder / 'runs'

    def forget(*names):
        for s in scorers:
            s.tower.forget()
        for n in names:
            shutil.rmtree(runs / n, ignore_errors=True)
            (runs / f'{n}.parquet').unlink(missing_ok=True)

    return versus(
        log,
        3,
        {'a pipeline a prompt at a time': '>= 1.5', 'ours, base images and scores kept': '<= 0.6'},
        [
            Arm(
                f'evaluation of {PROMPTS} prompts',
                lambda: ours('a', models, prompts, scorers, runs),
                before=lambda: forget('base', 'a'),
            ),
            Arm('a pipeline a prompt at a time', lambda: rival('a', models, prompts, scorers)),
            Arm(
                'ours, base images and scores kept',
                lambda: ours('b', models, prompts, scorers, runs),
                before=lambda: forget('b'),
            ),
        ],
        **options,
    )


def main() -> None:
    asked(__doc__)
    log = Log('evaluation', prompts=PROMPTS, images=IMAGES, steps=STEPS, batch=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        compare(log, folder)


if __name__ == '__main__':
    main()
