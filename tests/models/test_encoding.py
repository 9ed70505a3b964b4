"""The cache of latents and embeddings: what it holds, how it survives damage and interruption, what
it refuses."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import locked
from balanceddpo.data import pairs as pairs_module
from balanceddpo.data import rows
from balanceddpo.data.pairs import draw_view, make_pair, told_sizes, transform_pair, write_pairs
from balanceddpo.data.sources import PairSource
from balanceddpo.models.config import LATENT_SETTINGS, EncodeConfig
from balanceddpo.models.encoders import with_autoencoder
from balanceddpo.models.encoding import (
    EncodedPairs,
    empty_text,
    encode_pairs,
    mirrored_moments,
    picture_sizes,
)
from balanceddpo.models.families import load_family
from balanceddpo.models.saving import save_pipeline
from tiny_models import tiny_folder

CONFIG = EncodeConfig(
    model='given', resolution=32, storage='fp32', batch_size=2, shard_size=3, workers=2
)
CAPTIONS = [
    'a red cat',
    'a dog',
    'a red cat',
    '../../etc/passwd',
    'two\0dogs',
    'x' * 300,
    'a dog',
    'a cat',
]


def picture(i, size=(48, 40)):
    small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, 'PNG')
    return buffer.getvalue()


PAIRS = [
    make_pair(caption, (picture(2 * i), picture(2 * i + 1)), 1.0)
    for i, caption in enumerate(CAPTIONS)
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp('model') / 'sd15')


@pytest.fixture(scope='module')
def family(folder):
    return load_family(folder, device='cpu')


@pytest.fixture
def source(tmp_path):
    "The pairs as a file."
    return PairSource(str(write_pairs(PAIRS, tmp_path / 'pairs.parquet')))


def encode(family, out, pairs=PAIRS, config=CONFIG, **kwargs):
    return encode_pairs(pairs, family, config, out, progress=False, **kwargs)


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file() and p.name != '.lock'
    }


def flipped(data, at=-1):
    data = bytearray(data)
    data[at] ^= 1
    return bytes(data)


def test_every_pair_and_caption_is_what_the_family_says_of_it_alone(family, tmp_path):
    encoded = encode(family, tmp_path / 'e')
    assert encoded.pair_ids == [p.pair_id for p in PAIRS]
    assert [encoded.captions[r] for r in encoded.rows] == CAPTIONS
    assert len(encoded.captions) == len(set(CAPTIONS)) == 6
    order = [7, 0, 3, 2, 5]
    moments, conditioning = encoded.batch(order)
    assert moments.dtype == torch.float32
    assert moments.shape == (5, 2, 8, 4, 4)
    for i, m, c in zip(order, moments, conditioning['prompt_embeds']):
        torch.testing.assert_close(
            m,
            family.encode_images(
                transform_pair([PAIRS[i].picture(k) for k in (0, 1)], 32, PAIRS[i].pair_id)
            ),
            rtol=1e-5,
            atol=1e-5,
        )
        torch.testing.assert_close(
            c, family.encode_prompts([CAPTIONS[i]])['prompt_embeds'][0], rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(
        encoded.empty_conditioning['prompt_embeds'], family.encode_prompts([''])['prompt_embeds']
    )


def test_both_orientations_sizes_and_the_empty_text_are_kept_where_asked_for(family, tmp_path):
    plain = encode(family, tmp_path / 'plain')
    asked = replace(CONFIG, mirrored=True, sizes=True, empty_text=True, crop='random')
    encoded = encode(family, tmp_path / 'e', config=asked)
    order = [7, 0, 3]
    other, sizes = mirrored_moments(encoded, order), picture_sizes(encoded, order)
    for i, m, told in zip(order, other, sizes):
        pictures = [PAIRS[i].picture(k) for k in (0, 1)]
        pixels = transform_pair(pictures, 32, PAIRS[i].pair_id, crop='random').flip(-1)
        torch.testing.assert_close(m, family.encode_images(pixels), rtol=1e-5, atol=1e-5)
        view = draw_view(PAIRS[i].pair_id, 0, 'random')
        assert told.tolist() == [list(told_sizes(p.size, 32, view)) for p in pictures]
    assert encoded.captions == [*plain.captions, '']
    for name, v in empty_text(encoded).items():
        torch.testing.assert_close(v, plain.empty_conditioning[name])
    assert [e.inputs['mirrored'] for e in (plain, encoded)] == [False, True]


def test_the_other_orientation_changes_no_latents(family, tmp_path):
    plain = encode(family, tmp_path / 'plain')
    both = encode(family, tmp_path / 'both', config=replace(CONFIG, mirrored=True))
    assert torch.equal(plain.moments(range(8)), both.moments(range(8)))
    assert {*LATENT_SETTINGS} < {*plain.inputs}
    assert both.key != plain.key


def test_captions_never_name_files(family, tmp_path):
    encode(family, tmp_path / 'deep' / 'e')
    names = {p.name for p in tmp_path.rglob('*') if p.is_file()} - {'.lock'}
    assert names
    assert all(
        n.split('-')[0].split('.')[0]
        in ('moments', 'prompts', 'empty', 'pairs', 'inputs', 'manifest')
        for n in names
    )


def test_sdxl_keeps_the_pooled_embedding_and_fp16_rounds_only(tmp_path):
    family = load_family(tiny_folder(tmp_path / 'sdxl', 'sdxl'), device='cpu')
    exact, half = (
        encode(family, tmp_path / 'a'),
        encode(family, tmp_path / 'b', config=replace(CONFIG, storage='fp16')),
    )
    (m, c), (m16, c16) = exact.batch([1, 4]), half.batch([1, 4])
    torch.testing.assert_close(
        c['pooled'],
        family.encode_prompts([CAPTIONS[1], CAPTIONS[4]])['pooled'],
        rtol=1e-5,
        atol=1e-5,
    )
    assert set(c) == {'prompt_embeds', 'pooled'}
    assert not exact.empty_conditioning['pooled'].any()
    assert m16.dtype == torch.float32
    assert c16['pooled'].dtype == torch.float16
    torch.testing.assert_close(m16, m, rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(c16['pooled'].float(), c['pooled'], rtol=2**-10, atol=1e-6)


def test_the_batch_size_changes_nothing_but_rounding(family, tmp_path):
    a, b = (
        encode(family, tmp_path / 'a'),
        encode(family, tmp_path / 'b', config=replace(CONFIG, batch_size=1, workers=1)),
    )
    torch.testing.assert_close(a.moments(range(8)), b.moments(range(8)), rtol=1e-5, atol=1e-5)
    assert a.inputs == b.inputs


class Counted:
    "A family that counts the images it encodes, and fails at the one after `limit`."

    def __init__(self, family, limit=10**9):
        self.family, self.images, self.prompts, self.limit = family, 0, 0, limit

    def __getattr__(self, name):
        return getattr(self.family, name)

    def encode_images(self, images):
        self.images += len(images)
        if self.images > self.limit:
            raise OSError(28, 'No space left on device')
        return self.family.encode_images(images)

    def encode_prompts(self, prompts):
        self.prompts += len(prompts)
        return self.family.encode_prompts(prompts)


def test_an_interrupted_run_goes_on_and_ends_byte_identical(family, tmp_path):
    encode(family, tmp_path / 'whole')
    with pytest.raises(OSError):
        encode(Counted(family, 10), tmp_path / 'cut')  # in the second shard
    with pytest.raises(InputError, match='no finished encoding'):
        EncodedPairs.open(tmp_path / 'cut')
    counted = Counted(family)
    encode(counted, tmp_path / 'cut')
    assert counted.images == 2 * (len(PAIRS) - 3)  # the first shard was not encoded again
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')


def test_each_image_and_each_distinct_caption_is_encoded_once(family, tmp_path):
    counted = Counted(family)
    encode(counted, tmp_path / 'e', pairs=iter(PAIRS))
    assert counted.images == 2 * len(PAIRS)
    assert counted.prompts == len(set(CAPTIONS))
    again = Counted(family)
    encode(again, tmp_path / 'e', pairs=iter(PAIRS))
    assert (again.images, again.prompts) == (0, 0)


@pytest.mark.parametrize(
    'name', ['moments-00001.safetensors', 'prompts-00000.safetensors', 'empty.safetensors']
)
@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'empty', 'missing', 'note'])
def test_a_damaged_shard_is_refused_and_made_again_alone(family, source, tmp_path, name, damage):
    encode(family, tmp_path / 'e', source)
    before = contents(tmp_path / 'e')
    path = tmp_path / 'e' / name
    if damage == 'note':
        path.with_suffix('.json').write_text('{"holds"')
    elif damage == 'missing':
        path.unlink()
    else:
        path.write_bytes(
            {'truncated': before[name][:-10], 'flipped': flipped(before[name]), 'empty': b''}[
                damage
            ]
        )
    if damage != 'note':
        with pytest.raises(InputError, match=f'{name} is damaged|cannot read .*{name}'):
            reader = EncodedPairs.open(tmp_path / 'e')
            reader.batch(range(len(PAIRS)))
            _ = reader.empty_conditioning
    times = {
        n: (tmp_path / 'e' / n).stat().st_mtime_ns
        for n in before
        if n.endswith('.safetensors') and n != name
    }
    encode(family, tmp_path / 'e', source)
    assert contents(tmp_path / 'e') == before
    assert all((tmp_path / 'e' / n).stat().st_mtime_ns == t for n, t in times.items())


def test_a_damaged_table_of_pairs_is_refused_and_made_again(family, tmp_path):
    encode(family, tmp_path / 'e')
    path = tmp_path / 'e' / 'pairs.json'
    good = path.read_bytes()
    path.write_bytes(good.replace(b'a dog', b'a cow'))
    with pytest.raises(InputError, match='pairs.json is damaged'):
        EncodedPairs.open(tmp_path / 'e')
    encode(family, tmp_path / 'e')
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    'change',
    [
        dict(resolution=64),
        dict(crop='random'),
        dict(mirrored=True),
        dict(sizes=True),
        dict(empty_text=True),
        dict(seed=1),
        dict(storage='fp16'),
        dict(shard_size=4),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(family, tmp_path, change):
    ((field, value),) = change.items()
    encode(family, tmp_path / 'e')
    before = contents(tmp_path / 'e')
    told = re.escape(f'made with {field} = {getattr(CONFIG, field)!r}, not {value!r}')
    with pytest.raises(InputError, match=told):
        encode(family, tmp_path / 'e', config=replace(CONFIG, **change))
    assert contents(tmp_path / 'e') == before


@pytest.mark.parametrize('part', ['vae', 'text_encoder'])
def test_another_autoencoder_or_text_encoder_is_refused_by_name(folder, family, tmp_path, part):
    encode(family, tmp_path / 'e')
    other = save_pipeline(folder, family.model, tmp_path / 'other')
    changed = load_family(other, device='cpu').part(part)
    next(changed.parameters()).data.add_(1)
    changed.save_pretrained(other / part)
    with pytest.raises(InputError, match=rf'made with model\.{part} = '):
        encode(load_family(other, device='cpu'), tmp_path / 'e')


def test_another_precision_is_refused_and_another_denoiser_is_not(folder, family, tmp_path):
    encode(family, tmp_path / 'e')
    with pytest.raises(InputError, match=r"compute\.images = 'float32', not 'bfloat16'"):
        encode(load_family(folder, 'bf16', 'cpu'), tmp_path / 'e')
    policy = load_family(folder, device='cpu').model
    policy.conv_out.bias.data += 1
    trained = load_family(save_pipeline(folder, policy, tmp_path / 'trained'), device='cpu')
    counted = Counted(trained)
    encode(counted, tmp_path / 'e')
    assert counted.images == 0  # what was trained has no part in the cache


@pytest.mark.parametrize(
    'pairs',
    [
        PAIRS[::-1],
        PAIRS[:-1],
        PAIRS[:3],
        PAIRS[:7] + [make_pair('other', PAIRS[7].images, 1.0)],
    ],
)
def test_other_pairs_in_the_same_folder_are_refused(family, source, tmp_path, pairs):
    encode(family, tmp_path / 'e')
    with pytest.raises(InputError, match='other pairs|more pairs'):
        encode(family, tmp_path / 'e', pairs=pairs)
    with pytest.raises(InputError, match="made with pairs = ''"):
        encode(family, tmp_path / 'e', source)


def test_more_pairs_are_encoded_beside_those_that_are_there(family, tmp_path):
    more = PAIRS + [make_pair('one more', (picture(98), picture(99)), 0.0)]
    encode(family, tmp_path / 'e')
    counted = Counted(family)
    grown = encode(counted, tmp_path / 'e', more)
    assert counted.images == 2 * 3  # the last shard had two pairs of three
    assert grown.key == encode(family, tmp_path / 'whole', more).key


def test_a_finished_folder_is_returned_without_reading_the_pairs(
    family, source, tmp_path, monkeypatch
):
    first = encode(family, tmp_path / 'e', source)

    def unread(*args):
        raise AssertionError('the pairs were read')

    monkeypatch.setattr(rows.PairRows, 'take', unread)
    assert encode(family, tmp_path / 'e', source).key == first.key


def test_after_a_touch_the_pairs_are_read_but_no_image_is_decoded(
    family, source, tmp_path, monkeypatch
):
    first = encode(family, tmp_path / 'e', source)
    write_pairs(PAIRS, source.source)  # the same bytes in another file
    monkeypatch.setattr(pairs_module, 'decode', None)
    counted = Counted(family)
    assert encode(counted, tmp_path / 'e', source).key == first.key
    assert (counted.images, counted.prompts) == (0, 0)


def test_each_image_is_decoded_once(family, source, tmp_path, monkeypatch):
    decoded, real = [], pairs_module.decode
    monkeypatch.setattr(pairs_module, 'decode', lambda *a: decoded.append(a[0]) or real(*a))
    encode(family, tmp_path / 'e', source)
    assert sorted(decoded) == sorted(data for p in PAIRS for data in p.images)


def test_odd_rows_are_left_out_of_their_shard_alone(family, tmp_path):
    "Two rows of three have the same picture twice: the pairs behind them stay in their shards."
    same = [make_pair('a twin', (picture(i), picture(i)), 1.0) for i in (70, 71)]
    rows = [PAIRS[0], *same, *PAIRS[1:4], PAIRS[0]]
    source = PairSource(str(write_pairs(rows, tmp_path / 'odd.parquet')))
    encoded = encode(family, tmp_path / 'e', source)
    kept = [PAIRS[0], *PAIRS[1:4], PAIRS[0]]
    assert encoded.pair_ids == [p.pair_id for p in kept[:4]] + [f'{PAIRS[0].pair_id}.1']
    assert [encoded.captions[r] for r in encoded.rows] == [p.caption for p in kept]
    plain = encode(family, tmp_path / 'plain', PAIRS[:4])
    torch.testing.assert_close(encoded.moments(range(4)), plain.moments(range(4)))
    torch.testing.assert_close(encoded.moments([4]), plain.moments([0]))


def test_only_some_pairs_are_encoded_with_all_their_ratings(family, tmp_path, monkeypatch):
    rows = [*PAIRS[:5], PAIRS[4], *PAIRS[5:]]
    source = PairSource(str(write_pairs(rows, tmp_path / 'rated.parquet')))
    decoded, real = [], pairs_module.decode
    monkeypatch.setattr(pairs_module, 'decode', lambda *a: decoded.append(a[0]) or real(*a))
    again = f'{PAIRS[4].pair_id}.1'
    encoded = encode(family, tmp_path / 'e', source, only={PAIRS[6].pair_id, again})
    assert encoded.pair_ids == [PAIRS[4].pair_id, again, PAIRS[6].pair_id]
    assert sorted(decoded) == sorted([*PAIRS[4].images * 2, *PAIRS[6].images])
    plain = encode(family, tmp_path / 'plain')
    torch.testing.assert_close(encoded.moments([1, 2]), plain.moments([4, 6]))


def test_the_key_follows_the_content(family, tmp_path):
    a, b = encode(family, tmp_path / 'a'), encode(family, tmp_path / 'b')
    assert a.key == b.key != encode(family, tmp_path / 'c', pairs=PAIRS[:5]).key


def test_without_a_folder_the_settings_name_it(family, source, tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    a, b = (
        encode(family, None, source),
        encode(family, None, source, config=replace(CONFIG, seed=1)),
    )
    assert a.folder != b.folder
    assert a.folder.parent == b.folder.parent == tmp_path / 'runs' / 'encode'


def test_latents_that_are_not_finite_are_not_kept(folder, tmp_path):
    family = load_family(folder, device='cpu')
    original = family.encode_images
    family.encode_images = lambda images: original(images).index_fill(
        0, torch.tensor([1]), float('inf')
    )
    with pytest.raises(InputError, match=f'pair {PAIRS[0].pair_id}.* not finite'):
        encode(family, tmp_path / 'e')
    assert not list((tmp_path / 'e').glob('moments*'))


def test_a_second_process_and_no_pairs_are_refused(family, tmp_path):
    with locked(tmp_path / 'e'), pytest.raises(InputError, match='in use by process'):
        encode(family, tmp_path / 'e')
    with pytest.raises(InputError, match='no pairs to encode'):
        encode(family, tmp_path / 'f', pairs=[])


def test_another_autoencoder_encodes_and_names_the_latents(folder, tmp_path, monkeypatch):
    "The launchers for SDXL encode with one that stands fp16; it makes the same kind of latents."
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    own = load_family(folder, device='cpu')
    other = tiny_folder(tmp_path / 'other', seed=1)
    changed = with_autoencoder(load_family(folder, device='cpu'), str(other / 'vae'), 'fp32')
    a, b = encode(own, tmp_path / 'a'), encode(changed, tmp_path / 'b')
    whole = encode(load_family(other, device='cpu'), tmp_path / 'c')
    assert torch.equal(b.moments(range(8)), whole.moments(range(8)))
    assert not torch.allclose(a.moments(range(8)), b.moments(range(8)), atol=1e-2)
    assert {k for k in a.inputs if a.inputs[k] != b.inputs[k]} == {'model'}
    assert {k for k, v in a.inputs['model'].items() if v != b.inputs['model'][k]} == {'vae'}
    again = with_autoencoder(load_family(folder, device='cpu'), str(other / 'vae'), 'fp32')
    assert again.autoencoder == changed.autoencoder


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(scaling_factor=0.5), 'scaling_factor 0.5, that of .* 0.18215'),
        (dict(latent_channels=8), 'latent_channels 8, that of .* 4: its latents mean something'),
    ],
)
def test_an_autoencoder_with_other_latents_is_refused(folder, tmp_path, change, words):
    other = tiny_folder(tmp_path / 'other', **change)
    with pytest.raises(InputError, match=words):
        with_autoencoder(load_family(folder, device='cpu'), str(other / 'vae'), 'fp32')
    with pytest.raises(InputError, match='holds no autoencoder of diffusers'):
        with_autoencoder(load_family(folder, device='cpu'), str(tmp_path / 'none'), 'fp32')
