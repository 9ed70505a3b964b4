"""One bit of each byte of every file that decides a number, through the reader that a run uses:
what is read is what was written, or it is refused in one line."""

import shutil
from functools import partial

import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import file_digest
from balanceddpo.core.seals import write_sealed
from balanceddpo.core.stages import open_stage
from balanceddpo.data.pairs import make_pair
from balanceddpo.evaluation.scores import score_images
from balanceddpo.models.encoding import EncodedPairs
from balanceddpo.models.image_store import ImageStore, image_file, open_images
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.scoring.tables import read_scores, score_pairs
from made_pairs import plain

SCORERS = [FunctionScorer('grey', 'k', lambda images, _: [i.getpixel((0, 0))[0] for i in images])]
PROMPT_ID = '0123456789abcdef'


def flips(path, every=1):
    "Damages the file `path` in each byte, one after the other; whole again at the end."
    whole = path.read_bytes()
    for i in range(0, len(whole), every):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        yield
    path.write_bytes(whole)


def never_silent(path, read, same, every=1):
    "Whatever a flip in `path` makes of it, `read` refuses it or gives what it gave before."
    good = read()
    for _ in flips(path, every):
        try:
            found = read()
        except InputError as e:
            assert '\n' not in str(e)
        else:
            assert same(found, good)


def same_table(a, b):
    pd.testing.assert_frame_equal(a, b)
    return a.attrs == b.attrs


@pytest.mark.parametrize('name', ['scores-00000.parquet', 'inputs.json', 'manifest.json'])
def test_tables_of_scores(tmp_path, name):
    pairs = [make_pair(f'{n}', [plain(n), plain(200 - n)]) for n in range(4)]
    folder = score_pairs(pairs, SCORERS, tmp_path / 'scores', progress=False)
    never_silent(folder / name, lambda: read_scores(folder), same_table)


@pytest.fixture
def images(tmp_path):
    "A finished store of one image, as `sample` leaves it."
    stage = open_stage('sample', {'model': 'm', 'steps': 2}, folder=tmp_path / 'images')
    path = stage.folder / image_file(PROMPT_ID, 0)
    path.parent.mkdir(parents=True)
    Image.new('RGB', (2, 2), 'red').save(path)
    row = dict(model='m', prompt_id=PROMPT_ID, prompt='red', image_index=0, seed=7)
    row |= dict(file=image_file(PROMPT_ID, 0), sha256=file_digest(path))
    row |= dict(flagged=False, constant=True)
    table = ImageStore(stage.folder, stage.inputs, pd.DataFrame([row]))
    return stage, table


@pytest.mark.parametrize('name', ['index.parquet', 'inputs.json', 'manifest.json', 'image'])
def test_stores_of_images(images, name):
    stage, store = images
    write_sealed(stage.folder / 'index.parquet', pa.Table.from_pandas(store.index))
    stage.finish(images=1)
    path = stage.folder / (image_file(PROMPT_ID, 0) if name == 'image' else name)

    def same(a, b):
        return a.inputs == b.inputs and same_table(a.index, b.index)

    never_silent(path, lambda: open_images(stage.folder), same)


@pytest.mark.filterwarnings('ignore:.*damaged')
def test_kept_scores_of_images(images, tmp_path):
    "They are made again where they are damaged; each time is a writing to the disk."
    _, store = images
    out = tmp_path / 'kept.parquet'
    whole = tmp_path / 'whole.parquet'
    score_images(store, SCORERS, whole, progress=False)

    shutil.copy(whole, out)
    read = partial(score_images, store, SCORERS, out, progress=False)
    never_silent(out, read, same_table, every=8)


@pytest.mark.parametrize('name', ['inputs.json', 'pairs.json', 'manifest.json'])
def test_encoded_pairs(made, tmp_path, name):
    def facts(encoded):
        return encoded.inputs, encoded.pair_ids, encoded.rows, encoded.captions

    folder = shutil.copytree(made('sd15').encoded.folder, tmp_path / 'encoded')

    def same(a, b):
        return (a.inputs, a.pair_ids, a.captions, a.key) == (
            b.inputs,
            b.pair_ids,
            b.captions,
            b.key,
        )

    never_silent(folder / name, lambda: EncodedPairs.open(folder), same)
