"""Pairs that are encoded when a step asks for them: the same tensors and the same training as with
kept latents, and a word where a pair is no longer what was listed."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import make_pair, write_pairs
from balanceddpo.data.sources import PairSource
from balanceddpo.models import lazy_shards
from balanceddpo.models.config import EncodeConfig
from balanceddpo.models.encoders import encoding_family
from balanceddpo.models.encoding import (
    EncodedPairs,
    empty_text,
    encode_pairs,
    mirrored_moments,
    picture_sizes,
)
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs
from short_runs import assert_equal_runs, go, metrics, picture, score_rows
from tiny_models import tiny_folder

SIZE, N = 32, 10
CAPTIONS = ('a red cat', 'a dog', 'two dogs')
NEAR = dict(atol=2e-5, rtol=2e-5)  # convolutions round otherwise in batches of another size


def some_pairs():
    "Ten pairs and another rating of the first."
    pairs = [
        make_pair(CAPTIONS[i % 3], (picture(2 * i), picture(2 * i + 1)), float(i % 2))
        for i in range(N)
    ]
    return [*pairs, pairs[0]]


@pytest.fixture
def place(tmp_path):
    "A folder with a tiny model and a table of pairs."
    tiny_folder(tmp_path / 'model')
    write_pairs(some_pairs(), tmp_path / 'pairs.parquet')
    return tmp_path


def both_ways(place, **changes):
    "The pairs with kept latents, and lazily."
    config = EncodeConfig(
        model=str(place / 'model'), resolution=SIZE, storage='fp32', batch_size=3, **changes
    )
    pairs, family = PairSource(str(place / 'pairs.parquet')), encoding_family(config, 'cpu')
    kept = encode_pairs(pairs, family, config, place / 'kept', progress=False)
    lazily = replace(config, lazily=True)
    return kept, encode_pairs(pairs, family, lazily, place / 'lazy', progress=False)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, **NEAR)


def test_what_is_encoded_lazily_is_what_would_have_been_kept(place):
    kept, lazy = both_ways(place, mirrored=True, sizes=True, empty_text=True, crop='random')
    assert lazy.pair_ids == kept.pair_ids
    assert lazy.captions == kept.captions
    numbers = [7, 0, 10, 0]
    close(lazy.moments(numbers), kept.moments(numbers))
    close(mirrored_moments(lazy, numbers), mirrored_moments(kept, numbers))
    assert torch.equal(picture_sizes(lazy, numbers), picture_sizes(kept, numbers))
    for ours, theirs in (
        (lazy.conditioning(numbers), kept.conditioning(numbers)),
        (lazy.empty_conditioning, kept.empty_conditioning),
        (empty_text(lazy), empty_text(kept)),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            close(tensor, theirs[name])


def test_a_list_keeps_no_latents_and_opens_from_anywhere(place, monkeypatch):
    monkeypatch.chdir(place)
    config = EncodeConfig(model='model', resolution=SIZE, storage='fp32', lazily=True)
    pairs, family = PairSource('pairs.parquet'), encoding_family(config, 'cpu')
    encode_pairs(pairs, family, config, 'lazy', progress=False)
    size = sum(f.stat().st_size for f in (place / 'lazy').rglob('*.safetensors'))
    assert size < 8 * (N + 1) + 200
    (place / 'elsewhere').mkdir()
    monkeypatch.chdir(place / 'elsewhere')
    assert EncodedPairs.open('../lazy').moments([3]).shape[:2] == (1, 2)


def inputs_of(place, encoded):
    "What a short run takes."
    labels = label_pairs(score_rows(encoded.pair_ids))
    return SimpleNamespace(
        base=place / 'model', encoded=encoded, labels=labels, label_config=LabelConfig()
    )


def test_training_lazily_is_training_with_kept_latents_and_resumes_to_the_bit(place):
    kept, lazy = both_ways(place, mirrored=True)
    options = dict(max_steps=4, mirror='each', log_every=1, learning_rate=1e-5)
    theirs = go(inputs_of(place, kept), place / 'a', **options)
    ours = go(inputs_of(place, lazy), place / 'b', **options)
    losses = [[row['loss'] for row in metrics(model.parent)] for model in (theirs, ours)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    go(inputs_of(place, lazy), place / 'c', **options | {'max_steps': 2})
    again = EncodedPairs.open(lazy.folder)
    resumed = go(inputs_of(place, again), place / 'c', **options)
    assert_equal_runs(ours.parent, resumed.parent)


def test_embeddings_are_kept_for_the_next_step_and_no_more_than_a_number(place, monkeypatch):
    monkeypatch.setattr(lazy_shards, 'KEPT_CAPTIONS', 2)
    _, lazy = both_ways(place)
    asked, encode = [], lazy_shards.encode_captions
    monkeypatch.setattr(
        lazy_shards, 'encode_captions', lambda texts, *a: asked.extend(texts) or encode(texts, *a)
    )
    lazy.conditioning([0, 3, 1])  # two captions
    lazy.conditioning([0, 1])
    assert asked == ['a red cat', 'a dog']
    lazy.conditioning([2])
    lazy.conditioning([0])  # asked for longest ago, and so forgotten
    assert asked == ['a red cat', 'a dog', 'two dogs', 'a red cat']


def test_a_pair_that_has_changed_since_is_refused(place):
    _, lazy = both_ways(place)
    write_pairs([*some_pairs()[1:], some_pairs()[0]], place / 'pairs.parquet')
    with pytest.raises(InputError, match='row 4: it has changed since the pairs were listed'):
        lazy.moments([4])


def test_a_pair_that_cannot_be_decoded_is_told_with_its_row(place):
    pairs = some_pairs()
    broken = make_pair('a dog', (pairs[0].images[0][:80], pairs[0].images[1]), 1.0)
    write_pairs([pairs[0], broken], place / 'pairs.parquet')
    config = EncodeConfig(model=str(place / 'model'), resolution=SIZE, lazily=True)
    family, source = encoding_family(config, 'cpu'), PairSource(str(place / 'pairs.parquet'))
    lazy = encode_pairs(source, family, config, place / 'lazy', progress=False)
    with pytest.raises(InputError, match='row 1 cannot be trained on: undecodable jpg_0'):
        lazy.moments([1])


def test_pairs_that_cannot_be_read_again_are_refused(place):
    config = EncodeConfig(model=str(place / 'model'), resolution=SIZE, lazily=True)
    family = encoding_family(config, 'cpu')
    with pytest.raises(InputError, match='that can be read again'):
        encode_pairs(some_pairs(), family, config, place / 'lazy', progress=False)
