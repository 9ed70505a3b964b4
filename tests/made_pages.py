"""Made-up evaluations with real images, and pages of them, for the tests of the report page."""

import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from balanceddpo.evaluation.comparison import compare_models
from balanceddpo.evaluation.win_rates import score_table
from balanceddpo.models.image_store import ImageStore, image_file, write_image
from balanceddpo.models.sampling import image_seed
from balanceddpo.page.contents import About, Page
from balanceddpo.page.pictures import KeptPictures
from balanceddpo.page.report import write_report

SCORERS = ('hps', 'clip', 'aesthetic')


def noise_png(seed, size=12):
    "A PNG of noise."
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'PNG')
    return out.getvalue()


def made_store(folder, prompts, per, seed, size=12):
    "A store of noise: `per` images for each prompt, as loose files."
    rows = []
    for n, prompt in enumerate(prompts):
        name = sha256(prompt.encode()).hexdigest()[:16]
        for k in range(per):
            with Image.open(io.BytesIO(noise_png(10_000 * seed + 100 * n + k, size))) as image:
                write_image(folder / image_file(name, k), image)
            data = (folder / image_file(name, k)).read_bytes()
            rows.append((name, prompt, k, image_seed(name, k), image_file(name, k), data))
    index = pd.DataFrame(
        rows, columns=['prompt_id', 'prompt', 'image_index', 'seed', 'file', 'png']
    )
    index['sha256'] = [sha256(png).hexdigest() for png in index.pop('png')]
    inputs = dict(model={'unet': str(seed)}, prompts='p', images_per_prompt=per, steps=2)
    inputs |= dict(guidance=5.0, scheduler='ddim', dtype='fp32', seed=0)
    return ImageStore(folder, inputs, index.assign(model='m', flagged=False, constant=False))


@dataclass
class Made:
    "A made-up evaluation: what was found, the scores, the stores, and where its page is."

    found: object
    scores: pd.DataFrame
    drawn: list
    page: Path = Path()

    def grid(self, model, scorer, prompt_set):
        "Scores [prompts, images] in the order of the prompts."
        s = self.scores
        here = s[(s.model == model) & (s.prompt_set == prompt_set)]
        shape = here.prompt_id.nunique(), -1
        return here[scorer].to_numpy('float64').reshape(shape)


def made_evaluation(folder, sets, models=('base', 'ours'), per=3, scorers=SCORERS, size=12):
    "An evaluation with scores at random; sets: name -> prompts."
    rng = np.random.default_rng(7)
    tables, drawn = [], []
    for name, prompts in sets.items():
        for m, model in enumerate(models):
            store = made_store(folder / f'{model}-{name}', prompts, per, m + 1, size)
            shape = len(prompts), per
            scores = {k: rng.normal(0.3 * m, 1, shape) for k in scorers}
            ids = list(store.index.prompt_id.unique())
            seeds = store.index.seed.to_numpy().reshape(shape)
            tables.append(score_table(model, scores, ids, seeds, name))
            drawn.append((model, name, store))
    scores = pd.concat(tables, ignore_index=True)
    return Made(compare_models(scores, models, scorers), scores, drawn)


def made_page(folder, sets, about=None, **options):
    "The page of such an evaluation, in `folder`/out."
    more = {k: options.pop(k) for k in ('most', 'compact') if k in options}
    made = made_evaluation(folder, sets, **options)
    commands = {m: ['balanceddpo', 'sample', '--model', m] for m, _, _ in made.drawn}
    about = about or About(commands=commands)
    made.page = write_report(
        folder / 'out', made.found, made.scores, made.drawn, about=about, **more
    )
    return made


def bare_page(prompts, models=2, per=1, pictures=4, **fields):
    "A page of plain columns without statistics, whose images repeat a few pictures."
    n = len(prompts) * models * per
    data = [noise_png(k) for k in range(pictures)]
    hashes = [sha256(png).hexdigest() for png in data]
    rng = np.random.default_rng(0)
    page = Page(
        kind='models',
        title='made up',
        models=[{'name': f'model {k}', 'command': None} for k in range(models)],
        scorers=['hps', 'clip'],
        sets=['made up'],
        rows={
            'set': [0] * len(prompts),
            'id': [f'{k:016x}' for k in range(len(prompts))],
            'prompt': list(prompts),
        },
        images={
            'sha256': [hashes[k % pictures] for k in range(n)],
            'seed': list(range(n)),
            'scores': {k: [float(x) for x in rng.normal(size=n).round(6)] for k in ('hps', 'clip')},
        },
        per=per,
        **fields,
    )
    return page, dict(zip(hashes, data))


def beside(pictures, folder):
    "Pictures of `bare_page`, kept in a folder."
    folder.mkdir(parents=True)
    for sha, png in pictures.items():
        (folder / f'{sha[:16]}.png').write_bytes(png)
    return KeptPictures({sha[:16]: 'png' for sha in pictures}, None, frozenset(), folder.name)


def data_of(path):
    "What the script of a page reads."
    text = path.read_text(encoding='utf-8')
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def find_chromium():
    "A browser of this machine, or None."
    names = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
    return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, names)), None)
