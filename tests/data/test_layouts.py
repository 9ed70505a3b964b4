"Every layout in which preference sets are published is read into the same pairs."

import json
import tarfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from plugin_package import install

from balanceddpo.data import samples
from balanceddpo.data.columns import label_of_word
from balanceddpo.data.pairs import PairReport
from balanceddpo.data.rows import Ranked, pairs_of_group
from balanceddpo.data.sources import PairSource, numbered_rows
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs
from made_pairs import noise, plain, refused, table
from made_scores import make_table
from public_layouts import LAYOUTS, PAIRS, files, pairs_of


def said(pairs):
    return sorted((p.caption, p.images, p.label_0) for p in pairs)


def source_in(name, folder):
    source, options = LAYOUTS[name][0](folder)
    return PairSource(source, **options)


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_layout_is_read_into_the_same_pairs(tmp_path, name):
    source = source_in(name, tmp_path / 'data')
    assert said(source.read()) == said(pairs_of(name))
    assert source.count() == len(pairs_of(name))
    captions = [row['caption'] for _, row in source.rows()]
    rows = numbered_rows(source.source, source.reading)
    assert [row['caption'] for _, row in rows.take(range(1, len(rows)))] == captions[1:]


@pytest.mark.parametrize('name', LAYOUTS)
def test_the_key_of_a_layout_follows_its_content(tmp_path, name):
    one, again = (source_in(name, tmp_path / f'{k}') for k in 'ab')
    assert one.key == again.key or name == 'saved_by_datasets'  # that has a fingerprint of its own
    assert one.named.state != again.named.state
    assert replace(one, caption_seed=3).key != one.key
    picture = next((f for f in (tmp_path / 'a').rglob('*.png')), None)
    if picture:
        picture.resolve().write_bytes(plain(9, (9, 9)))
        assert one.key != again.key


def test_the_pairs_are_kept_apart_by_what_is_said_of_them(tmp_path):
    names = files(tmp_path, PAIRS)
    rows = [dict(prompt='a', image_0=a, image_1=b, x=1, y=0) for a, b in names]
    pd.DataFrame(rows).to_csv(tmp_path / 'pairs.csv', index=False)
    plain_source = PairSource(str(tmp_path / 'pairs.csv'))
    other = replace(plain_source, columns=('label_0=x',))
    third = replace(plain_source, columns=('label_0=y',))
    assert len({s.key for s in (plain_source, other, third)}) == 3
    assert [[p.label_0 for p in s.read()] for s in (plain_source, other, third)] == [
        [None] * 3,
        [1.0] * 3,
        [0.0] * 3,
    ]


# --- labels


@pytest.mark.parametrize(
    ('text', 'label'),
    [
        ('left', 1.0),
        ('Second', 0.0),
        ('image_b', 0.0),
        ('Image A', 1.0),
        ('neither', 0.5),
        ('0.7', 0.7),
        ('1', 1.0),
        ('2', 2.0),  # no label, as the row says
        ('fox', None),
    ],
)
def test_a_word_or_a_number_in_text_is_a_label(text, label):
    assert label_of_word(text, ('image_a', 'image_b')) == label


def labels_of(path, **columns):
    rows = dict(caption=['a', 'b'], jpg_0=[plain(1)] * 2, jpg_1=[plain(2)] * 2)
    return [p.label_0 for p in PairSource(str(table(path, **rows | columns))).read()]


def test_labels_are_truth_values_shares_or_words(tmp_path):
    path = tmp_path / 'x.parquet'
    assert labels_of(path, label_0=[True, False]) == [1.0, 0.0]
    assert labels_of(path, label_0=[0.7, None]) == [0.7, None]
    assert labels_of(path, label_0=['1', '0.25']) == [1.0, 0.25]
    assert labels_of(path, label_1=['0.25', '']) == [0.75, None]
    assert labels_of(path, label_0=[0.7, 0.7], label_1=[0.3, 0.7]) == [0.7, None]
    assert labels_of(path, votes_0=[3, 0], votes_1=[1, 0]) == [0.75, None]
    assert labels_of(path, winner=['left', 'jpg_1']) == [1.0, 0.0]
    for wrong in (dict(label_0=[1.0, 2.0]), dict(label_0=['left', 'maybe'])):
        message = refused(labels_of, path, **wrong)
        assert 'x.parquet: row 1' in message
        assert "'label_0'" in message
    assert 'numbers of votes' in refused(labels_of, path, votes_0=[3, -1], votes_1=[1, 2])


def test_a_column_that_may_be_a_label_is_told_and_not_guessed(tmp_path):
    path = tmp_path / 'x.parquet'
    assert labels_of(path, preference=[1, 0]) == [None, None]
    with pytest.warns(UserWarning, match='preference may be some: say --columns label_0=NAME'):
        PairSource(str(path)).require()
    assert labels_of(path, preference=['1', '0']) == [None, None]


def test_a_soft_vote_of_people_is_a_soft_label(tmp_path):

    scores = make_table(np.zeros((4, 2, 1)), label_0=np.array([0.7, 0.0, 0.5, 1.0]))
    labels = label_pairs(scores, LabelConfig('human'))
    assert labels.w0.tolist() == pytest.approx([0.7, 0, 0, 1])
    assert labels.w1.tolist() == pytest.approx([0.3, 1, 0, 0])
    assert labels.s.tolist() == [1, -1, 0, 1]


@pytest.mark.parametrize('form', ['parquet', 'jsonl'])
def test_the_label_that_is_said_is_the_only_one(tmp_path, form):
    names = files(tmp_path, PAIRS[:1])[0]
    row = dict(caption='a', jpg_0=names[0], jpg_1=names[1], label_0=1.0, label_1=0.0, mine=0.25)
    path = tmp_path / f'pairs.{form}'
    if form == 'parquet':
        table(path, **{name: [value] for name, value in row.items()})
    else:
        path.write_text(json.dumps(row))

    def label(*columns):
        (pair,) = PairSource(str(path), columns=columns).read()
        return pair.label_0

    assert label() == 1.0
    assert label('label_0=mine') == 0.25
    assert label('label_1=mine') == 0.75
    assert label('label_0=label_1') == 0.0


def test_a_label_that_comes_later_in_a_file_of_lines_is_read(tmp_path):
    names = files(tmp_path, PAIRS)
    rows = [dict(caption='a', jpg_0=a, jpg_1=b) for a, b in names]
    rows[2]['label_0'] = 1
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    labels = [p.label_0 for p in PairSource(str(tmp_path / 'pairs.jsonl')).read()]
    assert labels == [None, None, 1.0]


# --- captions


def test_one_of_several_captions_is_drawn_by_seed(tmp_path):
    words = [[f'caption {k} of {n}' for k in range(3)] for n in range(40)]
    cells = dict(
        jpg_0=[plain(2 * n) for n in range(40)], jpg_1=[plain(2 * n + 1) for n in range(40)]
    )
    source = PairSource(str(table(tmp_path / 'x.parquet', caption=words, **cells)))
    drawn = [p.caption for p in source.read()]
    assert all(text in some for text, some in zip(drawn, words, strict=True))
    assert len({text[8] for text in drawn}) == 3
    assert [p.caption for p in source.read()] == drawn
    assert [p.caption for p in replace(source, limit=7).read()] == drawn[:7]
    assert [p.caption for p in replace(source, caption_seed=1).read()] != drawn


# --- rankings


def test_rankings_become_pairs_by_the_stated_rule():
    group = [Ranked(n, None, rank) for n, rank in enumerate([3, 1, 2, 1])]

    def pairs(rule):
        return [(c.one.row, c.other.row, c.label_0) for c in pairs_of_group(group, rule)]

    assert pairs('all') == [
        (0, 1, 0.0),
        (0, 2, 0.0),
        (0, 3, 0.0),
        (1, 2, 1.0),
        (1, 3, 0.5),
        (2, 3, 0.0),
    ]
    assert pairs('neighbours') == [(1, 3, 0.5), (2, 3, 0.0), (0, 2, 0.0)]
    assert pairs('ends') == [(0, 1, 0.0)]
    assert pairs_of_group(group[:1], 'all') == []


def test_a_list_of_ranked_files_is_a_group(tmp_path):
    for n in range(3):
        (tmp_path / f'{n}.png').write_bytes(plain(n))
    row = dict(prompt='a', generations=['0.png', '1.png', '2.png'], ranking=[2, 3, 1])
    (tmp_path / 'x.json').write_text(json.dumps([row]))
    source = PairSource(str(tmp_path / 'x.json'))
    assert [(p.images, p.label_0) for p in source.read()] == [
        ((plain(0), plain(1)), 1.0),
        ((plain(0), plain(2)), 0.0),
        ((plain(1), plain(2)), 0.0),
    ]
    ends = replace(source, rankings='ends')
    assert [(p.images, p.label_0) for p in ends.read()] == [((plain(1), plain(2)), 0.0)]
    assert ends.key != source.key
    for wrong in ([1, 2, 'best'], [1, 2, 3, 4], [1, 2]):
        (tmp_path / 'x.json').write_text(json.dumps([row | {'ranking': wrong}]))
        assert 'x.json: row 0' in refused(lambda: list(source.read()))


# --- what is refused


@pytest.mark.parametrize(
    ('columns', 'said'),
    [
        (
            dict(caption=['a'], image_0_url=['https://x/0.png'], image_1_url=['https://x/1.png']),
            'image_0_url',
        ),
        (dict(caption=['a'], jpg_0=['https://x/0.png'], jpg_1=['https://x/1.png']), '--images'),
        (dict(caption=['a'], jpg_0=[b'']), "no column 'jpg_1'"),
        (dict(words=['a'], jpg_0=[b''], jpg_1=[b'']), 'caption=NAME'),
    ],
)
def test_what_has_no_pictures_is_told_what_to_do(tmp_path, columns, said):
    message = refused(PairSource(str(table(tmp_path / 'x.parquet', **columns))).require)
    assert 'x.parquet' in message
    assert said in message


@pytest.mark.parametrize('wrong', ['caption', 'caption=', 'capton=words', 'jpg_0=gone'])
def test_columns_that_make_no_sense_are_refused(tmp_path, wrong):
    path = table(tmp_path / 'x.parquet', caption=['a'], jpg_0=[plain(1)], jpg_1=[plain(2)])
    message = refused(PairSource(str(path), columns=(wrong,)).require)
    assert wrong.split('=')[0] in message or 'gone' in message


def test_the_picture_that_is_not_said_is_named(tmp_path):
    path = table(tmp_path / 'x.parquet', caption=['a'], one=[plain(1)], other=[plain(2)])
    assert "no column 'jpg_1'" in refused(PairSource(str(path), columns=('jpg_0=one',)).require)
    assert "no column 'jpg_0'" in refused(PairSource(str(path), columns=('jpg_1=one',)).require)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / 'a.csv').write_text('caption,jpg_0,jpg_1\na,b\n')
    (tmp_path / 'a.json').write_text('{"caption": 1}')
    (tmp_path / 'a.tar').write_bytes(b'no tar' * 200)
    (tmp_path / 'twice.csv').write_text('caption,caption,jpg_0\na,b,c\n')
    with tarfile.open(tmp_path / 'packed.tar', 'w:gz') as tar:
        tar.add(tmp_path / 'a.csv', 'a.csv')
    for name in ('a.csv', 'a.json', 'a.tar', 'twice.csv', 'packed.tar'):
        assert name in refused(PairSource(str(tmp_path / name)).require)
    for tar in ('a.tar', 'packed.tar'):
        (tmp_path / tar).unlink()
    assert 'Name the file' in refused(PairSource(str(tmp_path)).require)


def test_a_picture_of_one_side_alone_is_one_sided(tmp_path):
    for side, names in (('win', 'ab'), ('lose', 'bc')):
        (tmp_path / side).mkdir()
        for name in names:
            (tmp_path / side / f'fox {name}.png').write_bytes(noise(ord(name) + len(side)))
    report = PairReport()
    (pair,) = PairSource(str(tmp_path)).read(report)
    assert pair.caption == 'fox b'
    assert report.one_sided == 2
    assert [r['fault'] for r in report.reasons] == ['one_sided'] * 2
    (tmp_path / 'win' / 'fox b.jpg').write_bytes(plain(3))
    assert 'fox b.jpg and fox b.png have one name' in refused(PairSource(str(tmp_path)).require)
    (tmp_path / 'win' / 'fox b.jpg').unlink()
    (tmp_path / 'win' / '17.png').write_bytes(plain(1))
    assert '17.txt' in refused(PairSource(str(tmp_path)).require)


def test_a_tar_does_not_hold_a_text_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, 'MAX_TEXT', 3)
    source = source_in('webdataset', tmp_path / 'data')
    assert 'at most 3' in refused(source.require)


# --- readers of packages

READERS = """
from pathlib import Path

def mine(place, split):
    other = (Path(place) / '9.png').read_bytes
    for n in range(2):
        yield dict(prompt=f'{split} {n}', chosen=f'{n}.png', rejected=other)

def fails(place, split):
    yield dict(prompt='a')
    raise OSError('the moon is full')

def wrong(place, split):
    return ['a']
"""


def test_a_reader_of_an_installed_package_is_called_by_its_name(tmp_path, monkeypatch):
    offered = {name: name for name in ('mine', 'fails', 'wrong')}
    install(tmp_path / 'site', monkeypatch, READERS, readers=offered)
    for n in (0, 1, 9):
        (tmp_path / f'{n}.png').write_bytes(plain(n))
    source = PairSource(f'mine:{tmp_path}', split='test')
    assert [(p.caption, p.images, p.label_0) for p in source.read()] == [
        (f'test {n}', (plain(n), plain(9)), 1.0) for n in (0, 1)
    ]
    assert source.count() == 2
    assert source.key != replace(source, split='train').key
    assert "the reader 'fails' failed" in refused(PairSource('fails:x').require)
    assert 'the moon is full' in refused(PairSource('fails:x').require)
    assert "the reader 'wrong' gave str: rows are dicts" in refused(PairSource('wrong:x').require)
    assert 'no such file' in refused(PairSource('nobody:x').require)
