"""Edge cases of `balanceddpo.data.pairs`: hostile images, odd rows, views of a pair, writing."""

import json
import os
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

import balanceddpo.data.pairs as pairs
from balanceddpo.core.errors import InputError
from balanceddpo.core.files import content_digest
from balanceddpo.data.pairs import (
    PairReport,
    cut_square,
    decode,
    draw_view,
    make_pair,
    pairs_of_rows,
    told_sizes,
    transform_pair,
    write_pairs,
)
from balanceddpo.data.sources import read_pairs
from made_pairs import encoded, plain, refused, some_pairs, table

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


# --- views of a pair


def test_both_images_get_the_same_view_whatever_their_size():
    small, large = (
        Image.fromarray(np.tile(np.linspace(0, 255, w).astype('uint8')[None, :, None], (h, 1, 3)))
        for w, h in ((96, 32), (192, 64))
    )
    firsts = set()
    for i in range(40):
        a, b = transform_pair((small, large), 16, f'pair {i}', crop='random')
        # one picture at two sizes: one place
        assert (a.float() - b.float()).abs().max() < 6
        assert (
            a.float() - transform_pair((small, large), 16, f'pair {i}', crop='random')[0].float()
        ).abs().max() == 0
        firsts.add(int(a[0, 0].min()))
    assert len(firsts) > 20
    tall = small.transpose(Image.Transpose.ROTATE_90)
    places = [draw_view(f'pair {i}', 0, 'random')[1] for i in range(40)]
    means = [
        transform_pair((tall, tall), 16, f'pair {i}', crop='random')[0, 0].float().mean().item()
        for i in range(40)
    ]
    # the tall one, bright above, is cut along its height: the lower the darker
    assert np.corrcoef(places, means)[0, 1] < -0.99


def test_view_depends_on_pair_and_seed_alone():
    views = [draw_view(f'{i}', seed, 'random') for i in range(50) for seed in (0, 1)]
    assert len(set(views)) == 100
    assert [draw_view(f'{i}', 0, 'random') for i in range(50)] == views[::2]
    assert all(0 <= u < 1 and 0 <= v < 1 for u, v in views)
    assert draw_view('x', 0, 'center') == draw_view('x') == (0.5, 0.5)
    assert 'diagonal' in refused(draw_view, 'x', 0, 'diagonal')


def test_the_view_is_the_one_that_was_drawn_before_mirroring_moved_to_training():
    assert draw_view('pair 1', 0, 'random') == (0.9689566713370282, 0.7977873639900539)


@pytest.mark.parametrize('size', [(96, 64), (64, 92), (101, 64), (64, 64), (333, 500)])
def test_the_size_and_the_cut_that_are_told_are_those_of_diffusers_sdxl_script(size):
    """The picture's height and width; the corner of the centre crop after the short side was scaled
    to the square's, by torchvision's rules."""
    from torchvision.transforms import Resize

    h, w, top, left, mirrored_left = told_sizes(size, 32)
    assert (w, h) == size
    scaled = Resize(32)(Image.new('RGB', size))
    assert top == max(0, int(round((scaled.height - 32) / 2.0)))
    assert left == mirrored_left == max(0, int(round((scaled.width - 32) / 2.0)))


def test_a_cut_of_the_mirrored_picture_is_told_from_its_own_left():
    for u in (0.0, 0.3, 0.5, 0.99):
        *_, left, mirrored_left = told_sizes((96, 64), 32, (u, 0.5))
        assert abs(left + mirrored_left - 16) <= 1


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
    thin = Image.new('RGB', (100, 1), 'red')
    x = transform_pair((thin, decode(plain(3, (1, 1)))), 512, 'p')
    assert x.shape == (2, 3, 512, 512)
    assert x[0, 0].float().mean() == 255
    assert (x[1, 0] == 3).all()


def test_two_files_with_the_same_pixels_are_identical():
    "Ten of twelve such pairs had a sure label, 4-0, because equal scores vote for image 0."
    picture = Image.effect_noise((16, 16), 80).convert('RGB')
    fast, small = (encoded(picture, 'PNG', compress_level=k, dpi=(k, k)) for k in (1, 9))
    assert fast != small
    report = PairReport()
    rows = iter([('row 0', {'caption': 'noise', 'jpg_0': fast, 'jpg_1': small, 'label_0': 1})])
    assert list(pairs_of_rows(rows, report=report)) == []
    assert report.identical == 1


def test_transparency_can_be_ignored_as_public_scripts_do():
    disc = Image.new('RGBA', (2, 1), (200, 0, 0, 0))  # red that cannot be seen
    data = encoded(disc)
    assert decode(data).getpixel((0, 0)) == (255, 255, 255)
    assert decode(data, 'ignore').getpixel((0, 0)) == (200, 0, 0)
    assert decode(data, 'ignore').tobytes() == disc.convert('RGB').tobytes()
    assert make_pair('disc', [data, data]).picture(0).getpixel((0, 0)) == (255, 255, 255)


# --- writing


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


def test_failed_write_leaves_the_old_file(tmp_path):
    path = write_pairs(some_pairs(3), tmp_path / 'pairs.parquet')

    def breaks():
        yield from some_pairs(100)
        raise RuntimeError('the generator died')

    with pytest.raises(RuntimeError):
        write_pairs(breaks(), path)
    assert len(list(read_pairs(path))) == 3
    assert os.listdir(tmp_path) == ['pairs.parquet']
