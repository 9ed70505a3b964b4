"""Pairs with the label of the vote, as public trainers read them: by our reader, and by the columns
and the rule of their scripts."""

import io
import json

import pandas as pd
import pytest
from PIL import Image

from balanceddpo.data.pairs import make_pair, number_ratings
from balanceddpo.data.sources import PairSource
from balanceddpo.voting import pair_files
from balanceddpo.voting.pair_files import check_pair_file, write_labelled_pairs
from made_pairs import encoded, refused, some_pairs

N = 8  # the pairs 2 and 5 are undecided, 7 has no label
SIGNS = [1, -1, 0, -1, 1, 0, 1]
DECIDED = [0, 1, 3, 4, 6]


@pytest.fixture
def pairs():
    return list(some_pairs(N))


@pytest.fixture
def labels(pairs):
    return pd.DataFrame({'pair_id': [p.pair_id for p in pairs[: len(SIGNS)]], 's': SIGNS})


def test_a_parquet_is_read_back_with_the_labels_of_the_vote(pairs, labels, tmp_path):
    told = write_labelled_pairs(pairs, labels, tmp_path / 'votes.parquet')
    assert told == (5, 2, 1)
    assert str(told) == '5 pairs written; left out: 2 undecided, 1 without a label'
    read = list(PairSource(str(tmp_path / 'votes.parquet')).read())
    assert [p.label_0 for p in read] == [1, 0, 0, 1, 1]
    for k, pair in zip(DECIDED, read):
        ours = pairs[k]
        assert (pair.pair_id, pair.caption, pair.images, pair.models) == (
            (ours.pair_id, ours.caption, ours.images, ours.models)
        )


def test_undecided_pairs_are_kept_as_pickapic_writes_them(pairs, labels, tmp_path):
    write_labelled_pairs(pairs, labels, tmp_path / 'a.parquet', undecided='keep')
    table = pd.read_parquet(tmp_path / 'a.parquet')
    assert list(table.label_0) == [1, 0, 0.5, 0, 1, 0.5, 1]
    assert list(table.label_0 + table.label_1) == [1] * 7


def test_the_public_scripts_find_the_winner_first(pairs, labels, tmp_path):
    """The columns that diffusers' and Salesforce's scripts name, and their rule: the images are
    swapped where `label_0 == 0`, then the first one is the preferred one."""
    from datasets import load_dataset

    folder = tmp_path / 'votes'
    folder.mkdir()
    write_labelled_pairs(pairs, labels, folder / 'train.parquet')
    data = load_dataset(str(folder), cache_dir=str(tmp_path / 'cache'), split='train')
    assert {'caption', 'jpg_0', 'jpg_1', 'label_0', 'model_0', 'model_1'} <= set(data.column_names)
    for k, row in zip(DECIDED, data, strict=True):
        images = [Image.open(io.BytesIO(row[c])).convert('RGB') for c in ('jpg_0', 'jpg_1')]
        if row['label_0'] == 0:
            images = images[::-1]
        won = 0 if SIGNS[k] > 0 else 1
        assert images[0].tobytes() == pairs[k].picture(won).tobytes()
        assert row['caption'] == pairs[k].caption


def test_rows_name_the_chosen_and_the_rejected_image(pairs, labels, tmp_path):
    write_labelled_pairs(pairs, labels, tmp_path / 'votes.jsonl')
    rows = [json.loads(line) for line in (tmp_path / 'votes.jsonl').read_text().splitlines()]
    for k, row in zip(DECIDED, rows, strict=True):
        assert row.keys() == {'prompt', 'chosen', 'rejected'}
        assert row['prompt'] == pairs[k].caption
        won = 0 if SIGNS[k] > 0 else 1
        assert (tmp_path / row['chosen']).read_bytes() == pairs[k].images[won]
        assert (tmp_path / row['rejected']).read_bytes() == pairs[k].images[1 - won]


def test_an_image_of_many_pairs_is_there_once(tmp_path):
    one, *others = (encoded(Image.new('RGB', (4, 4), (i, 0, 0))) for i in range(4))
    pairs = [make_pair('same', (one, other)) for other in others]
    labels = pd.DataFrame({'pair_id': [p.pair_id for p in pairs], 's': [1, 1, -1]})
    write_labelled_pairs(pairs, labels, tmp_path / 'votes.jsonl')
    assert len(list((tmp_path / 'votes_images').iterdir())) == 4


def test_the_two_folders_have_the_same_names_and_the_captions(pairs, labels, tmp_path):
    write_labelled_pairs(pairs, labels, tmp_path / 'votes')
    win, lose = (
        {p.name: p.read_bytes() for p in (tmp_path / 'votes' / side).iterdir()}
        for side in ('win', 'lose')
    )
    assert win.keys() == lose.keys()
    assert len(win) == 2 * len(DECIDED)
    for k in DECIDED:
        name, won = pairs[k].pair_id, 0 if SIGNS[k] > 0 else 1
        assert win[f'{name}.png'] == pairs[k].images[won]
        assert lose[f'{name}.png'] == pairs[k].images[1 - won]
        assert win[f'{name}.txt'] == lose[f'{name}.txt'] == pairs[k].caption.encode()


def test_a_pair_in_two_formats_or_a_rare_one_becomes_png(tmp_path):
    red, blue = (Image.new('RGB', (8, 8), c) for c in ('red', 'blue'))
    pairs = [
        make_pair('mixed\n  "lines"', (encoded(red, 'PNG'), encoded(blue, 'BMP'))),
        make_pair('jpeg', (encoded(red, 'JPEG'), encoded(blue, 'JPEG'))),
    ]
    labels = pd.DataFrame({'pair_id': [p.pair_id for p in pairs], 's': [-1, 1]})
    write_labelled_pairs(pairs, labels, tmp_path / 'votes')
    mixed, jpeg = (p.pair_id for p in pairs)
    with Image.open(tmp_path / f'votes/win/{mixed}.png') as image:
        assert image.format == 'PNG'
        assert image.getpixel((0, 0)) == (0, 0, 255)
    # a trainer takes each line for a caption
    assert (tmp_path / f'votes/win/{mixed}.txt').read_text() == 'mixed "lines"'
    assert (tmp_path / f'votes/win/{jpeg}.jpg').read_bytes() == pairs[1].images[0]


def test_a_second_rating_has_a_file_and_a_label_of_its_own(tmp_path):
    pair = next(some_pairs(1))
    ids = list(number_ratings([pair.pair_id] * 2))
    pairs = [make_pair(pair.caption, pair.images, rating=i) for i in (0, 1)]
    assert [p.pair_id for p in pairs] == ids
    labels = pd.DataFrame({'pair_id': ids, 's': [1, -1]})
    write_labelled_pairs(pairs, labels, tmp_path / 'votes')
    names = {p.stem for p in (tmp_path / 'votes/win').glob('*.png')}
    assert names == {ids[0], ids[1].replace('.', '-')}


@pytest.mark.parametrize('out', ['votes.parquet', 'votes.jsonl', 'votes'])
def test_a_writing_that_breaks_off_leaves_nothing(pairs, labels, tmp_path, out):
    def broken():
        yield from pairs[:5]
        raise OSError('the disk of the pairs is gone')

    with pytest.raises(OSError, match='is gone'):
        write_labelled_pairs(broken(), labels, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_read_one_at_a_time(pairs, labels, tmp_path, monkeypatch):
    "When the last pair is asked for, the first ones are on the disk already."
    seen = []

    def watched():
        for pair in pairs:
            seen.append(len(list(tmp_path.rglob('win/*.png'))))
            yield pair

    write_labelled_pairs(watched(), labels, tmp_path / 'votes')
    assert seen == [0, 1, 2, 2, 3, 4, 4, 5]


def test_what_cannot_be_written_is_refused(pairs, labels, tmp_path):
    none = labels.assign(s=0)
    for out in ('a.parquet', 'a.jsonl', 'a'):
        assert 'none of them is decided' in refused(
            write_labelled_pairs, pairs, none, tmp_path / out
        )
    assert list(tmp_path.iterdir()) == []
    assert 'name has no suffix' in refused(check_pair_file, tmp_path / 'a.csv')
    assert 'only a .parquet' in refused(check_pair_file, tmp_path / 'a', 'keep')
    assert "'drop' or 'keep'" in refused(check_pair_file, tmp_path / 'a', 'half')
    for name in ('a.parquet', 'a.jsonl'):
        (tmp_path / name).touch()
        assert 'is there already' in refused(check_pair_file, tmp_path / name)
    (tmp_path / 'b_images').mkdir()
    check_pair_file(tmp_path / 'b.jsonl')
    (tmp_path / 'b_images/mine.png').touch()
    assert 'b_images is there already' in refused(check_pair_file, tmp_path / 'b.jsonl')


def test_a_format_that_no_pair_has_is_no_suffix():
    assert pair_files.suffix_of(encoded(Image.new('RGB', (2, 2)), 'GIF')) == ''
    assert pair_files.suffix_of(encoded(Image.new('RGB', (2, 2)), 'WEBP')) == '.webp'
