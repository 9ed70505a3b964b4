"""Pictures with prompts: where both come from, in which order, and what is refused."""

import io
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from balanceddpo.core.errors import InputError
from balanceddpo.data.prompted_pictures import PictureSource, holds_pictures


def png(colour='red', parameters=None):
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    if parameters:
        info.add_text('parameters', parameters)
    Image.new('RGB', (8, 8), colour).save(out, 'PNG', pnginfo=info)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    "Three pictures, one in a sub-folder, whose names spell prompts; and what is none."
    root = tmp_path / 'pictures'
    for name in ('b_cat_2.png', 'sub/a_dog.PNG', 'a_cat.jpeg'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
    for name in ('._a_cat.png', '.cache/a_fox.png', 'notes.md'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'')
    return root


def texts(source):
    return dict(zip(source.found.names, source.prompts))


def test_the_names_are_relative_and_sorted(folder):
    source = PictureSource.of(folder)
    assert texts(source) == {
        'a_cat.jpeg': 'a cat',
        'b_cat_2.png': 'b cat',
        'sub/a_dog.PNG': 'a dog',
    }
    assert source.how == 'the names of the files'
    assert list(source.found.cells([0, 2])) == [png(), png()]


def test_the_ways_go_in_their_order(folder):
    "Each way is added to those behind it, and takes over."
    found = []

    def look(**options):
        found.append([*PictureSource.of(folder, **options).prompts])

    look()
    for name, text in (
        ('a_cat.jpeg', 'kept 1'),
        ('b_cat_2.png', 'kept 2'),
        ('sub/a_dog.PNG', 'k 3'),
    ):
        (folder / name).write_bytes(png(parameters=f'{text}\nSteps: 3, Seed: 1'))
    look()
    for name in ('a_cat', 'b_cat_2', 'sub/a_dog'):
        (folder / f'{name}.txt').write_text(f'beside\n {name}\n')
    look()
    rows = ['file_name,Prompt', 'a_cat.jpeg,"one, 1"', './b_cat_2.png,two', 'sub/a_dog.PNG,three']
    (folder / 'metadata.csv').write_text('\n'.join(rows))
    look()
    rows = [dict(file_name=n, caption=f'of {n}') for n in ('b_cat_2.png', 'a_cat.jpeg')]
    rows.append(dict(file_name='sub/a_dog.PNG', caption='of a dog', more=[1]))
    (folder / 'metadata.jsonl').write_text('\n\n'.join(map(json.dumps, rows)))
    look()
    (folder / 'lines.txt').write_text('1\n2\n3\n')
    look(prompts=folder / 'lines.txt')
    look(prompt=' a cat ')
    assert found == [
        ['a cat', 'b cat', 'a dog'],
        ['kept 1', 'kept 2', 'k 3'],
        ['beside a_cat', 'beside b_cat_2', 'beside sub/a_dog'],
        ['one, 1', 'two', 'three'],
        ['of a_cat.jpeg', 'of b_cat_2.png', 'of a dog'],
        ['1', '2', '3'],
        ['a cat'] * 3,
    ]


def refused(folder, **options):
    with pytest.raises(InputError) as told:
        PictureSource.of(folder, **options)
    assert '\n' not in str(told.value)
    return str(told.value)


def test_ways_are_not_mixed(folder):
    (folder / 'a_cat.txt').write_text('one')
    assert 'the .txt beside each picture, and 2 of 3 pictures have none' in refused(folder)
    assert "the first is 'b_cat_2.png'" in refused(folder)
    (folder / 'metadata.jsonl').write_text(json.dumps(dict(file_name='a_cat.jpeg', text='x')))
    assert 'the metadata in the folder, and 2 of 3 pictures' in refused(folder)


def test_a_damaged_png_needs_no_prompt(folder):
    for path in (folder / 'b_cat_2.png', folder / 'sub/a_dog.PNG'):
        path.write_bytes(png(parameters='a cat'))
    (folder / 'a_cat.jpeg').write_bytes(b'damaged')
    source = PictureSource.of(folder)
    assert source.prompts == ('', 'a cat', 'a cat')


def test_a_prompt_too_many_or_too_few(folder, tmp_path):
    lines = tmp_path / 'lines.txt'
    lines.write_text('one\ntwo\n')
    assert 'has 2 lines, and there are 3 pictures' in refused(folder, prompts=lines)
    lines.write_text('one\n\nthree')
    assert 'line 2 holds no prompt' in refused(folder, prompts=lines)
    lines.write_bytes(b'\xff\xfe\nx\ny')
    assert 'is not UTF-8' in refused(folder, prompts=lines)
    lines.write_text('\ufeffone\u2028still one\r\ntwo\r\nthree\r\n', newline='')
    assert PictureSource.of(folder, prompts=lines).prompts == ('one still one', 'two', 'three')
    assert 'not both' in refused(folder, prompts=lines, prompt='x')
    assert 'is empty' in refused(folder, prompt=' ')


def test_no_way_is_refused_with_all_of_them(tmp_path):
    (tmp_path / 'IMG_1.png').write_bytes(png())
    said = refused(tmp_path)
    for way in ('--prompt', '--prompts', 'metadata.jsonl', '.txt beside', 'A1111', 'a_red_fox.png'):
        assert way in said


@pytest.mark.parametrize(
    'line, says',
    [
        ('{"file_name": "a_cat.jpeg"}', "line 1: no column 'Prompt'; found file_name"),
        ('{"jpg_0": "a_cat.jpeg", "caption": "x"}', 'line 1: no file_name; found jpg_0, caption'),
        ('[]', 'line 1: a JSON object is wanted, found list'),
        ('{', 'line 1 is not JSON in UTF-8'),
    ],
)
def test_metadata_that_cannot_be_meant(folder, line, says):
    (folder / 'metadata.jsonl').write_text(line)
    assert says in refused(folder)


def test_metadata_leads_nowhere(folder, tmp_path):
    "A name in it is only compared with those that were found."
    (tmp_path / 'secret.png').write_bytes(png())
    rows = [dict(file_name='../secret.png', text='x')]
    rows += [dict(file_name=n, text='y') for n in ('a_cat.jpeg', 'b_cat_2.png', 'sub/a_dog.PNG')]
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert set(texts(PictureSource.of(folder)).values()) == {'y'}


def test_places_that_are_not_pictures(tmp_path, folder):
    (tmp_path / 'empty').mkdir()
    assert 'no pictures in this folder' in refused(tmp_path / 'empty')
    assert 'no such file' in refused(tmp_path / 'nowhere')
    assert 'name one folder' in refused([folder, folder / 'a_cat.jpeg'])
    assert 'name the pictures' in refused([])
    files = [folder / 'b_cat_2.png', folder / 'a_cat.jpeg']
    assert PictureSource.of(files).prompts == ('a cat', 'b cat')
    assert holds_pictures(folder)
    assert not holds_pictures(tmp_path / 'empty')
    (folder / 'model_index.json').touch()
    assert not holds_pictures(folder)


def test_a_parquet(tmp_path):
    path = tmp_path / 'x.parquet'
    cells = [dict(bytes=png('red'), path='/etc/passwd'), dict(bytes=png('blue'), path=None)]
    table = pa.table({'id': [1, 2], 'text': ['one', ' two  '], 'image': cells})
    pq.write_table(table, path)
    source = PictureSource.of(path)
    assert source.prompts == ('one', 'two')
    assert list(source.found.cells([1])) == [png('blue')]
    assert source.how == 'the column of texts'
    assert PictureSource.of(path, prompt='x').prompts == ('x', 'x')
    cells[1] = dict(bytes=None, path='/etc/passwd')
    pq.write_table(table.set_column(2, 'image', [cells]), path)
    good, bad = PictureSource.of(path).found.cells([0, 1])
    assert good == png('red')
    assert 'holds no bytes' in str(bad)


@pytest.mark.parametrize(
    'columns, says',
    [
        (dict(caption=['x'], jpg_0=[b'1'], jpg_1=[b'2']), 'jpg_0, jpg_1 may all hold pictures'),
        (dict(caption=['x'], image=['a.png']), 'no column of pictures'),
        (dict(words=['x'], image=[b'1']), "no column 'Prompt'; found words, image"),
        (dict(text=[None], image=[b'1']), 'the column of texts, and 1 of 1 pictures have none'),
        (dict(text=[], image=pa.array([], pa.binary())), 'no pictures: it is empty'),
    ],
)
def test_a_parquet_that_cannot_be_meant(tmp_path, columns, says):
    pq.write_table(pa.table(columns), tmp_path / 'x.parquet')
    assert says in refused(tmp_path / 'x.parquet')


def test_many_rows_are_read_in_their_order(tmp_path):
    cells = [str(n).encode() for n in range(200)]
    pd.DataFrame({'prompt': ['x'] * 200, 'picture': cells}).to_parquet(
        tmp_path / 'x.parquet', row_group_size=70
    )
    found = PictureSource.of(tmp_path / 'x.parquet').found
    assert list(found.cells(range(200))) == cells
    assert list(found.cells([3, 69, 70, 199])) == [b'3', b'69', b'70', b'199']


def test_damaged_prompts_of_a_parquet_are_told_with_the_file(tmp_path):
    path = tmp_path / 'x.parquet'
    table = pa.table({'prompt': [f'a fox {n}' for n in range(500)], 'picture': [b'x'] * 500})
    pq.write_table(table, path, use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data[:60] + b'\xff' * 200 + data[260:])
    assert f'{path} is damaged' in refused(path)


def test_the_state_changes_with_a_file_and_not_with_time(folder):
    def state():
        return PictureSource.of(folder).found.state

    before = state()
    assert state() == before
    data = (folder / 'a_cat.jpeg').read_bytes()
    stat = (folder / 'a_cat.jpeg').stat()
    (folder / 'a_cat.jpeg').write_bytes(data[:-1] + b'x')
    os.utime(folder / 'a_cat.jpeg', ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert state() != before
