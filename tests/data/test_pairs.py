"""Edge cases of `balanceddpo.data.pairs`: hostile images and names, odd rows, streaming, the four
sources, views of a pair."""

import io
import json
import os
import re
import socket
import struct
import tracemalloc
import zlib
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

import balanceddpo.data.pairs as pairs
from balanceddpo.core.errors import InputError, refusal
from balanceddpo.core.files import content_digest
from balanceddpo.data.pairs import (
    PairReport,
    cut_square,
    decode,
    draw_view,
    make_pair,
    pairs_key,
    read_pairs,
    transform_pair,
    write_pairs,
)


def encoded(image, format='PNG', **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def plain(n, size=(2, 2)):
    "A small image of its own for every n."
    return encoded(Image.new('RGB', size, (n % 256, n // 256 % 256, n // 65536)))


def some_pairs(n, label=lambda i: [1.0, 0.0, 0.5, None][i % 4]):
    for i in range(n):
        yield make_pair(
            f'caption {i}', (plain(2 * i), plain(2 * i + 1)), label(i), ('sd15', f'model {i % 3}')
        )


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def rows_of(*pairs, **more):
    return dict(
        caption=[p.caption for p in pairs],
        jpg_0=[p.images[0] for p in pairs],
        jpg_1=[p.images[1] for p in pairs],
        **more,
    )


def noise(seed, size=96):
    return encoded(
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), 'uint8')),
        'BMP',
    )


def refused(f, *args, **kwargs):
    "What a call is refused with: one line, and not a long one."
    message = refusal(f, *args, **kwargs)
    assert '\n' not in message
    assert len(message) < 600
    return message


# --- hostile images


def chunk(kind, body):
    "A chunk of a PNG."
    check = struct.pack('>I', zlib.crc32(kind + body))
    return struct.pack('>I', len(body)) + kind + body + check


def png_header(width, height):
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b'\0' * 100))
        + chunk(b'IEND', b'')
    )


photo = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), 'uint8')), 'JPEG'
)
BAD = {
    'truncated': photo[: len(photo) // 2],
    'zero bytes': b'',
    'wrong magic': b'\xff\xd8\xff\xe0' + photo[20:60],
    'text': b'<html><img src=x onerror=alert(1)></html>',
    'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n',
    'a format Pillow reads and we do not': encoded(Image.new('RGB', (4, 4)), 'PPM'),
    'bomb': png_header(60_000, 60_000),
    'floats': encoded(Image.new('F', (4, 4), 0.5), 'TIFF'),
    'long and thin': encoded(Image.new('RGB', (1, 101))),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_image_is_one_kind_of_error(kind):
    refused(decode, BAD[kind])


def test_large_image_is_refused_by_its_header(monkeypatch):
    large = encoded(Image.new('1', (9000, 8000)))
    assert len(large) < 20_000
    assert pairs.MAX_PIXELS < 9000 * 8000
    monkeypatch.setattr(
        ImageFile.ImageFile, 'load', lambda self: pytest.fail('pixels were decoded')
    )
    assert '9000x8000' in refused(decode, large)


def first_pixel(data):
    return decode(data).getpixel((0, 0))


def test_odd_but_sound_images():
    # stored lying on its side: turn 90 degrees clockwise to look at it
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = Image.new('RGB', (16, 8), 'black')
    halves.paste('white', (0, 0, 8, 8))
    upright = decode(encoded(halves, 'JPEG', exif=exif, quality=95))
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 2)) > (200,) * 3
    assert upright.getpixel((4, 13)) < (50,) * 3
    ramp = decode(encoded(Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], 'uint16'))))
    assert [ramp.getpixel((x, 0))[0] for x in range(5)] == [0, 0, 1, 128, 255]
    assert first_pixel(encoded(Image.fromarray(np.array([[40000]], 'int32')), 'TIFF')) == (156,) * 3
    assert first_pixel(
        encoded(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'JPEG')
    ) == pytest.approx((255, 0, 0), abs=3)
    assert first_pixel(encoded(Image.new('RGB', (4, 4), (10, 200, 30)).quantize(4))) == (
        10,
        200,
        30,
    )
    assert first_pixel(encoded(Image.new('P', (4, 4)), 'GIF', transparency=0)) == (255, 255, 255)
    assert first_pixel(encoded(Image.new('LA', (2, 2), (0, 128)))) == pytest.approx(
        (127,) * 3, abs=1
    )
    assert decode(plain(5, (1, 1))).size == (1, 1)


def test_broken_exif_does_not_spoil_the_picture():
    with pytest.warns(UserWarning):
        image = decode(
            encoded(
                Image.new('RGB', (4, 2)),
                'JPEG',
                exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\xff\xff\xff\xff',
            )
        )
    assert image.size == (4, 2)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
def test_damage_of_any_kind_gives_pixels_or_an_input_error(format):
    rng, whole = (
        np.random.default_rng(1),
        encoded(
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), 'uint8')), format
        ),
    )
    outcomes = []
    for i in range(150):
        data = bytearray(whole[: rng.integers(1, len(whole))] if i % 2 else whole)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        try:
            outcomes.append(decode(bytes(data)).mode)
        except InputError:
            outcomes.append('refused')
    assert set(outcomes) <= {'RGB', 'refused'}
    assert 'refused' in outcomes


# --- odd rows


def test_hostile_rows_are_quarantined_and_nothing_is_touched(tmp_path):
    good, images = list(some_pairs(900)), list(BAD.values())
    everything = (
        good[:450]
        + [
            make_pair('bad', (b, plain(9)) if i % 2 else (plain(9), b))
            for i, b in enumerate(images)
        ]
        + good[450:]
    )
    source = write_pairs(everything, tmp_path / 'pairs.parquet')
    before = content_digest(tmp_path), os.stat(source).st_mtime_ns
    report = PairReport()
    assert list(read_pairs(source, report=report)) == good
    assert (report.rows, report.kept, report.undecodable) == (900 + len(images), 900, len(images))
    assert [(r['where'], r['column']) for r in report.reasons] == [
        (f'{source}: row {450 + i}', f'jpg_{0 if i % 2 else 1}') for i in range(len(images))
    ]
    assert (content_digest(tmp_path), os.stat(source).st_mtime_ns) == before
    lines = report.save(tmp_path / 'out' / 'quarantine.jsonl').read_text().splitlines()
    assert [json.loads(x) for x in lines] == report.reasons


def test_reading_stops_above_the_allowed_fraction(tmp_path):
    def bad(n):
        return [make_pair(f'bad {i}', (b'', plain(9))) for i in range(n)]

    small = write_pairs(list(some_pairs(50)) + bad(1), tmp_path / 'small.parquet')
    message = refused(list, read_pairs(small))  # 1 of 51 is 1.96 %
    assert '1 of 51' in message
    assert 'row 50' in message
    assert 'jpg_0' in message
    assert len(list(read_pairs(small, max_bad=0.02))) == 50
    report = PairReport()  # 11 bad ones are over 1 % of a thousand: no need to read on
    refused(list, read_pairs(write_pairs(bad(200), tmp_path / 'all.parquet'), report=report))
    assert report.rows == 11
    first_bad = write_pairs(bad(1) + list(some_pairs(30)), tmp_path / 'first.parquet')
    refused(list, read_pairs(first_bad, limit=10))  # a limit does not get around the rule


def write_odd_rows(path):
    a, b, c = plain(1), plain(2), plain(3)
    rows = [
        ('tie', a, b, 0.5, 0.5, True),
        ('won', a, b, 1.0, 0.0, True),
        ('won', a, b, 0.0, 1.0, True),
        ('won', a, b, 1.0, 0.0, True),
        ('won', b, a, 1.0, 0.0, True),
        (None, a, b, 1.0, 0.0, True),
        ('left', None, b, 1.0, 0.0, True),
        ('right', a, None, 1.0, 0.0, True),
        ('same', a, a, 1.0, 0.0, True),
        ('no label', a, c, None, None, False),
        ('hidden', a, c, 1.0, 0.0, False),
        ('against itself', a, c, 1.0, 1.0, True),
        ('nan', a, c, float('nan'), None, None),
    ]
    names = ('caption', 'jpg_0', 'jpg_1', 'label_0', 'label_1', 'has_label')
    return table(path, **{name: list(column) for name, column in zip(names, zip(*rows))})


def test_every_odd_row_has_its_count(tmp_path):
    report = PairReport()
    got = list(read_pairs(write_odd_rows(tmp_path / 'odd.parquet'), report=report))
    assert [(p.caption, p.label_0) for p in got] == [
        ('tie', 0.5),
        ('won', 1.0),
        ('won', 0.0),
        ('won', 1.0),
        ('won', 1.0),
        ('no label', None),
        ('hidden', None),
        ('against itself', None),
        ('nan', None),
    ]
    counts = dict(
        rows=13, kept=9, ties=1, one_sided=3, undecodable=0, unlabelled=4, identical=1, repeated=2
    )
    assert {k: getattr(report, k) for k in counts} == counts
    # the three ratings of one pair, and the swapped one, are told apart
    assert len({p.pair_id for p in got}) == 9
    assert got[1].pair_id == make_pair('won', (plain(1), plain(2))).pair_id
    assert (
        str(report)
        == '13 rows, 9 pairs kept; 1 ties, 4 unlabelled, 2 repeated; dropped: 3 one-sided, 0'
        ' undecodable, 1 identical'
    )


def test_the_label_of_the_other_image_is_enough(tmp_path):
    images = dict(jpg_0=[plain(1)] * 2, jpg_1=[plain(2)] * 2)
    only_1 = table(tmp_path / 'label_1.parquet', caption=['a', 'b'], label_1=[1.0, 0.0], **images)
    assert [p.label_0 for p in read_pairs(only_1)] == [0.0, 1.0]


def test_ties_may_be_left_out_and_are_counted(tmp_path):
    source, without = write_odd_rows(tmp_path / 'odd.parquet'), PairReport()
    assert len(list(read_pairs(source, keep_ties=False, report=without))) == 8
    assert (without.ties, without.kept) == (1, 8)


def test_round_trip_keeps_everything_also_further_ratings(tmp_path):
    images = plain(1), plain(2)
    mine = list(some_pairs(130)) + [
        make_pair('again', images, 1.0),
        make_pair('again', images, 0.0, rating=1),
        make_pair('again', images, 0.5, rating=2),
    ]
    path = write_pairs(iter(mine), tmp_path / 'pairs.parquet')
    assert (
        list(read_pairs(path))
        == mine
        == list(read_pairs(write_pairs(read_pairs(path), tmp_path / 'copy.parquet')))
    )
    assert list(read_pairs(path, limit=7)) == mine[:7]
    assert list(read_pairs(path, limit=0)) == []
    assert pq.read_schema(path).names[:5] == ['caption', 'jpg_0', 'jpg_1', 'label_0', 'label_1']


def test_a_share_is_random_repeatable_and_part_of_a_larger_one(tmp_path):
    path = write_pairs(some_pairs(200), tmp_path / 'p.parquet')
    every = [p.pair_id for p in read_pairs(path)]
    ids = {s: [p.pair_id for p in read_pairs(path, share=s)] for s in (0.1, 0.5, 1.0)}
    assert ids[1.0] == every
    assert (
        ids[0.5]
        == [p.pair_id for p in read_pairs(path, share=0.5)]
        == [i for i in every if i in set(ids[0.5])]
    )
    assert set(ids[0.1]) < set(ids[0.5])
    assert abs(len(ids[0.5]) - 100) < 4 * 50**0.5
    assert abs(len(ids[0.1]) - 20) < 4 * 18**0.5
    # from everywhere, not from the front
    numbers = [every.index(i) for i in ids[0.5]]
    assert 60 < sum(numbers) / len(numbers) < 140
    assert [p.pair_id for p in read_pairs(path, limit=3, share=0.5)] == ids[0.5][:3]
    for wrong in (0, -1, 1.5, float('nan')):
        refused(read_pairs, path, share=wrong)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = write_pairs(some_pairs(3), tmp_path / 'pairs.parquet')

    def breaks():
        yield from some_pairs(100)
        raise RuntimeError('the generator died')

    with pytest.raises(RuntimeError):
        write_pairs(breaks(), path)
    assert len(list(read_pairs(path))) == 3
    assert os.listdir(tmp_path) == ['pairs.parquet']


# --- columns


def test_wrong_columns_are_named_before_anything_is_read(tmp_path, monkeypatch):
    folder = tmp_path / 'many'
    folder.mkdir()
    write_pairs(some_pairs(3), folder / 'a.parquet')
    table(folder / 'b.parquet', prompt=['x'], jpg_0=[plain(1)], jpg_1=[plain(2)])
    monkeypatch.setattr(pairs, 'decode', lambda data: pytest.fail('an image was decoded'))
    message = refused(read_pairs, folder)
    assert "no column 'caption'" in message
    assert 'b.parquet' in message
    assert 'prompt, jpg_0, jpg_1' in message


@pytest.mark.parametrize(
    'column, value, found',
    [
        ('jpg_1', 'https://example.com/x.png', 'str'),
        ('jpg_0', 7, 'int'),
        ('caption', 3.5, 'float'),
        ('label_0', 4.0, '4.0'),
        ('label_1', 'yes', 'yes'),
    ],
)
def test_wrong_types_are_named(tmp_path, column, value, found):
    row = dict(caption=['a'], jpg_0=[plain(1)], jpg_1=[plain(2)], label_0=[1.0]) | {column: [value]}
    message = refused(list, read_pairs(table(tmp_path / 'x.parquet', **row), max_bad=1))
    assert column in message
    assert found in message
    assert 'x.parquet: row 0' in message


def test_paths_in_a_parquet_file_are_not_opened(tmp_path):
    secret = tmp_path / 'secret.png'
    secret.write_bytes(plain(1))
    cell = pa.array([{'bytes': None, 'path': str(secret)}, {'bytes': plain(5), 'path': 'x.png'}])
    source = table(
        tmp_path / 'x.parquet', caption=['a', 'b'], jpg_0=cell, jpg_1=[plain(2), plain(2)]
    )
    report = PairReport()
    got = list(read_pairs(source, report=report))
    assert [p.images[0] for p in got] == [plain(5)]
    assert report.one_sided == 1


def test_damaged_parquet_is_named(tmp_path):
    whole = write_pairs(some_pairs(200), tmp_path / 'whole.parquet').read_bytes()
    for name, data in {
        'cut': whole[:-100],
        'empty': b'',
        'text': b'hello, I am not Parquet',
    }.items():
        (tmp_path / f'{name}.parquet').write_bytes(data)
        assert f'{name}.parquet' in refused(read_pairs, tmp_path / f'{name}.parquet')
        assert f'{name}.parquet' in refused(pairs_key, tmp_path / f'{name}.parquet')
    spoilt = bytearray(whole)
    spoilt[4 : len(whole) // 2] = bytes(len(whole) // 2 - 4)
    (tmp_path / 'spoilt.parquet').write_bytes(spoilt)
    assert 'spoilt.parquet' in refused(list, read_pairs(tmp_path / 'spoilt.parquet'))


def test_sources_that_are_not_there(tmp_path):
    assert 'hub:owner/name' in refused(read_pairs, 'yuvalkirstain/pickapic_v2')
    assert 'metadata.jsonl' in refused(read_pairs, tmp_path)


def test_splits_in_one_folder_are_kept_apart(tmp_path):
    a, b, c, d = some_pairs(4)
    data = tmp_path / 'data'
    data.mkdir()
    for pair, name in (
        (b, 'train-00001-of-00002-0f3a'),
        (a, 'train-00000-of-00002-1b2c'),
        (c, 'validation-00000-of-00001'),
        (d, 'validation_unique-00000-of-00001'),
    ):
        write_pairs([pair], data / f'{name}.parquet')
    assert list(read_pairs(tmp_path)) == [a, b]
    assert list(read_pairs(tmp_path, split='validation')) == [c]
    assert 'train, validation, validation_unique' in refused(read_pairs, tmp_path, split='test')
    assert len({pairs_key(tmp_path), pairs_key(tmp_path, 'validation')}) == 2


# --- streaming


def peak(function):
    "Bytes that Python and Arrow held at most while `function` ran."
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    old = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(old)
        KEPT.append(pool)


KEPT = []  # Arrow buffers may outlive the call, and need their pool


def test_memory_does_not_grow_with_the_data(tmp_path):
    def write_file(n):
        made = (make_pair(f'{i}', (noise(2 * i), noise(2 * i + 1)), 1.0) for i in range(n))
        write_pairs(made, tmp_path / f'{n}.parquet')

    def read_file(n):
        return sum(1 for _ in read_pairs(tmp_path / f'{n}.parquet'))

    write = {n: peak(partial(write_file, n)) for n in (128, 512)}
    read = {n: peak(partial(read_file, n)) for n in (128, 512)}
    size = (tmp_path / '512.parquet').stat().st_size
    assert size > 25e6
    assert max(*write.values(), *read.values()) < size
    assert write[512] < 1.25 * write[128]
    assert read[512] < 1.25 * read[128]


def test_a_large_parquet_file_is_not_held_in_memory(tmp_path):
    """24 row groups of a megabyte that cannot be compressed; what Arrow holds while they are read
    one after the other, and what it held at most."""
    draw, path = np.random.default_rng(0), tmp_path / 'large.parquet'
    schema = pa.schema({'caption': pa.string(), 'jpg_0': pa.binary(), 'jpg_1': pa.binary()})
    with pq.ParquetWriter(path, schema) as writer:
        for i in range(24):
            writer.write_table(
                pa.table(
                    {
                        'caption': [str(i)] * 64,
                        **{c: [draw.bytes(1 << 13) for _ in range(64)] for c in ('jpg_0', 'jpg_1')},
                    },
                    schema,
                )
            )
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in pairs.parquet_rows([path])]
    assert len(held) == 24 * 64
    assert max(held) < path.stat().st_size / 3


def test_nothing_is_decoded_ahead(tmp_path, monkeypatch):
    path, calls = write_pairs(some_pairs(300), tmp_path / 'pairs.parquet'), []
    monkeypatch.setattr(pairs, 'decode', lambda data: calls.append(data))
    report = PairReport()
    stream = read_pairs(path, report=report)
    assert not calls
    for _ in range(3):
        next(stream)
    assert len(calls) == 6
    assert report.rows == 3
    assert len(list(read_pairs(path, limit=5))) == 5
    assert len(calls) == 16


# --- folders


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'folder'
    (folder / 'images').mkdir(parents=True)
    (tmp_path / 'outside.png').write_bytes(plain(77))
    for i in range(4):
        (folder / 'images' / f'{i}.png').write_bytes(plain(i))
    os.symlink(tmp_path / 'outside.png', folder / 'images' / 'link.png')
    os.symlink('0.png', folder / 'images' / 'inner.png')
    os.symlink(tmp_path, folder / 'up')
    return folder


def lines(folder, *rows):
    (folder / 'metadata.jsonl').write_bytes(
        b'\n'.join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
    )
    return folder


def test_folder_of_images(folder):
    lines(
        folder,
        dict(caption='a', jpg_0='images/0.png', jpg_1='images/1.png', label_0=1),
        b'',
        dict(
            caption='b',
            jpg_0_file_name='images/inner.png',
            jpg_1_file_name='./images/../images/2.png',
        ),
        dict(caption='c', jpg_0='images/0.png', jpg_1=None),
    )
    report = PairReport()
    assert list(read_pairs(folder, report=report)) == [
        make_pair('a', (plain(0), plain(1)), 1.0),
        make_pair('b', (plain(0), plain(2))),
    ]
    assert report.one_sided == 1


@pytest.mark.parametrize(
    'name',
    [
        '../outside.png',
        '/etc/passwd',
        'images/../../outside.png',
        'images/link.png',
        'up/outside.png',
        'images/0.png\0.jpg',
        '',
        '.',
        7,
        ['images/0.png'],
    ],
)
def test_names_that_lead_out_are_refused(folder, name, monkeypatch):
    lines(folder, dict(caption='a', jpg_0='images/0.png', jpg_1=name))
    monkeypatch.setattr(pairs, '_read_file', lambda path: pytest.fail(f'{path} was read'))
    assert 'metadata.jsonl: line 1' in refused(list, read_pairs(folder, max_bad=1))


def test_missing_files_and_strange_names_are_quarantined(folder):
    lines(
        folder,
        dict(caption='a', jpg_0='images/0.png', jpg_1='images/9.png'),
        dict(caption='b', jpg_0='x' * 400, jpg_1='images/1.png'),
        dict(caption='c', jpg_0='images', jpg_1='images/1.png'),
        b'{"caption": "\\ud83d", "jpg_0": "images/0.png", "jpg_1": "images/1.png"}',
    )
    report = PairReport()
    assert list(read_pairs(folder, report=report, max_bad=1)) == []
    assert [r['column'] for r in report.reasons] == [
        'jpg_1',
        'jpg_0',
        'jpg_0',
        'caption',
    ]
    assert report.undecodable == 4


@pytest.mark.parametrize(
    'line',
    [b'{"caption": "a"', b'[1, 2]', b'\xff\xfe', b'{"caption": "a", "file_name": "images/0.png"}'],
)
def test_bad_line_is_named(folder, line):
    lines(folder, dict(caption='a', jpg_0='images/0.png', jpg_1='images/1.png'), line)
    assert 'metadata.jsonl: line 2' in refused(list, read_pairs(folder))


# --- datasets


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def no(*args):
        raise AssertionError('the network was used')

    monkeypatch.setattr(socket.socket, 'connect', no)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))


def test_datasets_gives_the_same_pairs_as_reading_the_files(tmp_path, folder, offline):
    data = tmp_path / 'data'
    data.mkdir()
    for i in range(2):
        write_pairs(
            list(some_pairs(150))[75 * i : 75 * i + 75], data / f'train-{i:05d}-of-00002.parquet'
        )
    write_pairs(some_pairs(2), data / 'test-00000-of-00001.parquet')
    assert list(read_pairs(f'hub:{data}')) == list(some_pairs(150)) == list(read_pairs(data))
    assert list(read_pairs(f'hub:{data}', split='test', limit=1)) == list(some_pairs(1))
    for name in ('link.png', 'inner.png'):
        (folder / 'images' / name).unlink()
    (folder / 'up').unlink()
    lines(
        folder,
        *[
            dict(
                caption=c,
                jpg_0_file_name=f'images/{i}.png',
                jpg_1_file_name=f'images/{i + 1}.png',
                label_0=0.5,
            )
            for i, c in enumerate('ab')
        ],
    )
    assert [p.label_0 for p in read_pairs(f'hub:{folder}')] == [0.5, 0.5]
    assert list(read_pairs(f'hub:{folder}')) == list(read_pairs(folder))
    assert pairs_key(f'hub:{data}') == pairs_key(f'hub:{data}') != pairs_key(f'hub:{data}', 'test')


def test_datasets_errors_are_one_line(tmp_path, offline):
    data = tmp_path / 'data'
    data.mkdir()
    table(data / 'train-00000-of-00001.parquet', prompt=['x'], jpg_0=[plain(1)], jpg_1=[plain(2)])
    assert "no column 'caption'" in refused(read_pairs, f'hub:{data}')
    assert 'validation' in refused(read_pairs, f'hub:{data}', split='validation')
    refused(read_pairs, 'hub:nobody/there@main')
    refused(pairs_key, 'hub:nobody/there')


def test_dataset_row_that_names_another_file_is_refused(tmp_path, offline):
    import datasets

    data = tmp_path / 'data'
    data.mkdir()
    (tmp_path / 'secret.png').write_bytes(plain(1))
    features = datasets.Features(
        caption=datasets.Value('string'), jpg_0=datasets.Image(), jpg_1=datasets.Image()
    )

    def make(path):
        image = pa.array(
            [{'bytes': None, 'path': path}],
            pa.struct([('bytes', pa.binary()), ('path', pa.string())]),
        )
        meta = {'huggingface': json.dumps({'info': {'features': features.to_dict()}})}
        pq.write_table(
            pa.table(dict(caption=['a'], jpg_0=image, jpg_1=image)).replace_schema_metadata(meta),
            data / 'train-00000-of-00001.parquet',
        )

    make(str(tmp_path / 'secret.png'))
    assert 'refused' in refused(list, read_pairs(f'hub:{data}'))
    assert 'refused' in refused(
        pairs._hub_cell, {'bytes': None, 'path': '/etc/passwd'}, 'owner/name'
    )
    assert callable(
        pairs._hub_cell(
            {'bytes': None, 'path': 'hf://datasets/owner/name@0f1e/a.png'}, 'owner/name'
        )
    )
    refused(
        pairs._hub_cell,
        {'bytes': None, 'path': 'hf://datasets/owner/name2@0f1e/a.png'},
        'owner/name',
    )


# --- keys


def test_key_follows_the_data_and_not_the_place(tmp_path, folder):
    data = tmp_path / 'data'
    data.mkdir()
    write_pairs(some_pairs(20), data / 'a.parquet')
    key = pairs_key(data)
    assert re.fullmatch('[0-9a-f]{16}', key)
    data.rename(tmp_path / 'moved')
    assert pairs_key(tmp_path / 'moved') == key
    # one caption, as long as before
    one = list(some_pairs(20))
    one[-1] = make_pair('caption 91', one[-1].images, one[-1].label_0, one[-1].models)
    write_pairs(one, tmp_path / 'moved' / 'a.parquet')
    assert pairs_key(tmp_path / 'moved') != key
    write_pairs(some_pairs(20), tmp_path / 'moved' / 'a.parquet')
    assert pairs_key(tmp_path / 'moved') == key
    write_pairs(some_pairs(1), tmp_path / 'moved' / 'b.parquet')
    assert pairs_key(tmp_path / 'moved') != key
    row = dict(caption='a', jpg_0='images/0.png', jpg_1='images/1.png')
    keys = [pairs_key(lines(folder, row)), pairs_key(lines(folder, row | {'label_0': 1}))]
    (folder / 'images' / '1.png').write_bytes(plain(1, (40, 40)))
    keys.append(pairs_key(folder))
    (folder / 'images' / '1.png').unlink()
    keys.append(pairs_key(folder))
    assert len(set(keys)) == 4


# --- views of a pair


def test_both_images_get_the_same_view_whatever_their_size():
    small, large = (
        Image.fromarray(np.tile(np.linspace(0, 255, w).astype('uint8')[None, :, None], (h, 1, 3)))
        for w, h in ((96, 32), (192, 64))
    )
    firsts, mirrored = set(), set()
    for i in range(40):
        a, b = transform_pair((small, large), 16, f'pair {i}', crop='random', flip=True)
        # one picture at two sizes: one place, one direction
        assert (a.float() - b.float()).abs().max() < 6
        assert (
            a.float()
            - transform_pair((small, large), 16, f'pair {i}', crop='random', flip=True)[0].float()
        ).abs().max() == 0
        firsts.add(int(a[0, 0].min()))
        mirrored.add(bool(a[0, 0, 0] > a[0, 0, -1]))
    assert len(firsts) > 20
    assert mirrored == {True, False}
    tall = small.transpose(Image.Transpose.ROTATE_90)
    places = [draw_view(f'pair {i}', 0, 'random')[1] for i in range(40)]
    means = [
        transform_pair((tall, tall), 16, f'pair {i}', crop='random')[0, 0].float().mean().item()
        for i in range(40)
    ]
    # the tall one, bright above, is cut along its height: the lower the darker
    assert np.corrcoef(places, means)[0, 1] < -0.99


def test_view_depends_on_pair_and_seed_alone_and_flip_does_not_move_the_crop():
    views = [draw_view(f'{i}', seed, 'random', True) for i in range(50) for seed in (0, 1)]
    assert len(set(views)) == 100
    assert [draw_view(f'{i}', 0, 'random', False)[:2] for i in range(50)] == [
        v[:2] for v in views[::2]
    ]
    assert all(0 <= u < 1 and 0 <= v < 1 for u, v, _ in views)
    assert draw_view('x', 0, 'center', True)[:2] == (0.5, 0.5)
    assert draw_view('x') == (0.5, 0.5, False)
    assert 'diagonal' in refused(draw_view, 'x', 0, 'diagonal')


# others differ by torchvision's rounding to whole pixels
@pytest.mark.parametrize('size, tolerance', [((48, 48), 0), ((96, 64), 1), ((64, 92), 1)])
def test_centre_crop_agrees_with_torchvision(size, tolerance):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), 'uint8')).resize(
        size, Image.Resampling.BICUBIC
    )
    theirs = np.asarray(
        Compose([Resize(32, InterpolationMode.BILINEAR), CenterCrop(32)])(image)
    ).astype(int)
    assert abs(np.asarray(cut_square(image, 32)).astype(int) - theirs).max() <= tolerance


def test_extreme_shapes_cost_no_memory():
    thin = encoded(Image.new('RGB', (100, 1), 'red'))
    x = transform_pair((thin, plain(3, (1, 1))), 512, 'p')
    assert x.shape == (2, 3, 512, 512)
    assert x[0, 0].float().mean() == 255
    assert (x[1, 0] == 3).all()
    assert transform_pair(
        (Image.new('RGBA', (4, 4), (0, 0, 0, 0)), Image.new('L', (4, 4), 9)), 4, 'p'
    )[:, 0, 0, 0].tolist() == [255, 9]
