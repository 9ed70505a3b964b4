"""Row 2: pairs with four scorers, from a Parquet file of JPEG bytes to votes; ours against the
published way and against a batched loop written with care.

All three read the same file, use the same loaded networks, the same preprocessing and the same
precision, and end with votes [n, 4]. Ours is what `balanceddpo label`
does: it checks every image by decoding it, names images by their content, writes checksummed
Parquet, reads it again and votes; the rivals keep arrays and write nothing.

The published way (the scoring functions of hpsv2, PickScore, CLIP and the LAION predictor): one
image and one prompt at a time, each scorer opening the image for itself and encoding the prompt
again for every image. That hpsv2 also loads its weights anew for each call is left out, to be
fair. It is slow, so it does `SHARE` of the pairs and its seconds are multiplied; it has no fixed
cost that this would hide.

With care: batches of 64 images decoded once for all scorers, each prompt encoded once a pair,
all in batches. It does not know that two of these scorers share a network (CLIP and Aesthetic of
the icon world do; of the published ones only `clip@l14` and Aesthetic), nor that prompts come
again.

`--full` labels 500 pairs, and has rows of its own."""

from __future__ import annotations

import io
import shutil
import tempfile
from itertools import count
from pathlib import Path

from benchmarks.timing import SIZE, Arm, Log, asked, versus

# by `make bench`, and with --full; nearly every pair has its own caption, so fewer is no easier
PAIRS, FULL = {'tiny': (20, 40), 'cpu': (150, 500)}[SIZE]
SHARE = {'tiny': 1.0, 'cpu': 0.1}[SIZE]  # of the pairs, for the published way
BATCH = 64  # images at once, for ours and for the careful loop
# of a score, in standard deviations over the images: rounding of fp32 in batches of another size
TOLERANCE = 1e-4


def write_source(path, n) -> Path:
    "The first `n` pairs of the icon world (JPEG, 64 pixels) as one Parquet file."
    from balanceddpo.data.pairs import read_pairs, write_pairs

    return write_pairs(read_pairs('icons', limit=n), path)


def load_four():
    """The icon world's HPS, CLIP, PickScore and Aesthetic on the CPU: three networks, for CLIP and
    Aesthetic share one."""
    from balanceddpo.scoring.scorers import PAPER_SCORERS, load_scorers

    return load_scorers([f'icons:{k}' for k in PAPER_SCORERS], device='cpu')


def rows_of(path, n):
    "Captions and JPEG bytes of the first `n` rows."
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=['caption', 'jpg_0', 'jpg_1']).slice(0, n).to_pylist()


def opened(data: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert('RGB')


def features(scorer, images, prompts):
    """Scores [n] of n images by one scorer's network and head, nothing remembered; one prompt an
    image."""
    import torch
    from torch.nn.functional import linear, normalize

    from balanceddpo.scoring.encoders import ImageBatch

    tower, batch = scorer.tower, ImageBatch(images)
    with torch.no_grad():
        x = normalize(
            tower.encode_images(
                torch.stack([tower.view(batch, i) for i in range(len(batch))]).to(
                    tower.device, tower.dtype
                )
            ).float(),
            dim=-1,
        )
        for weight, bias in getattr(scorer, 'head', ()):
            x = linear(x, weight.to(x), bias.to(x))
        if hasattr(scorer, 'head'):
            return x[:, 0]
        unique = list(dict.fromkeys(prompts))
        rows = [unique.index(p) for p in prompts]
        return scorer.scale * (x * normalize(tower.encode_texts(unique).float(), dim=-1)[rows]).sum(
            -1
        )


def as_published(path, scorers, n):
    """Scores fp32 [n, 2, K]: batch of one, the image opened and the prompt encoded for each scorer
    and image."""
    import torch

    one = lambda s, row, column: float(features(s, [opened(row[column])], [row['caption']]))
    return torch.tensor(
        [
            [[one(s, row, c) for s in scorers] for c in ('jpg_0', 'jpg_1')]
            for row in rows_of(path, n)
        ]
    ).numpy()


def with_care(path, scorers, n, size=BATCH):
    """Scores fp32 [n, 2, K]: images decoded once and in batches, each caption of a batch encoded
    once."""
    import torch

    rows, found = rows_of(path, n), []
    for i in range(0, n, size // 2):
        some = rows[i : i + size // 2]
        images = [opened(r[c]) for r in some for c in ('jpg_0', 'jpg_1')]
        prompts = [r['caption'] for r in some for _ in (0, 1)]
        found.append(
            torch.stack([features(s, images, prompts).cpu() for s in scorers], -1).unflatten(
                0, (-1, 2)
            )
        )
    return torch.cat(found).numpy()


def ours(path, scorers, folder):
    "Scores fp32 [n, 2, K] by `read_pairs`, `score_pairs`, `read_scores`, `read_ballot`."
    from balanceddpo.data.pairs import read_pairs
    from balanceddpo.scoring.tables import read_scores, score_pairs
    from balanceddpo.voting.labels import read_ballot

    return read_ballot(
        read_scores(
            score_pairs(read_pairs(path), scorers, folder, progress=False, batch_size=BATCH)
        )
    ).scores


def difference(a, b) -> float:
    """The largest difference of two arrays of scores, in each scorer's standard deviation over the
    images."""
    import numpy as np

    return float((np.abs(a - b) / b.reshape(-1, b.shape[-1]).std(0)).max())


def different_votes(a, b) -> int:
    "Votes that differ where the rival's two scores are further apart than rounding."
    import numpy as np

    from balanceddpo.voting.labels import votes

    decided = np.abs(b[:, 0] - b[:, 1]) > 2 * TOLERANCE * b.reshape(-1, b.shape[-1]).std(0)
    return int(((votes(a) != votes(b)) & decided).sum())


def gate(log, path, scorers, folder, n) -> None:
    "The three ways give the same scores and votes for the first `n` pairs."
    mine = ours(path, scorers, folder)[:n]
    for name, theirs in (
        ('published', as_published(path, scorers, n)),
        ('careful', with_care(path, scorers, n)),
    ):
        log.gate(
            2,
            f'labelling, {name}: largest difference of a score in standard deviations',
            difference(mine, theirs),
            TOLERANCE,
        )
        log.gate(2, f'labelling, {name}: votes that differ', different_votes(mine, theirs), 0)


def compare(log, folder, n=PAIRS, share=SHARE, **options) -> list:
    "Gate, then time the three from file to votes."
    from balanceddpo.voting.labels import votes

    folder, scorers, runs = Path(folder), load_four(), count()
    path, few = write_source(folder / 'pairs.parquet', n), max(1, int(n * share))
    gate(log, path, scorers, folder / 'gate', few)
    place = lambda: folder / f'scores-{next(runs)}'

    def fresh():
        for old in folder.glob('scores-*'):
            shutil.rmtree(old)

    return versus(
        log,
        2,
        {'as published, one at a time': '>= 3', 'a careful batched loop': '>= 1.3'},
        [
            Arm(f'labelling {n} pairs', lambda: votes(ours(path, scorers, place())), before=fresh),
            Arm(
                'as published, one at a time',
                lambda: votes(as_published(path, scorers, few)),
                scale=n / few,
            ),
            Arm('a careful batched loop', lambda: votes(with_care(path, scorers, n))),
        ],
        **options,
    )


def main() -> None:
    full = asked(__doc__, full=f'{FULL} pairs in the place of {PAIRS}').full
    n = FULL if full else PAIRS
    # `make bench` leaves the long run's rows
    log = Log('labelling' + '_full' * full, pairs=n, published_pairs=int(n * SHARE), batch=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        compare(log, folder, n)


if __name__ == '__main__':
    main()
