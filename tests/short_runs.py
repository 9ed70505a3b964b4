"""Inputs of short training runs, and the runs, for several tests."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from PIL import Image

import balanceddpo
from balanceddpo.data.pairs import make_pair
from balanceddpo.models.config import EncodeConfig
from balanceddpo.models.encoding import EncodedPairs, encode_pairs
from balanceddpo.models.families import load_family
from balanceddpo.training.checkpoints import newest_checkpoint
from balanceddpo.training.config import TrainConfig
from balanceddpo.training.loop import start, train
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs, read_labels, write_labels
from tiny_models import tiny_folder

LN2 = torch.tensor(math.log(2)).item()  # as fp32 holds it
SIZE, N = 32, 10


def picture(i):
    small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(buffer, 'PNG')
    return buffer.getvalue()


def score_rows(pair_ids, seed=0):
    """A table of scores of four scorers, as `score_pairs` writes it: three agree, the fourth does
    not always; the third pair is tied, the fourth not scored."""
    draw = np.random.default_rng(seed)
    scores = draw.random((len(pair_ids), 2, 4), dtype=np.float32)
    scores[:, 0, :3] += draw.choice([-2, 2], (len(pair_ids), 1))
    scores[2] = [[1, 1, 0, 0], [0, 0, 1, 1]]
    scores[3] = np.nan
    rows = [(p, slot, 1.0) for p in pair_ids for slot in (0, 1)]
    return pd.DataFrame(rows, columns=['pair_id', 'slot', 'label_0']).join(
        pd.DataFrame(scores.reshape(-1, 4), columns=['hps', 'clip', 'pickscore', 'aesthetic'])
    )


def inputs_maker(root):
    "kind -> a tiny pipeline folder, its encoded pairs and their labels, in `root`; made once."
    cache = {}

    def make(kind='sd15'):
        if kind not in cache:
            base = tiny_folder(root / kind, kind)
            pairs = [
                make_pair(
                    ('a red cat', 'a dog', 'two dogs')[i % 3],
                    (picture(2 * i), picture(2 * i + 1)),
                    1.0,
                )
                for i in range(N + 2)
            ]
            encoded = encode_pairs(
                pairs,
                load_family(base, device='cpu'),
                EncodeConfig(model=str(base), resolution=SIZE, storage='fp32'),
                root / f'{kind}-encoded',
                progress=False,
            )
            write_labels(
                root / f'{kind}-labels.parquet',
                label_pairs(score_rows(encoded.pair_ids)),
                LabelConfig(),
            )
            cache[kind] = base, root / f'{kind}-encoded', root / f'{kind}-labels.parquet'
        base, folder, file = cache[kind]
        labels, label_config = read_labels(file)
        return SimpleNamespace(
            base=base,
            folder=folder,
            file=file,
            encoded=EncodedPairs.open(folder),
            labels=labels,
            label_config=label_config,
        )

    return make


def settings(inputs, **changes):
    return TrainConfig(
        **dict(
            model=str(inputs.base),
            resolution=SIZE,
            max_steps=12,
            batch_size=4,
            micro_batch_size=2,
            learning_rate=1e-3,
            beta=500.0,
            device='cpu',
            tracker='none',
            lora_rank=4,
            checkpoint_every=100,
        )
        | changes
    )


def labelled(inputs):
    return LabelledPairs(inputs.encoded, inputs.labels, inputs.label_config)


def go(inputs, out, family=None, resume=True, callbacks=(), **changes):
    "A whole run; the folder of its model."
    return train(
        settings(inputs, **changes),
        labelled(inputs),
        out,
        family=family,
        resume=resume,
        progress=False,
        callbacks=callbacks,
    )


def begin(inputs, out, **changes):
    "A run before its first step."
    return start(settings(inputs, **changes), labelled(inputs), out)


def metrics(out, drop=('seconds',)):
    return [
        {k: v for k, v in json.loads(line).items() if k not in drop}
        for line in (Path(out) / 'metrics.jsonl').read_text().splitlines()
    ]


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
    for file in (a / 'model').rglob('*.safetensors'):
        assert file.read_bytes() == (b / file.relative_to(a)).read_bytes(), file


CHILD = """
import sys, os, signal, json
sys.path[:0] = {paths!r}
import torch; torch.set_num_threads({threads})
from balanceddpo.models.encoding import EncodedPairs
from balanceddpo.training import loop as training
from balanceddpo.training.config import TrainConfig
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.labels import read_labels
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
pairs = LabelledPairs(EncodedPairs.open(job['encoded']), labels, label_config)
training.train(TrainConfig(**config), pairs, job['out'], progress=False)
"""


def spawn(inputs, out, kill_at=None, env=None, **changes):
    "Train in another process, which kills itself at its `kill_at`-th micro-step."
    job = dict(
        config=asdict(settings(inputs, **changes)),
        encoded=str(inputs.folder),
        labels=str(inputs.file),
        out=str(out),
        kill_at=kill_at,
    )
    script = CHILD.format(
        paths=[str(Path(__file__).parent), str(Path(balanceddpo.__file__).parents[1])],
        threads=torch.get_num_threads(),
    )
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', script, json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )
