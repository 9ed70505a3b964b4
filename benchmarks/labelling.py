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

from benchmarks.timing import SIZE, Arm, Log, read_command_line, time_arms

ROW = 2
PUBLISHED_WAY, CAREFUL_WAY = 'as published, one at a time', 'a careful batched loop'  # arms
GOALS = {PUBLISHED_WAY: '>= 3', CAREFUL_WAY: '>= 1.3'}
PICTURES = ('jpg_0', 'jpg_1')  # columns of a pair
# by `make bench`, and with --full; nearly every pair has its own caption, so fewer is no easier
PAIRS, FULL = {'tiny': (20, 40), 'cpu': (150, 500)}[SIZE]
SHARE = {'tiny': 1.0, 'cpu': 0.1}[SIZE]  # of the pairs, for the published way
BATCH = 64  # images at once, for ours and for the careful loop
# of a score, in standard deviations over the images: rounding of fp32 in batches of another size
TOLERANCE = 1e-4


def write_source(path, n) -> Path:
    "The first `n` pairs of the icon world (JPEG, 64 pixels) as one Parquet file."
    from balanceddpo.data.pairs import write_pairs
    from balanceddpo.data.sources import read_pairs

    return write_pairs(read_pairs('icons', limit=n), path)


def load_four():
    """The icon world's HPS, CLIP, PickScore and Aesthetic on the CPU: three networks, for CLIP and
    Aesthetic share one."""
    from balanceddpo.scoring.registry import PAPER_SCORERS, load_scorers

    return load_scorers([f'icons:{k}' for k in PAPER_SCORERS], device='cpu')


def read_rows(path, n):
    "Captions and JPEG bytes of the first `n` rows."
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=['caption', *PICTURES]).slice(0, n).to_pylist()


def open_image(data: bytes):
    "A PIL image, RGB, from the bytes of a file."
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert('RGB')


def fresh_scores(scorer, images, prompts):
    """Scores [n] of n images by one scorer's network and head, nothing remembered; one prompt an
    image."""
    import torch
    from torch.nn.functional import linear, normalize

    from balanceddpo.scoring.pictures import ImageBatch

    encoder, batch = scorer.encoder, ImageBatch(images)
    with torch.no_grad():
        pixels = encoder.view.pixels(batch).to(encoder.device, encoder.dtype)
        seen = normalize(encoder.encode_images(pixels).float(), dim=-1)
        if hasattr(scorer, 'head'):
            for weight, bias in scorer.head.layers:
                seen = linear(seen, weight.to(seen), bias.to(seen))
            return seen[:, 0]
        unique = list(dict.fromkeys(prompts))
        rows = [unique.index(prompt) for prompt in prompts]
        read = normalize(encoder.encode_texts(unique).float(), dim=-1)[rows]
        return scorer.scale * (seen * read).sum(-1)


def scores_as_published(path, scorers, n):
    """Scores fp32 [n, 2, K]: batch of one, the image opened and the prompt encoded for each scorer
    and image."""
    import torch

    def score(scorer, row, column):
        return float(fresh_scores(scorer, [open_image(row[column])], [row['caption']]))

    found = []
    for row in read_rows(path, n):
        found.append([[score(s, row, column) for s in scorers] for column in PICTURES])
    return torch.tensor(found).numpy()


def scores_with_care(path, scorers, n, size=BATCH):
    """Scores fp32 [n, 2, K]: images decoded once and in batches, each caption of a batch encoded
    once."""
    import torch

    rows, found = read_rows(path, n), []
    for i in range(0, n, size // 2):
        some = rows[i : i + size // 2]
        images = [open_image(row[column]) for row in some for column in PICTURES]
        prompts = [row['caption'] for row in some for _ in PICTURES]
        scores = torch.stack([fresh_scores(s, images, prompts).cpu() for s in scorers], -1)
        found.append(scores.unflatten(0, (-1, 2)))
    return torch.cat(found).numpy()


def our_scores(path, scorers, folder):
    "Scores fp32 [n, 2, K] by `score_pairs`, `read_scores`, `read_ballot`."
    from balanceddpo.data.sources import PairSource
    from balanceddpo.scoring.tables import read_scores, score_pairs
    from balanceddpo.voting.votes import read_ballot

    pairs = PairSource(str(path))
    kept = score_pairs(pairs, scorers, folder, progress=False, batch_size=BATCH)
    return read_ballot(read_scores(kept)).scores


def difference(a, b) -> float:
    """The largest difference of two arrays of scores, in each scorer's standard deviation over the
    images."""
    import numpy as np

    return float((np.abs(a - b) / deviations(b)).max())


def deviations(scores):
    "The standard deviation of each scorer's scores [n, 2, K] over the images: [K]."
    return scores.reshape(-1, scores.shape[-1]).std(0)


def different_votes(a, b) -> int:
    "Votes that differ where the rival's two scores are further apart than rounding."
    import numpy as np

    from balanceddpo.voting.votes import votes

    decided = np.abs(b[:, 0] - b[:, 1]) > 2 * TOLERANCE * deviations(b)
    return int(((votes(a) != votes(b)) & decided).sum())


def gate(log, path, scorers, folder, n) -> None:
    "The three ways give the same scores and votes for the first `n` pairs."
    mine = our_scores(path, scorers, folder)[:n]
    for name, way in (('published', scores_as_published), ('careful', scores_with_care)):
        theirs = way(path, scorers, n)
        what = f'labelling, {name}: largest difference of a score in standard deviations'
        log.gate(ROW, what, difference(mine, theirs), TOLERANCE)
        log.gate(ROW, f'labelling, {name}: votes that differ', different_votes(mine, theirs), 0)


def compare(log, folder, n=PAIRS, share=SHARE, **options) -> list:
    "Gate, then time the three from file to votes."
    from balanceddpo.voting.votes import votes

    folder, scorers, runs = Path(folder), load_four(), count()
    path, few = write_source(folder / 'pairs.parquet', n), max(1, int(n * share))
    gate(log, path, scorers, folder / 'gate', few)

    def remove_kept_scores():
        for old in folder.glob('scores-*'):
            shutil.rmtree(old)

    def label():
        votes(our_scores(path, scorers, folder / f'scores-{next(runs)}'))

    def label_as_published():
        votes(scores_as_published(path, scorers, few))

    def label_with_care():
        votes(scores_with_care(path, scorers, n))

    arms = [
        Arm(f'labelling {n} pairs', label, before=remove_kept_scores),
        Arm(PUBLISHED_WAY, label_as_published, scale=n / few),
        Arm(CAREFUL_WAY, label_with_care),
    ]
    return time_arms(log, ROW, GOALS, arms, **options)


def main() -> None:
    "The few pairs of `make bench`, or those of `--full`."
    full = read_command_line(__doc__, full=f'{FULL} pairs in the place of {PAIRS}').full
    n = FULL if full else PAIRS
    # `make bench` leaves the long run's rows
    log = Log(
        'labelling_full' if full else 'labelling',
        pairs=n,
        published_pairs=int(n * SHARE),
        batch=BATCH,
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(log, folder, n)


if __name__ == '__main__':
    main()
