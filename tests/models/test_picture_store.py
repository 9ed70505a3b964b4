"""Pictures from elsewhere as a set of images: what is left out, and what they match."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import decode
from balanceddpo.data.prompted_pictures import PictureSource
from balanceddpo.data.prompts import PromptSet
from balanceddpo.models import picture_store
from balanceddpo.models.image_store import marked, write_image
from balanceddpo.models.picture_store import (
    Pictures,
    all_pictures,
    fewest_pictures,
    pictures_for,
    shared_prompts,
)


def encoded(seed=0, kind='PNG'):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def fill(folder, **names):
    "A folder of pictures, one for each name, and what is seen in it."
    folder.mkdir(exist_ok=True)
    for name, data in names.items():
        (folder / f'{name}.png').write_bytes(data)
    return Pictures(PictureSource.of(folder))


@pytest.fixture
def ours(tmp_path):
    names = ('a_cat_1', 'a_cat_2', 'a_cat_3', 'a_dog_1', 'a_dog_2', 'an_owl')
    return fill(tmp_path / 'ours', **{name: encoded(n) for n, name in enumerate(names)})


def prompt_set(*prompts):
    return PromptSet('mine', prompts)


def test_the_first_by_name_are_taken_and_the_rest_is_told(ours):
    with pytest.warns(UserWarning) as told:
        store = pictures_for(ours, prompt_set('a dog', 'a cat'), 2)
    assert store.index.file.tolist() == [
        f'a_{who}_{n}.png' for who in ('cat', 'dog') for n in (1, 2)
    ]
    assert store.index.image_index.tolist() == [0, 1, 0, 1]
    (line,) = (str(w.message) for w in told)
    assert "1 belong to no prompt of mine: 'an owl'" in line
    assert '1 are more than the 2 of a prompt' in line
    for row, image in zip(store.index.itertuples(), store.images(store.index), strict=True):
        assert image.tobytes() == store.image(row.prompt_id, row.image_index).tobytes()
        path = store.folder / row.file
        assert image.tobytes() == decode(path.read_bytes()).tobytes()


def test_a_prompt_with_too_few_pictures_is_refused(ours):
    wanted = prompt_set('a cat', 'a dog', 'an owl', 'a fox', 'a hare')
    with pytest.raises(InputError) as told:
        pictures_for(ours, wanted, 3)
    line = str(told.value)
    assert 'every prompt of mine needs 3 pictures (images_per_prompt), and 2 of 5 have none' in line
    assert "'a fox', 'a hare'; 2 have fewer than 3: 'a dog', 'an owl'" in line


def test_a_prompt_is_matched_by_its_words(ours):
    "What the set calls it is what is scored."
    with pytest.warns(UserWarning, match='3 are more than the 1 of a prompt'):
        store = pictures_for(ours, prompt_set('a  cat', 'a dog', 'an owl'), 1)
    assert store.index.prompt.tolist() == ['a  cat', 'a dog', 'an owl']
    assert store.index.prompt_id.tolist() == list(prompt_set('a  cat', 'a dog', 'an owl').ids)


def test_what_folders_share(ours, tmp_path):
    theirs = fill(tmp_path / 'theirs', a_fox=encoded(7), a_dog=encoded(8), a_cat_1=encoded(9))
    shared = shared_prompts([ours, theirs])
    assert shared.prompts == ('a cat', 'a dog')
    assert fewest_pictures([ours, theirs], shared) == 1
    assert fewest_pictures([ours], shared) == 2
    alone = fill(tmp_path / 'alone', a_hare=encoded(10))
    with pytest.raises(InputError, match="no prompt in common: .* are 'a cat' and 'a hare'"):
        shared_prompts([ours, alone])


def test_damaged_pictures_are_left_out_with_their_reasons(ours, tmp_path):
    folder = tmp_path / 'ours'
    (folder / 'a_cat_1.png').write_bytes(b'no picture')
    (folder / 'a_dog_1.png').write_bytes(encoded(3)[:100])
    (folder / 'an_owl.png').unlink()
    (folder / 'an_owl.png').symlink_to('nowhere.png')
    pictures = Pictures(PictureSource.of(folder))
    faults = dict(zip(pictures.left_out.file, pictures.left_out.fault, strict=True))
    assert faults == {
        'a_cat_1.png': 'no_picture',
        'a_dog_1.png': 'undecodable',
        'an_owl.png': 'unreadable',
    }
    # the numbers are those of the pictures that are left
    assert pictures.sound().image_index.tolist()[:3] == [0, 1, 0]
    for path in folder.iterdir():
        path.unlink()
        path.write_bytes(b'no picture')
    with pytest.raises(InputError, match="none of 6 pictures can be .* the first, 'a_cat_1.png'"):
        Pictures(PictureSource.of(folder)).sound()


def test_pictures_are_looked_at_once(ours, tmp_path, monkeypatch):
    before = all_pictures(ours)
    monkeypatch.setattr(picture_store, 'decode', lambda *_, **__: pytest.fail('decoded again'))
    again = all_pictures(Pictures(PictureSource.of(tmp_path / 'ours')))
    pd.testing.assert_frame_equal(again.index, before.index)
    assert again.inputs == before.inputs


def test_a_changed_picture_has_another_key_and_is_not_read_for_the_old(ours, tmp_path):
    before = all_pictures(ours)
    (tmp_path / 'ours' / 'a_cat_1.png').write_bytes(encoded(99))
    with pytest.raises(InputError, match="'a_cat_1.png' in .* has changed: run this again"):
        list(before.images(before.index))
    after = all_pictures(Pictures(PictureSource.of(tmp_path / 'ours')))
    assert after.inputs != before.inputs
    assert after.model != before.model


def test_names_and_places_are_no_part_of_the_key(ours, tmp_path):
    inputs = all_pictures(ours).inputs
    (tmp_path / 'ours').rename(tmp_path / 'moved')
    assert all_pictures(Pictures(PictureSource.of(tmp_path / 'moved'))).inputs == inputs
    asked = Pictures(PictureSource.of(tmp_path / 'moved', prompt='a cat'))
    assert all_pictures(asked).inputs != inputs  # the same pictures for another prompt
    assert all_pictures(Pictures(asked.source, 'ignore')).inputs != all_pictures(asked).inputs


def test_what_cannot_be_judged_is_known(tmp_path):
    folder = tmp_path / 'x'
    pictures = fill(folder, a_cat_1=encoded(1))
    Image.new('RGB', (8, 8), 'black').save(folder / 'a_cat_2.jpg')
    write_image(folder / 'a_cat_3.png', marked(decode(encoded(2))))
    index = all_pictures(Pictures(PictureSource.of(folder))).index
    assert index.constant.tolist() == [False, True, False]
    assert index.flagged.tolist() == [False, False, True]
    assert len(pictures.source) == 1


def test_rows_of_a_parquet_are_read_as_the_files_are(ours, tmp_path):
    files = all_pictures(ours)
    cells = list(ours.source.found.cells(range(6)))
    rows = pd.DataFrame({'image': cells, 'caption': ours.source.prompts})
    rows.to_parquet(tmp_path / 'x.parquet', row_group_size=4)
    parquet = all_pictures(Pictures(PictureSource.of(tmp_path / 'x.parquet')))
    assert parquet.inputs == files.inputs
    assert parquet.index.file.tolist() == [f'row {n}' for n in range(6)]
    some = parquet.index[2:5]
    for a, b in zip(parquet.images(some), files.images(files.index[2:5]), strict=True):
        assert a.tobytes() == b.tobytes()
