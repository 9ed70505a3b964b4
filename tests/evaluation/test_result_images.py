"""The list of images behind a result, and that they are the ones that were scored."""

import os
import shutil
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import runs_root
from balanceddpo.data.prompted_pictures import PictureSource
from balanceddpo.data.prompts import prompts_of
from balanceddpo.evaluation.result_images import (
    COLUMNS,
    IMAGES,
    ResultImages,
    image_list,
    write_image_list,
)
from balanceddpo.models import sampling
from balanceddpo.models.config import SampleConfig
from balanceddpo.models.picture_store import Pictures, all_pictures
from balanceddpo.pipeline import sample
from made_pairs import plain
from tiny_models import tiny_folder


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp('model')))


def draw(model, out):
    config = SampleConfig(model, resolution=32, steps=1, images_per_prompt=2, device='cpu')
    return sample(config, prompts_of(('a red cat', 'a dog'), 'prompt'), out)


def opened(drawn, results):
    write_image_list(image_list(drawn, results), results)
    return ResultImages.open(results)


def pictures(folder):
    "A store of pictures from elsewhere."
    folder.mkdir()
    for n, name in enumerate(('a_red_cat', 'a_dog')):
        (folder / f'{name}.png').write_bytes(plain(n))
    return all_pictures(Pictures(PictureSource.of(folder)))


def test_every_image_is_found_with_the_hash_it_had(model, tmp_path):
    drawn = [
        ('ours', 'prompt', draw(model, tmp_path / 'ours')),
        ('theirs', 'prompt', pictures(tmp_path / 'theirs')),
    ]
    images = opened(drawn, tmp_path / 'results')
    assert list(images.rows) == COLUMNS
    assert images.rows.model.value_counts().to_dict() == {'ours': 4, 'theirs': 2}
    assert set(images.rows.store) == {'../ours', '../theirs'}
    found = {row.Index: data for row, data in images.all_data()}
    assert [sha256(found[n]).hexdigest() for n in images.rows.index] == list(images.rows.sha256)
    own = drawn[0][2]
    row = images.rows.iloc[1]
    assert found[1] == own.png(row.prompt_id, row.image_index)
    assert images.places['theirs', 'prompt', images.rows.prompt_id[4], 0] == 4


def test_the_folders_may_be_moved_together(model, tmp_path):
    drawn = [('ours', 'prompt', draw(model, tmp_path / 'work/ours'))]
    opened(drawn, tmp_path / 'work/results')
    shutil.move(tmp_path / 'work', tmp_path / 'elsewhere')
    assert len(list(ResultImages.open(tmp_path / 'elsewhere/results').all_data())) == 4


def test_a_store_elsewhere_has_its_whole_path_but_within_runs(tmp_path):
    store = pictures(tmp_path / 'theirs')
    place = tmp_path / 'somewhere/else/results'
    assert image_list([('a', 'p', store)], place).store.tolist() == [str(tmp_path / 'theirs')] * 2
    runs = runs_root().absolute()
    runs.mkdir(parents=True, exist_ok=True)
    store.folder = runs / 'sample/x'
    named = image_list([('a', 'p', store)], runs / 'evaluate/y').store[0]
    assert named == '../../sample/x'


def test_images_in_tars_are_opened_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, 'PACKED_FROM', 4)
    store = draw(model, tmp_path / 'packed')
    assert store.places
    images = opened([('ours', 'prompt', store)], tmp_path / 'results')
    assert {Path(file).suffix for file in images.rows.file} == {'.tar'}
    assert [sha256(data).hexdigest() for _, data in images.all_data()] == list(images.rows.sha256)


def test_what_has_changed_or_gone_is_refused(model, tmp_path):
    drawn = [
        ('ours', 'prompt', draw(model, tmp_path / 'ours')),
        ('theirs', 'prompt', pictures(tmp_path / 'theirs')),
    ]
    images = opened(drawn, tmp_path / 'results')
    ours, theirs = list(images.rows.itertuples())[0], list(images.rows.itertuples())[4]
    (tmp_path / 'ours' / ours.file).write_bytes(plain(7))
    (tmp_path / 'theirs' / theirs.file).unlink()
    with pytest.raises(InputError, match='is not the image that was scored'):
        ResultImages.open(tmp_path / 'results').data(ours)
    with pytest.raises(InputError, match='is not there any more'):
        ResultImages.open(tmp_path / 'results').data(theirs)
    os.unlink(tmp_path / 'ours' / ours.file)
    with pytest.raises(InputError, match='is not there any more'):
        ResultImages.open(tmp_path / 'results').data(ours)


def test_a_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match='has no images.parquet: name the folder'):
        ResultImages.open(tmp_path)
    pd.DataFrame({'model': ['a']}).to_parquet(tmp_path / IMAGES)
    with pytest.raises(InputError, match="has no column 'prompt_set'"):
        ResultImages.open(tmp_path)
    row = {c: '1' for c in COLUMNS}
    pd.DataFrame([row, row]).to_parquet(tmp_path / IMAGES)
    with pytest.raises(InputError, match='lists an image twice: 1, 1, 1, 1'):
        ResultImages.open(tmp_path)


def test_a_list_cannot_name_a_file_outside_its_store(tmp_path):
    (tmp_path / 'secret.png').write_bytes(plain(9))
    images = opened([('a', 'p', pictures(tmp_path / 'theirs'))], tmp_path / 'results')
    hash_of_it = sha256(plain(9)).hexdigest()
    images.rows = images.rows.assign(file='../secret.png', sha256=hash_of_it)
    with pytest.raises(InputError, match='is not there any more'):
        images.data(next(images.rows.itertuples()))
