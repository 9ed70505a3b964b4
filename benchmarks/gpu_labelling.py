"""Labelling on a GPU: scorers with random weights in the published geometry, on pictures with the
entropy of photographs, and what bounds the rate."""

from __future__ import annotations

import io
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import random_networks
from benchmarks.gpu_clock import ROW
from benchmarks.gpu_rates import ROUNDS, Rate, device, fits, goal, measure, sizes
from benchmarks.timing import Log
from benchmarks.world import WORDS, meta_flops
from random_networks import word_tokenizer

SCORERS = {'H': 'the default scorers, four networks', 'L': 'clip@l14, three networks'}
BATCH = 64  # images through a network at once, as `balanceddpo label` has it
RATINGS = 14  # pairs a caption, as in Pick-a-Pic
DISTINCT = 8  # pictures that are drawn; every use of one is a file of its own
SHARPNESS = 0.42  # how slowly detail fades from one octave to the next: 168 KB at 512 pixels
MOST_ROUNDS = min(ROUNDS, 4)
SLOW_ROUNDS = 2  # on one core

CLIP_SIZES = {
    'L': dict(vision=(1024, 4096, 24, 16), text=(768, 3072, 12, 12), patch=14, projection=768),
    'H': dict(vision=(1280, 5120, 32, 16), text=(1024, 4096, 24, 16), patch=14, projection=1024),
    'tiny': dict(vision=(32, 64, 2, 2), text=(32, 64, 2, 2), patch=56, projection=32),
}


# --- pictures


def photograph(seed: int, pixels: int) -> bytes:
    """A JPEG (quality 95) of noise in octaves: as many bytes as a photograph of that size, 5.3 bits
    a pixel for a side of 512 `pixels`, so that it takes a photograph's time to decode."""
    import numpy as np
    from PIL import Image

    generator, total, side = np.random.default_rng(seed), np.zeros((pixels, pixels, 3)), 8
    while side <= pixels:
        noise = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=float) - 127.5) * (8 / side) ** SHARPNESS
        side *= 2
    bright = (127.5 + 55 * total / total.std()).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(bright).save(file, 'JPEG', quality=95)
    return file.getvalue()


def copy_of(jpeg: bytes, number: int) -> bytes:
    "The same picture as another file: a comment, `number`, after the mark that begins the image."
    text = str(number).encode()
    return jpeg[:2] + b'\xff\xfe' + (len(text) + 2).to_bytes(2, 'big') + text + jpeg[2:]


def photograph_pairs(n: int, pixels: int, distinct: int = DISTINCT) -> Iterator:
    "Yield n pairs of such pictures, no two files equal, each caption `RATINGS` times."
    from balanceddpo.data.pairs import make_pair

    pictures = [photograph(seed, pixels) for seed in range(distinct)]
    for i in range(n):
        caption = f'{" ".join(random.Random(i // RATINGS).choices(WORDS, k=8))} {i // RATINGS}'
        files = (copy_of(pictures[k % distinct], k) for k in (2 * i, 2 * i + 1))
        yield make_pair(caption, tuple(files), float(i % 2 == 0))


# --- scorers


def make_clip(kind: str):
    "A `CLIPModel` of ViT-L/14, ViT-H/14 or tiny geometry, 224 pixels, random weights."
    size = CLIP_SIZES[kind]
    names = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')

    def side(part):
        return dict(zip(names, size[part]), projection_dim=size['projection'])

    seeing = side('vision') | dict(patch_size=size['patch'], image_size=224)
    return random_networks.make_clip(seeing, side('text'))


def embedding_of(out):
    "transformers 5 wraps an embedding, transformers 4 does not."
    return getattr(out, 'pooler_output', out)


def make_encoder(kind: str, view: str, where, dtype):
    "An `Encoder` with random weights, made on the device `where`; `view` is 'pad' (HPS) or 'crop'."
    import torch

    from balanceddpo.scoring.encoders import Encoder
    from balanceddpo.scoring.pictures import cropped_view, padded_view

    with torch.device(where):
        model = make_clip(kind).to(dtype).eval().requires_grad_(False)
    tokenizer = word_tokenizer(WORDS, 77)

    def encode_texts(prompts):
        options = dict(padding='max_length', truncation=True, max_length=77, return_tensors='pt')
        ids = tokenizer(list(prompts), **options).input_ids
        return embedding_of(model.get_text_features(input_ids=ids.to(where)))

    def encode_images(x):
        return embedding_of(model.get_image_features(pixel_values=x))

    spread = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    seen = padded_view(224, *spread) if view == 'pad' else cropped_view(224, 224, *spread)
    return Encoder(f'{kind}-{view}', encode_images, encode_texts, seen, 100.0, where, dtype)


def real_scorers(where, dtype, clip: str = 'H', large: str = 'L', huge: str = 'H') -> list:
    """HPS and PickScore on a ViT-H/14 each, Aesthetic on a ViT-L/14; CLIP on another ViT-H/14, as
    by default, or ('L', as `clip@l14`) on Aesthetic's network."""
    import torch

    from balanceddpo.scoring.scorers import AestheticHead, AestheticScorer, PromptScorer

    encoder, width = make_encoder(large, 'crop', where, dtype), CLIP_SIZES[large]['projection']
    padded, cropped = (make_encoder(huge, view, where, dtype) for view in ('pad', 'crop'))
    seen = encoder if clip == 'L' else make_encoder(huge, 'crop', where, dtype)
    head = AestheticHead(((torch.randn(1, width), torch.zeros(1)),))
    return [
        PromptScorer('hps', 'hps', padded, 1.0, BATCH),
        PromptScorer('clip', 'clip', seen, 1.0, BATCH),
        PromptScorer('pickscore', 'pickscore', cropped, 100.0, BATCH),
        AestheticScorer('aesthetic', 'aesthetic', encoder, head, BATCH),
    ]


# --- what can be counted


@cache
def clip_flops(kind: str) -> tuple[float, float]:
    "FLOPs of an image and of a caption through a CLIP."
    import torch

    def see(model):
        return embedding_of(model.get_image_features(pixel_values=torch.empty(1, 3, 224, 224)))

    def read(model):
        return embedding_of(model.get_text_features(input_ids=torch.zeros(1, 77, dtype=torch.long)))

    return meta_flops(partial(make_clip, kind), see), meta_flops(partial(make_clip, kind), read)


def images_flops(clip: str = 'H') -> float:
    """FLOPs of a pair's images: HPS and PickScore on a ViT-H/14 each, Aesthetic on a ViT-L/14, CLIP
    on a ViT-H/14 of its own or (`clip@l14`) on Aesthetic's network."""
    networks = 'HHL' if clip == 'L' else 'HHLH'
    return float(sum(2 * clip_flops(kind)[0] for kind in networks))


def scorer_flops(clip: str = 'H') -> float:
    "FLOPs a pair, its images and its caption; Aesthetic reads no captions."
    return images_flops(clip) + float(sum(clip_flops(kind)[1] for kind in 'HH' + clip))


# --- the part


@contextmanager
def cores(number: int) -> Iterator[None]:
    "Work on so many cores: threads that start in here, torch's, and what `os` tells the package."
    import torch

    threads, before = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(before)[:number])
        torch.set_num_threads(min(number, threads))
        with patch.object(os, 'cpu_count', lambda: number):
            yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def run_networks(scorers: list, n: int) -> None:
    "Random images for `n` pairs through every distinct network."
    import torch

    images = min(BATCH, 2 * n)
    with torch.no_grad():
        for encoder in distinct_encoders(scorers):
            pixels = torch.randn(images, 3, 224, 224, device=encoder.device, dtype=encoder.dtype)
            for _ in range(2 * n // images):
                encoder.encode_images(pixels)


def distinct_encoders(scorers: list) -> list:
    "The networks of some scorers, each once."
    return list({id(s.encoder): s.encoder for s in scorers}.values())


@contextmanager
def without_networks(scorers: list) -> Iterator[None]:
    "Random embeddings in the place of what the image networks say of pixels, at no cost."
    import torch

    with ExitStack() as stack:
        for encoder in distinct_encoders(scorers):
            width = encoder.texts(['a']).shape[-1]

            def drawn(pixels, width=width):
                return torch.randn(len(pixels), width, device=pixels.device)

            stack.enter_context(patch.object(encoder, 'encode_images', drawn))
        yield


def find_bound(rest: float, networks: float, whole: float) -> str:
    """What bounds labelling, from the pairs a second of its networks alone, of all the rest alone,
    and of the whole: stages that overlap run at the slower one's rate, stages in turn at less."""
    slower = 'the networks' if networks < rest else 'reading and preparing'
    overlapped, in_turn = min(rest, networks), 1 / (1 / rest + 1 / networks)
    if whole >= (overlapped + in_turn) / 2:
        return f'bound by {slower}'
    return f'the networks wait for the rest, and the rest for them; {slower} take longer'


@dataclass(frozen=True)
class Place:
    "Where labelling is measured: the side of the pictures in pixels, CPU cores, and for how long."

    pixels: int
    cores: int
    pairs: int
    rounds: int

    def __str__(self) -> str:
        return f'{self.pixels} pixels, {self.cores} core{"s" * (self.cores > 1)}'


def places() -> list[Place]:
    "By size of the picture: all cores, then one; fewer pairs where a pair takes longer."
    s, many = sizes(), len(os.sched_getaffinity(0))
    found = []
    for pixels in s.pixels:
        pairs = max(4, round(s.label_pairs * (s.pixels[0] / pixels) ** 2))
        found.append(Place(pixels, many, pairs, MOST_ROUNDS))
        found.append(Place(pixels, 1, max(4, pairs // 4), min(MOST_ROUNDS, SLOW_ROUNDS)))
    return found


def labelling(log: Log) -> None:
    "The whole, its networks alone and the rest alone, by size of the pictures and number of cores."
    warnings.simplefilter('ignore')  # random networks hardly tell images apart, and say so
    with TemporaryDirectory() as folder:
        sources = write_sources(Path(folder))
        for clip, which in SCORERS.items():
            with fits(log, f'labelling, {which}'):
                scorers = real_scorers(device(), precision(), clip, *sizes().encoders)
                networks = measure_networks(log, scorers, clip)
                for place in places() if clip == 'H' else places()[:1]:
                    whole = measure_whole(log, place, sources, scorers, clip)
                    rest = measure_rest(log, place, sources, scorers, clip)
                    keep_bound(log, f'labelling, {which}, {place}', rest, networks, whole)
                del scorers
        for place in places():
            measure_reading(log, place, sources)


def precision():
    "The torch dtype of the networks."
    from balanceddpo.core.devices import pick_dtype

    return pick_dtype(sizes().precision)


def write_sources(folder: Path) -> dict[int, Path]:
    "A Parquet file of pairs for each size of picture."
    from balanceddpo.data.pairs import write_pairs

    most = {}
    for place in places():
        most[place.pixels] = max(place.pairs, most.get(place.pixels, 0))
    return {
        pixels: write_pairs(photograph_pairs(pairs, pixels), folder / f'{pixels}.parquet')
        for pixels, pairs in most.items()
    }


def measure_reading(log: Log, place: Place, sources: dict) -> None:
    "Pairs a second that are read and checked, with nothing done with them."
    from balanceddpo.data.sources import read_pairs

    def read():
        return sum(1 for _ in read_pairs(sources[place.pixels], limit=place.pairs))

    with cores(place.cores):
        rate = Rate(f'reading and checking alone, {place}: pairs', place.pairs)
        measure(log, rate, read, place.rounds)


def measure_networks(log: Log, scorers: list, clip: str) -> float:
    "Median pairs a second of the image networks alone, on pixels that are on the device already."
    n = sizes().label_pairs
    rate = Rate(f'networks alone, {SCORERS[clip]}: pairs', n, images_flops(clip))
    return median(measure(log, rate, partial(run_networks, scorers, n), MOST_ROUNDS))


def measure_whole(log: Log, place: Place, sources: dict, scorers: list, clip: str) -> float:
    "Median pairs a second from the Parquet file to scores on disk."
    what, first = f'labelling by {SCORERS[clip]}, {place}: pairs', place == places()[0]
    wanted = goal(f'labelling, {clip}') if first else ''
    rate = Rate(what, place.pairs, images_flops(clip), wanted)
    return median(score_all(log, rate, place, sources, scorers))


def measure_rest(log: Log, place: Place, sources: dict, scorers: list, clip: str) -> float:
    "Median pairs a second of the same with no work for the image networks."
    rate = Rate(f'all but the image networks, {SCORERS[clip]}, {place}: pairs', place.pairs)
    with without_networks(scorers):
        return median(score_all(log, rate, place, sources, scorers))


def score_all(log: Log, rate: Rate, place: Place, sources: dict, scorers: list) -> list[float]:
    "The rates at which `balanceddpo label` scores the pairs of a place, each time in a new folder."
    from balanceddpo.data.sources import PairSource
    from balanceddpo.scoring.tables import score_pairs

    with TemporaryDirectory() as folder, cores(place.cores):
        runs = count()

        def score():
            pairs, out = PairSource(str(sources[place.pixels]), limit=place.pairs), next(runs)
            score_pairs(pairs, scorers, Path(folder) / f'{out}', progress=False, batch_size=BATCH)

        return measure(log, rate, score, place.rounds)


def keep_bound(log: Log, what: str, rest: float, networks: float, whole: float) -> None:
    "Keep and print what bounds labelling in one place."
    rates = {'rest': rest, 'networks': networks, 'whole': whole}
    found = find_bound(**rates)
    log.add(row=ROW, note=f'{what}: {found}', rates=rates)
    print(f'{what}: {found}', flush=True)
