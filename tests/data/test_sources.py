"""Edge cases of `balanceddpo.data.sources`: shares, columns, streaming, folders and hostile names,
datasets, keys, counts."""

import hashlib
import json
import os
import re
import socket
import tracemalloc
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from upath import UPath

import balanceddpo.data.pairs as pairs
import balanceddpo.data.rows as rows
import balanceddpo.data.sources as sources
import balanceddpo.data.tables as tables
from balanceddpo.data.pairs import PairReport, make_pair, write_pairs
from balanceddpo.data.sources import PairSource, count_rows, pairs_key, pairs_state, read_pairs
from made_pairs import noise, plain, refused, some_pairs, table

# --- a share of the rows


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


def ids_of(source):
    return [p.pair_id for p in source.read()]


def test_a_share_and_what_lies_beyond_it_are_the_larger_share(tmp_path):
    path = str(write_pairs(some_pairs(300), tmp_path / 'p.parquet'))
    for small, large in ((0.2, 0.5), (0.5, 1.0), (0.01, 0.9)):
        here, beyond = PairSource(path, share=small), PairSource(path, share=large, beyond=small)
        both = ids_of(PairSource(path, share=large))
        assert not set(ids_of(here)) & set(ids_of(beyond))
        assert ids_of(beyond) == [i for i in both if i not in set(ids_of(here))]
        assert len(ids_of(here)) + len(ids_of(beyond)) == len(both)


def test_ratings_of_one_pair_on_both_sides_of_a_share_are_lost_on_neither(tmp_path):
    rows = [(i, plain(i % 7), plain(i % 7 + 1)) for i in range(100)]
    path = write_pairs(
        (make_pair('again', images, i % 2, rating=i) for i, *images in rows),
        tmp_path / 'p.parquet',
    )
    sources = [
        PairSource(str(path), share=0.3),
        PairSource(str(path), share=0.6, beyond=0.3),
        PairSource(str(path), share=0.6),
    ]
    here, beyond, both = (
        sorted((p.image_ids, p.label_0) for p in source.read()) for source in sources
    )
    assert sorted(here + beyond) == both


def test_a_limit_counts_after_the_rows_that_are_left_out(tmp_path):
    path = str(write_pairs(some_pairs(60), tmp_path / 'p.parquet'))
    beyond = ids_of(PairSource(path, share=0.8, beyond=0.3))
    assert len(beyond) > 5
    assert ids_of(PairSource(path, share=0.8, beyond=0.3, limit=5)) == beyond[:5]


@pytest.mark.parametrize('beyond', [0.5, 0.7, -0.1, float('nan')])
def test_a_share_that_cannot_be_left_out_is_refused(beyond):
    message = refused(PairSource, 'icons', share=0.5, beyond=beyond)
    assert 'the share 0.5' in message
    assert f'not {beyond:g}' in message


# --- columns and files


def test_wrong_columns_are_named_before_anything_is_read(tmp_path, monkeypatch):
    folder = tmp_path / 'many'
    folder.mkdir()
    write_pairs(some_pairs(3), folder / 'a.parquet')
    table(folder / 'b.parquet', words=['x'], jpg_0=[plain(1)], jpg_1=[plain(2)])
    monkeypatch.setattr(pairs, 'decode', lambda data: pytest.fail('an image was decoded'))
    message = refused(read_pairs, folder)
    assert "no column 'caption'" in message
    assert 'b.parquet' in message
    assert 'words, jpg_0, jpg_1' in message


@pytest.mark.parametrize(
    'column, value, found',
    [
        ('jpg_1', 1.5, 'float'),
        ('jpg_0', 7, 'int'),
        ('caption', 3.5, 'float'),
        ('label_0', 4.0, '4.0'),
        ('label_1', 'yes', 'yes'),
        ('label_0', -0.1, '-0.1'),
    ],
)
def test_wrong_types_are_named(tmp_path, column, value, found):
    row = dict(caption=['a'], jpg_0=[plain(1)], jpg_1=[plain(2)], label_0=[1.0]) | {column: [value]}
    message = refused(list, read_pairs(table(tmp_path / 'x.parquet', **row), max_bad=1))
    assert column in message
    assert found in message
    assert 'x.parquet: row 0' in message


def test_paths_in_a_parquet_file_lead_nowhere_else(tmp_path):
    (tmp_path / 'secret.png').write_bytes(plain(1))
    folder = tmp_path / 'pairs'
    folder.mkdir()
    (folder / '7.png').write_bytes(plain(7))

    def read(path):
        cells = pa.array([{'bytes': None, 'path': path}, {'bytes': plain(5), 'path': 'x.png'}])
        columns = dict(caption=['a', 'b'], jpg_0=cells, jpg_1=[plain(2), plain(2)])
        return [p.images[0] for p in read_pairs(table(folder / 'x.parquet', **columns))]

    assert read('7.png') == read(str(folder / '7.png')) == [plain(7), plain(5)]
    for name in ('../secret.png', str(tmp_path / 'secret.png')):
        message = refused(read, name)
        assert 'x.parquet: row 0' in message
        assert 'leads out' in message


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
    assert 'spoilt.parquet' in refused(lambda: list(read_pairs(tmp_path / 'spoilt.parquet')))


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
    large, before = tables.ParquetTable.open([path], tmp_path), pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in large.take(range(24 * 64), large.names)]
    assert len(held) == 24 * 64
    assert max(held) < path.stat().st_size / 3


def test_only_the_row_groups_of_wanted_rows_are_read(tmp_path, monkeypatch):
    pairs = list(some_pairs(300))
    path = write_pairs(pairs, tmp_path / 'pairs.parquet')  # row groups of 64
    read, real = [], pq.ParquetFile.iter_batches

    def counted(file, size, row_groups, columns):
        read.extend(row_groups)
        return real(file, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, 'iter_batches', counted)
    numbers = [3, 63, 64, 299]
    found = list(sources.numbered_rows(path).take(numbers))
    assert [where.rsplit(' ', 1)[1] for where, _ in found] == ['3', '63', '64', '299']
    assert [row['caption'] for _, row in found] == [pairs[n].caption for n in numbers]
    assert read == [0, 0, 1, 4]  # the first time for the small cells of the first row


def test_nothing_is_decoded_ahead(tmp_path, monkeypatch):
    grey = partial(Image.new, 'L', (1, 1))
    path, calls = write_pairs(some_pairs(300), tmp_path / 'pairs.parquet'), []
    monkeypatch.setattr(
        pairs, 'decode', lambda data, background: calls.append(data) or grey(len(calls))
    )
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
    monkeypatch.setattr(rows, 'read_named', lambda path: pytest.fail(f'{path} was read'))
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
    assert len(PairSource(str(folder)).key) == 16
    assert pairs_state(folder)


def test_a_share_or_limit_without_pairs_is_refused(tmp_path):
    source = str(write_pairs(some_pairs(4), tmp_path / 'pairs.parquet'))
    for limit in (0, -1):
        assert 'at least 1 row' in refused(PairSource, source, limit=limit)
    assert 'no row is in the share 1e-09 of it' in refused(PairSource(source, share=1e-9).read)


@pytest.mark.parametrize(
    'line',
    [
        b'{"caption": "a"',
        b'[1, 2]',
        b'\xff\xfe',
        b'{"caption": "a", "file_name": "images/0.png"}',
        b'[' * 100_000,
        b'{"caption": "a", "jpg_0": "images/0.png", "jpg_1": "\\ud83d.png"}',
    ],
)
def test_bad_line_is_named(folder, line):
    lines(folder, dict(caption='a', jpg_0='images/0.png', jpg_1='images/1.png'), line)
    assert 'metadata.jsonl: line 2' in refused(list, read_pairs(folder))


# --- URLs


@pytest.fixture
def bucket():
    "A store in memory, behind fsspec."
    place = UPath('memory://bucket')
    place.mkdir(parents=True, exist_ok=True)
    yield place
    place.rmdir(recursive=True)


def test_a_url_is_read_like_a_file(bucket, tmp_path):
    path = write_pairs(some_pairs(150), tmp_path / 'train-00000-of-00001.parquet')
    here, there = PairSource(str(tmp_path)), PairSource('memory://bucket/pairs')
    (bucket / 'pairs').mkdir()
    (bucket / 'pairs' / path.name).write_bytes(path.read_bytes())
    assert list(there.read()) == list(here.read())
    assert there.key == here.key  # the same pairs, wherever they are
    assert count_rows('memory://bucket/pairs') == 150
    state = there.named.state
    (bucket / 'pairs' / path.name).write_bytes(path.read_bytes())
    assert there.named.state != state


def test_a_folder_behind_a_url_names_no_file_outside(bucket):
    for n in (0, 1):
        (bucket / f'{n}.png').write_bytes(plain(n))

    def pairs(name):
        row = {'caption': 'a', 'jpg_0': '0.png', 'jpg_1': name}
        (bucket / 'metadata.jsonl').write_text(json.dumps(row))
        return list(read_pairs('memory://bucket'))

    assert [p.images for p in pairs('1.png')] == [(plain(0), plain(1))]
    for name in ('../1.png', '/etc/passwd', 'memory://other/1.png', 'a/../../1.png'):
        assert 'leads out of memory://bucket: refused' in refused(pairs, name)
    assert 'undecodable' in refused(pairs, '2.png')


def test_a_url_that_cannot_be_read_is_one_line():
    assert 'memory://bucket/none: no such file' in refused(read_pairs, 'memory://bucket/none')
    assert "no://bucket cannot be read: ValueError: Unsupported filesystem: 'no'" in refused(
        read_pairs, 'no://bucket'
    )


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
    table(data / 'train-00000-of-00001.parquet', words=['x'], jpg_0=[plain(1)], jpg_1=[plain(2)])
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
        sources._hub_cell, {'bytes': None, 'path': '/etc/passwd'}, 'owner/name'
    )
    assert callable(
        sources._hub_cell(
            {'bytes': None, 'path': 'hf://datasets/owner/name@0f1e/a.png'}, 'owner/name'
        )
    )
    refused(
        sources._hub_cell,
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


def test_the_key_of_a_source_is_the_one_that_it_had_before_rows_could_be_left_out(tmp_path):
    path = str(write_pairs(some_pairs(3), tmp_path / 'p.parquet'))

    def by_hand(text):
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    whole, few = PairSource(path), PairSource(path, limit=7, share=0.5)
    assert whole.key == by_hand(f'["{pairs_key(path)}",null,1.0]')
    assert few.key == by_hand(f'["{pairs_key(path)}",7,0.5]')
    assert PairSource(path, limit=7, share=0.5, beyond=0.0).key == few.key
    others = [PairSource(path, limit=7, share=0.5, beyond=b).key for b in (0.2, 0.3)]
    assert len({few.key, *others}) == 3


# --- how many rows


def test_rows_are_counted_as_they_are_read(tmp_path, folder):
    path = write_pairs(some_pairs(37), tmp_path / 'p.parquet')
    assert count_rows(path) == len(list(read_pairs(path))) == 37
    assert count_rows(str(path), limit=5) == 5
    assert count_rows(path, limit=50) == 37
    assert count_rows(path, share=0.5) == 18  # 18.5, to the even one
    assert count_rows(path, limit=5, share=0.5) == 5
    row = dict(caption='a', jpg_0='images/0.png', jpg_1='images/1.png')
    assert count_rows(lines(folder, row, b'', row | {'caption': 'b'})) == 2
    # a folder for each split
    (folder / 'test').mkdir()
    (folder / 'metadata.jsonl').rename(folder / 'test' / 'metadata.jsonl')
    for name in ('0.png', '1.png'):
        (folder / 'test' / 'images').mkdir(exist_ok=True)
        (folder / 'images' / name).rename(folder / 'test' / 'images' / name)
    assert count_rows(folder, split='test') == 2


def test_rows_of_a_split_are_counted_apart(tmp_path):
    for name, n in (('train-00000-of-00002', 3), ('train-00001-of-00002', 4), ('test', 2)):
        write_pairs(some_pairs(n), tmp_path / f'{name}.parquet')
    assert count_rows(tmp_path) == 7
    assert count_rows(tmp_path, split='test') == 2
    assert 'validation' in refused(count_rows, tmp_path, split='validation')


def test_rows_are_counted_without_reading_an_image(tmp_path, monkeypatch):
    path = write_pairs(some_pairs(3), tmp_path / 'p.parquet')
    monkeypatch.setattr(pairs, 'decode', lambda data: pytest.fail('an image was decoded'))
    assert count_rows(path) == 3


def test_what_cannot_be_counted(tmp_path):
    assert count_rows('hub:owner/name') is None
    assert count_rows('hub:owner/name', limit=8) == 8
    assert 'no such file' in refused(count_rows, tmp_path / 'gone.parquet')
    table(tmp_path / 'x.parquet', words=['x'], jpg_0=[plain(1)], jpg_1=[plain(2)])
    assert "no column 'caption'" in refused(count_rows, tmp_path / 'x.parquet')


def test_a_share_of_a_large_row_group_is_read(tmp_path):
    "Of a row group of more than 64 rows some batches hold none of the rows that are wanted."
    write_pairs(some_pairs(200), tmp_path / 'small.parquet')
    pq.write_table(pq.read_table(tmp_path / 'small.parquet'), tmp_path / 'large.parquet')
    small, large = (
        ids_of(PairSource(str(tmp_path / f'{name}.parquet'), share=0.01))
        for name in ('small', 'large')
    )
    assert small == large
    assert 0 < len(small) < 10
