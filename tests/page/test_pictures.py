"""The pictures of a page: in it or beside it, each once, as they were scored."""

import base64
import io
from hashlib import sha256

import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.page.pictures import (
    THUMBNAIL,
    keep_pictures,
    longer_side,
    picture_name,
    pictures_of,
)
from made_pages import made_store, noise_png


def named(*pictures):
    return [(sha256(data).hexdigest(), data) for data in pictures]


def as_kind(data, kind):
    "A picture in another format."
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, kind)
    return out.getvalue()


def test_few_small_pictures_lie_in_the_page_byte_by_byte(tmp_path):
    some = [noise_png(k) for k in range(3)]
    kept = keep_pictures(named(*some, some[0]), tmp_path / 'f')
    assert [base64.b64decode(d) for d in kept.data.values()] == some
    assert set(kept.kinds.values()) == {'png'}
    assert not (tmp_path / 'f').exists()


@pytest.mark.parametrize('most, embedded', [(0, False), (1, True)])
def test_the_limit_counts_bytes_in_base64(tmp_path, most, embedded):
    some = [noise_png(k) for k in range(3)]
    size = sum(len(data) * 4 // 3 for data in some)
    kept = keep_pictures(named(*some), tmp_path / 'f', most=size - 1 + most)
    assert (kept.data is not None) == embedded
    assert (tmp_path / 'f').exists() != embedded


def test_large_ones_lie_beside_it_with_thumbnails_that_are_made_once(tmp_path):
    large, small = noise_png(1, 400), noise_png(2)
    folder = tmp_path / 'index_files'
    kept = keep_pictures(named(large, small), folder, most=100)
    names = [picture_name(sha) for sha, _ in named(large, small)]
    assert (kept.folder, kept.small) == ('index_files', {names[0]})
    assert (folder / f'{names[0]}.png').read_bytes() == large
    assert (folder / f'{names[1]}.png').read_bytes() == small
    thumbnail = folder / f'{names[0]}.small.webp'
    assert longer_side(thumbnail.read_bytes()) == THUMBNAIL
    thumbnail.write_bytes(b'as before')
    other = noise_png(3, 400)
    keep_pictures(named(large, other), folder, most=100)
    assert thumbnail.read_bytes() == b'as before'
    # what no row shows any more is gone
    assert len(list(folder.iterdir())) == 4


def test_what_browsers_do_not_show_becomes_png(tmp_path):
    tiff, jpeg = as_kind(noise_png(1), 'TIFF'), as_kind(noise_png(2), 'JPEG')
    kept = keep_pictures(named(tiff, jpeg), tmp_path / 'f')
    assert list(kept.kinds.values()) == ['png', 'jpeg']
    first = Image.open(io.BytesIO(base64.b64decode(list(kept.data.values())[0])))
    assert first.convert('RGB').tobytes() == Image.open(io.BytesIO(noise_png(1))).tobytes()


def test_a_page_that_has_to_be_one_file_is_small(tmp_path):
    some = [noise_png(k, 700) for k in range(2)]
    kept = keep_pictures(named(*some), tmp_path / 'f', most=10, compact=64)
    found = [base64.b64decode(d) for d in kept.data.values()]
    assert [longer_side(data) for data in found] == [64, 64]
    assert set(kept.kinds.values()) == {'webp'}


def test_an_image_that_has_changed_since_it_was_scored_is_refused(tmp_path):
    store = made_store(tmp_path, ['a', 'b'], 1, seed=1)
    assert [sha for sha, _ in pictures_of(store)] == list(store.index.sha256)
    (tmp_path / store.index.file[1]).write_bytes(noise_png(9))
    with pytest.raises(InputError, match='has changed since it was scored'):
        list(pictures_of(store))


def test_images_are_read_from_tars_and_from_other_programs(tmp_path):
    from balanceddpo.data.prompted_pictures import PictureSource
    from balanceddpo.models.image_store import ImageStore, pack_images
    from balanceddpo.models.picture_store import Pictures, all_pictures

    store = made_store(tmp_path / 'store', ['a', 'b'], 2, seed=1)
    loose = list(pictures_of(store))
    rows = list(store.index[['prompt_id', 'image_index', 'prompt']].itertuples(index=False))
    pack_images(store.folder, 0, [tuple(row) for row in rows])
    (tar,) = store.folder.glob('*.tar')
    places = places_in(tar)
    index = store.index.assign(
        file=tar.name,
        begins=[places[f'{p}-{k}.png'][0] for p, k, _ in rows],
        length=[places[f'{p}-{k}.png'][1] for p, k, _ in rows],
    )
    assert list(pictures_of(ImageStore(store.folder, store.inputs, index))) == loose
    for n, (_, data) in enumerate(loose):
        (tmp_path / 'theirs').mkdir(exist_ok=True)
        (tmp_path / 'theirs' / f'a_fox_{n}.png').write_bytes(data)
    theirs = all_pictures(Pictures(PictureSource.of(str(tmp_path / 'theirs'))))
    assert sorted(pictures_of(theirs)) == sorted(loose)


def places_in(tar):
    "Name -> where a member of a tar begins, and its length."
    import tarfile

    with tarfile.open(tar) as opened:
        return {m.name: (m.offset_data, m.size) for m in opened.getmembers()}
