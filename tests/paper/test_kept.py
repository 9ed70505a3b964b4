"What was scored is kept: it comes back as it was, and no rendering makes anything."

import io
import json
import pickle
from hashlib import sha256

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from balanceddpo.core.devices import versions
from balanceddpo.core.errors import InputError
from balanceddpo.paper.kept import Kept, read_how_made
from balanceddpo.paper.provenance import Making, write_provenance

RED, BLUE = (Image.new('RGB', (8, 6), color) for color in ('red', 'blue'))


def scores():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            'model': ['b', 'a', 'b', 'a'],
            'seed': np.array([3, 1, 2, 0], 'int8'),
            'sampler': '{"steps": 12}',
            'prompt': ['$ä', '', 'a\nb', None],
            'hps': rng.normal(size=4).astype('float32'),
            'clip': rng.normal(size=4),
            'correct': [True, False, True, True],
            'label_0': [1.0, np.nan, 0.0, 0.5],
            'task': pd.Categorical(['x', 'y', 'x', 'x'], ['y', 'x']),
        }
    )


def must_not_run():
    raise AssertionError('a rendering made something')


@pytest.fixture
def run(tmp_path):
    return Kept('figure02', tmp_path / 'out')


@pytest.fixture
def rendering(tmp_path):
    return Kept('figure02', tmp_path / 'out', from_scores=True)


def refused(ask, *args, **kwargs):
    "The one line of the InputError that `ask` raises."
    with pytest.raises(InputError) as e:
        ask(*args, **kwargs)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


# what comes back


def test_a_table_comes_back_as_it_was_from_the_run_and_from_the_file(run, rendering):
    first, again, original = (
        run.table('scores', scores),
        rendering.table('scores', must_not_run),
        scores(),
    )
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    pd.testing.assert_frame_equal(first, original.astype({'task': 'str'}), check_exact=True)
    assert first.hps.dtype == 'float32'
    assert first.seed.dtype == 'int8'
    assert first.correct.dtype == bool
    assert first.hps.to_numpy().tobytes() == original.hps.to_numpy().tobytes()
    assert list(first.index) == [0, 1, 2, 3]
    assert run.files == rendering.files


def test_categories_are_text_and_the_index_is_not_kept(run):
    table = run.table('scores', lambda: scores().set_index('model'))
    assert list(table.columns) == list(scores().columns[1:])
    assert list(table.index) == [0, 1, 2, 3]
    assert table.task.dtype == table.sampler.dtype == 'str'


def test_an_empty_table_and_a_column_without_values(run, rendering):
    run.table('none', lambda: scores()[:0])
    assert rendering.table('none', must_not_run).shape == (0, 9)
    run.table('unset', lambda: pd.DataFrame({'a': [None, None]}))
    assert rendering.table('unset', must_not_run).a.isna().tolist() == [True, True]


def test_repeated_text_is_stored_once(run):
    many = pd.DataFrame(
        {'sampler': ['{"steps": 12}' * 20] * 5000, 'hps': np.zeros(5000, 'float32')}
    )
    run.table('scores', lambda: many)
    assert run.files[0].stat().st_size < 4000
    column = pq.ParquetFile(run.files[0]).metadata.row_group(0).column(0)
    assert column.compression == 'ZSTD'
    assert 'RLE_DICTIONARY' in column.encodings


@pytest.mark.parametrize(
    'frame, says',
    [
        (pd.DataFrame({'a': [[1], [2]]}), "'a' is list"),
        (pd.DataFrame({3: [1]}), 'columns with names, not 3'),
        (pd.DataFrame({'a': [b'x']}), "'a' is binary"),
    ],
)
def test_a_table_of_anything_else_is_not_written(run, frame, says):
    with pytest.raises(TypeError, match=says):
        run.table('scores', lambda: frame)
    assert not (run.folder / 'kept').exists()
    assert run.files == []


def test_values_come_back_in_terms_of_json(run, rendering):
    costs = {
        'minutes': 1 / 3,
        'n': np.int64(7),
        'rate': np.float32(0.1),
        'steps': np.arange(3),
        'pair': (1, None),
        'on': True,
        'ä': 'ö',
        'nan': np.nan,
    }
    first, again = run.values('costs', lambda: costs), rendering.values('costs', must_not_run)
    assert first.pop('nan') != 0
    assert np.isnan(again.pop('nan'))
    assert (
        first
        == again
        == {
            'minutes': 1 / 3,
            'n': 7,
            'rate': float(np.float32(0.1)),
            'steps': [0, 1, 2],
            'pair': [1, None],
            'on': True,
            'ä': 'ö',
        }
    )
    for wrong in ({1: 'a'}, {'a': {1, 2}}, object()):
        with pytest.raises(TypeError):
            run.values('wrong', lambda wrong=wrong: wrong)
    assert [p.name for p in run.files] == ['costs.json']


def test_pictures_come_back_pixel_by_pixel(run, rendering):
    grey, half = Image.new('L', (4, 4), 77), Image.new('RGBA', (4, 4), (9, 8, 7, 128))
    rows = [[RED, None, BLUE], [], [grey, half]]
    for found in (
        run.pictures('samples', lambda: rows),
        rendering.pictures('samples', must_not_run),
    ):
        assert [len(row) for row in found] == [3, 0, 2]
        assert found[0][1] is None
        assert all(image.mode == 'RGB' for row in found for image in row if image)
        assert found[0][0].tobytes() == RED.tobytes()
        assert found[0][2].size == (8, 6)
        assert [image.tobytes() for image in found[2]] == [
            image.convert('RGB').tobytes() for image in rows[2]
        ]


def test_a_gallery_comes_back_with_its_truth_and_its_texts(run, rendering):
    shown = dict(
        images=[[RED, None], [BLUE, RED]],
        rows=['a', 'b'],
        columns=['base', 'ours'],
        captions=[['1', '2'], ['3', '4']],
        truth=[BLUE, RED],
    )
    first = run.gallery('grid', lambda: shown, of=[('hpd', 'a'), ('hpd', 'b')])
    again = rendering.gallery('grid', must_not_run, of=[('hpd', 'a'), ('hpd', 'b')])
    for found in (first, again):
        assert {k: found[k] for k in ('rows', 'columns', 'captions')} == {
            k: shown[k] for k in ('rows', 'columns', 'captions')
        }
        assert [image.tobytes() for image in found['truth']] == [BLUE.tobytes(), RED.tobytes()]
        assert [len(row) for row in found['images']] == [2, 2]
        assert found['images'][0][1] is None
    without = run.gallery('plain', lambda: {'images': [[RED]], 'caption': 'x'})
    assert without['truth'] is None
    assert without['caption'] == 'x'
    assert len(without['images'][0]) == 1


def test_pictures_of_another_choice_are_refused(run, rendering):
    run.gallery('grid', lambda: {'images': [[RED]]}, of=[('hpd', 'a')])
    said = refused(rendering.gallery, 'grid', must_not_run, of=[('hpd', 'b')])
    assert 'grid.parquet shows something else' in said
    assert 'balanceddpo reproduce figure02' in said


@pytest.mark.parametrize(
    'told',
    [
        '3',
        '{"of": null}',
        '{"of": null, "truth": true, "texts": 3, "more": 1}',
        '{"of": null, "truth": false, "texts": 3}',
    ],
)
def test_a_gallery_whose_texts_are_something_else_is_refused(run, rendering, told):
    run.gallery('grid', lambda: {'images': [[RED]]})
    path = run.folder / 'kept' / 'grid.json'
    path.write_text(f'{{"made": {{}}, "values": {told}}}')
    assert 'are no gallery' in refused(rendering.gallery, 'grid', must_not_run)


# a rendering makes nothing


def test_a_missing_file_is_told_with_the_command_that_makes_it(rendering):
    for ask in (rendering.table, rendering.values, rendering.pictures, rendering.gallery):
        said = refused(ask, 'scores', must_not_run)
        assert 'scores.' in said
        assert '`balanceddpo reproduce figure02` without --from-scores' in said
    assert rendering.files == []
    assert not rendering.folder.exists()


def test_a_run_makes_it_again_and_a_failed_one_leaves_what_was(run, rendering):
    run.table('scores', scores)
    assert (
        len(run.table('scores', lambda: scores()[:2]))
        == len(rendering.table('scores', must_not_run))
        == 2
    )
    with pytest.raises(AssertionError):
        run.table('scores', must_not_run)
    with pytest.raises(TypeError):
        run.table('scores', lambda: pd.DataFrame({'a': [[1]]}))
    assert len(rendering.table('scores', must_not_run)) == 2
    assert [p.name for p in (run.folder / 'kept').iterdir()] == ['scores.parquet']
    assert len(run.files) == 1


# what grows


def of_models(wanted):
    "Two rows for each model that is wanted, whose score tells the model."
    names = [m for m in wanted.model for _ in range(2)]
    return pd.DataFrame(
        {
            'model': names,
            'sampler': '{"steps": 12}',
            'scorer_keys': '{"hps": "a"}',
            'hps': [float(ord(m)) for m in names],
        }
    )


def wanted(*models):
    return pd.DataFrame({'model': list(models)})


@pytest.fixture
def growing(tmp_path):
    return Kept('figure02', tmp_path / 'out', add=True)


def test_only_the_rows_that_are_missing_are_made_and_stand_where_they_are_wanted(run, growing):
    run.rows('scores', wanted('a', 'c'), of_models)
    asked = []

    def make(missing):
        asked.extend(missing.model)
        return of_models(missing)

    found = growing.rows('scores', wanted('c', 'b', 'a'), make)
    assert asked == ['b']
    assert found.model.tolist() == ['c', 'c', 'b', 'b', 'a', 'a']
    assert found.hps.tolist() == [99, 99, 98, 98, 97, 97]


def test_without_add_all_is_made_and_with_it_what_is_kept_is_only_read(run, growing):
    assert len(growing.rows('scores', wanted('a'), of_models)) == 2
    assert len(growing.rows('scores', wanted('a'), must_not_run)) == 2
    assert len(run.rows('scores', wanted('a', 'b'), of_models)) == 4


def test_the_file_says_how_each_part_was_made(run, growing):
    run.rows('scores', wanted('a'), of_models)
    first = read_how_made(run.files[0])
    growing.rows('scores', wanted('a', 'b'), of_models)
    assert read_how_made(run.files[0])['earlier'] == first


def test_rows_that_are_not_asked_for_are_not_lost(run, growing):
    run.rows('scores', wanted('a', 'b'), of_models)
    said = refused(growing.rows, 'scores', wanted('b', 'c'), must_not_run)
    assert 'rows of model a were kept, and are not asked for' in said
    assert len(run.found(run.files[0], pd.read_parquet)) == 4


def test_rows_of_another_numeric_path_are_not_mixed(run, growing, monkeypatch):
    monkeypatch.setattr('balanceddpo.paper.kept.numeric_path', lambda: 'another')
    run.rows('scores', wanted('a'), of_models)
    monkeypatch.undo()
    said = refused(growing.rows, 'scores', wanted('a', 'b'), must_not_run)
    assert "numeric path 'another'" in said
    assert 'BALANCEDDPO_NUMERICS' in said


def test_images_drawn_in_another_way_and_other_columns_are_not_mixed(run, growing):
    run.rows('scores', wanted('a'), of_models)
    for other, says in (
        (lambda w: of_models(w).assign(sampler='{"steps": 50}'), 'drawn with other settings'),
        (lambda w: of_models(w).assign(scorer_keys='x'), 'scored with other weights'),
        (lambda w: of_models(w).assign(more=1), 'the columns kept'),
        (lambda w: of_models(w)[:0], 'no rows were made of model b'),
    ):
        assert says in refused(growing.rows, 'scores', wanted('a', 'b'), other)


def test_an_error_of_the_making_is_not_one_of_what_was_kept(run, growing):
    run.rows('scores', wanted('a'), of_models)

    def make(missing):
        raise InputError('no weights at /x')

    assert refused(growing.rows, 'scores', wanted('a', 'b'), make) == 'no weights at /x'


# how it was made


def test_each_file_says_how_it_was_made_and_the_note_names_its_hash(run, tmp_path):
    run.table('scores', scores)
    run.values('costs', lambda: 3)
    run.pictures('samples', lambda: [[RED]])
    for path in run.files:
        told = read_how_made(path)
        assert {*told} >= {'date', 'package', 'versions', 'processor', 'numerics'}
        assert told['versions'] == versions()
        assert told['processor']
        assert told['date'].endswith('+00:00')
    note = json.loads(write_provenance(run.folder, kept=run).read_text())
    names = [
        'kept/scores.parquet',
        'kept/costs.json',
        'kept/samples.parquet',
    ]
    assert list(note['kept']) == names
    assert str(tmp_path) not in json.dumps(note)
    for name, told in note['kept'].items():
        assert told == {
            'sha256': sha256((run.folder / name).read_bytes()).hexdigest(),
            'made': read_how_made(run.folder / name),
        }
    assert json.loads(write_provenance(run.folder).read_text())['kept'] == {}


def test_the_note_of_a_rendering_has_the_time_and_the_numerics_of_the_making(
    run, rendering, monkeypatch
):
    monkeypatch.setattr('balanceddpo.paper.kept.numeric_path', lambda: 'another')
    run.values('costs', lambda: 3)
    write_provenance(run.folder, Making(seconds=100), kept=run)
    rendering.values('costs', must_not_run)
    path = write_provenance(rendering.folder, Making(seconds=2), kept=rendering)
    note = json.loads(path.read_text())
    assert note['seconds'] == 100
    assert note['numerics'] == 'another'


# what is no file of ours


def parquet(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)


class Harm:
    def __reduce__(self):
        return (must_not_run, ())


def test_what_pandas_writes_beside_the_columns_is_not_read(rendering):
    path = rendering.folder / 'kept' / 'scores.parquet'
    table = pa.table(
        {'a': [1, 2]},
        metadata={
            b'pandas': b'{"index_columns": ["a"], "columns": 3}',
            b'PANDAS_ATTRS': b'[broken',
        },
    )
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    found = rendering.table('scores', must_not_run)
    assert list(found.columns) == ['a']
    assert found.attrs == {}
    assert 'does not say how it was made' in refused(read_how_made, path)


@pytest.mark.parametrize(
    'columns',
    [
        {'a': [pickle.dumps(Harm())]},
        {'a': [[1]]},
        {'a': [{'b': 1}]},
        {'a': pa.array([0], pa.timestamp('s'))},
        {'a': pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b'0' * 16], pa.binary(16)))},
    ],
    ids=['bytes', 'list', 'struct', 'time', 'extension'],
)
def test_a_table_with_other_columns_is_refused(rendering, columns):
    parquet(rendering.folder / 'kept' / 'scores.parquet', columns)
    assert "is not a kept table: column 'a' is" in refused(rendering.table, 'scores', must_not_run)


def test_text_that_is_no_text_is_refused(rendering):
    wrong = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, 2], 'int32').tobytes()), pa.py_buffer(b'\xff\xfe')
    )
    parquet(rendering.folder / 'kept' / 'scores.parquet', {'a': wrong})
    assert 'is not a kept file, or is damaged' in refused(rendering.table, 'scores', must_not_run)


def test_a_damaged_table_is_refused(run, rendering):
    run.table('scores', scores)
    path, whole = run.files[0], run.files[0].read_bytes()
    turned = bytearray(whole)
    turned[60] ^= 255
    for data in (b'', b'no table', whole[:-9], whole[:200], bytes(turned)):
        path.write_bytes(data)
        assert str(path) in refused(rendering.table, 'scores', must_not_run)
    path.write_bytes(b'no table')
    assert 'does not say how it was made' in refused(read_how_made, path)


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'cell',
    [
        b'',
        b'GIF89a',
        pickle.dumps(RED.tobytes()),
        encoded(RED, 'JPEG'),
        encoded(RED, 'TIFF'),
        encoded(RED, 'PNG')[:45],
    ],
    ids=['empty', 'gif', 'pickle', 'jpeg', 'tiff', 'cut'],
)
def test_a_picture_that_is_no_png_is_refused(rendering, cell):
    parquet(
        rendering.folder / 'kept' / 'samples.parquet',
        {'pictures': pa.array([[cell]], pa.list_(pa.binary()))},
    )
    assert 'holds a picture that is no PNG' in refused(rendering.pictures, 'samples', must_not_run)


@pytest.mark.parametrize(
    'columns',
    [
        {'pictures': ['a']},
        {'pictures': [['a']]},
        {'other': pa.array([[b'x']])},
        {'pictures': pa.array([[b'x']]), 'more': [1]},
    ],
)
def test_a_file_that_holds_no_pictures_is_refused(rendering, columns):
    parquet(rendering.folder / 'kept' / 'samples.parquet', columns)
    assert 'does not hold kept pictures' in refused(rendering.pictures, 'samples', must_not_run)


@pytest.mark.parametrize(
    'text', ['', '[1]', '{"values": 1}', '{"made": {}, "values": 1, "more": 2}', '3']
)
def test_a_file_that_holds_no_values_is_refused(rendering, text):
    path = rendering.folder / 'kept' / 'costs.json'
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert str(path) in refused(rendering.values, 'costs', must_not_run)
