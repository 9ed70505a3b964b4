"""balanceddpo score: pictures from anywhere, by any scorers."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plugin_package import install

from balanceddpo import pipeline
from balanceddpo.core.stages import runs_root
from balanceddpo.data.pairs import make_pair, write_pairs
from balanceddpo.data.sources import PairSource
from balanceddpo.models import sampling
from balanceddpo.scoring import encoders, registry
from balanceddpo.scoring.registry import load_scorers
from short_commands import DRAW, scorer_texts
from tiny_scorers import noise


def encoded(image, kind='PNG', **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def transparent(seed):
    "RGBA, transparent in a corner, where other colours lie."
    image = noise((40, 30), seed).convert('RGBA')
    image.putalpha(Image.new('L', image.size, 255))
    image.paste((255, 0, 0, 0), (0, 0, 20, 20))
    return image


def turned(seed):
    "A JPEG that lies on its side, and an EXIF tag that says so."
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise((48, 32), seed), 'JPEG', exif=exif.tobytes(), quality=95)


def several():
    "Names of files -> pictures of many kinds."
    return {
        'a_red_fox_1.png': encoded(noise(seed=1)),
        'a_red_fox_2.webp': encoded(noise(seed=2), 'WEBP', lossless=True),
        'an_apple_1.png': encoded(transparent(3)),
        'an_apple_2.jpg': turned(4),
    }


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'pictures'
    root.mkdir()
    for name, data in several().items():
        (root / name).write_bytes(data)
    return root


def as_label_scores(pictures, path, scorers, **options):
    "The scores of pictures, in pairs of the same prompt, as `label` computes them: [n, K]."
    data = list(pictures.values())
    pairs = [make_pair(('a red fox', 'an apple')[k], data[2 * k : 2 * k + 2]) for k in (0, 1)]
    write_pairs(pairs, path)
    table = pipeline.pair_scores(PairSource(str(path), **options), scorers)
    return table[[s.name for s in scorers]].to_numpy()


@pytest.mark.parametrize('background', ['white', 'ignore'])
def test_scores_are_those_of_label_to_the_bit(folder, tmp_path, run, background):
    scorers = load_scorers(['icons:clip', 'icons:aesthetic'], device='cpu')
    theirs = as_label_scores(several(), tmp_path / 'pairs.parquet', scorers, background=background)
    words = ['score', folder, '--scorers', 'icons:clip', 'icons:aesthetic', '--device', 'cpu']
    run(*words, '--background', background, '--out', tmp_path / 'scores.parquet')
    found = pd.read_parquet(tmp_path / 'scores.parquet')
    assert found.file.tolist() == list(several())
    assert found.prompt.tolist() == ['a red fox'] * 2 + ['an apple'] * 2
    ours = found[['clip', 'aesthetic']].to_numpy()
    assert ours.dtype == np.float32
    assert (ours == theirs).all()
    if background == 'white':
        seen = as_label_scores(several(), tmp_path / 'q.parquet', scorers, background='ignore')
        assert (ours[2] != seen[2]).any()  # transparency matters here
        assert (ours[[0, 1, 3]] == seen[[0, 1, 3]]).all()


def score_words(world, *more):
    scorers = scorer_texts(world, ('clip', 'pickscore'))
    return ['score', *more, '--scorers', *scorers, '--device', 'cpu']


def objects(said):
    "The objects of JSON in lines."
    return [json.loads(line) for line in said.splitlines()]


def test_files_of_all_kinds_hold_the_same_rows(world, folder, tmp_path, run):
    for kind in ('parquet', 'csv', 'jsonl'):
        run(*score_words(world, folder, '--out', tmp_path / f'x.{kind}'))
    tables = [
        pd.read_parquet(tmp_path / 'x.parquet'),
        pd.read_csv(tmp_path / 'x.csv'),
        pd.read_json(tmp_path / 'x.jsonl', lines=True),
    ]
    columns = ['file', 'prompt', 'clip', 'pickscore', 'pickscore_unit']
    for table in tables:
        assert list(table) == columns
        assert table.file.tolist() == list(several())
        np.testing.assert_allclose(table[columns[2:]], tables[0][columns[2:]], rtol=1e-6)
    (scale,) = tables[0].pickscore_unit.unique()
    assert scale == load_scorers([f'pickscore={world}/pickscore'], device='cpu')[0].unit


def test_one_picture_as_json_and_many_as_a_table(world, folder, tmp_path, run):
    one = json.loads(run(*score_words(world, folder / 'an_apple_1.png', '--json')))
    assert one['file'] == (folder / 'an_apple_1.png').as_posix()
    assert one['prompt'] == 'an apple'
    assert set(one['scores']) == set(one['units']) == {'clip', 'pickscore'}
    said = run(*score_words(world, folder))
    assert 'prompts: the names of the files' in said
    table = pd.DataFrame(objects(run(*score_words(world, folder, '--json'))))
    clip = np.array([scores['clip'] for scores in table.scores])
    assert f'{clip.mean():.4f} {clip.std(ddof=1):.4f}' in said
    assert abs(clip[2] - one['scores']['clip']) < 1e-5
    for n in range(19):
        (folder / f'a_dog_{n}.png').write_bytes(encoded(noise(seed=20 + n)))
    said = run(*score_words(world, folder))
    assert '... and 3 more' in said
    assert said.count(' a dog ') == 19
    assert said.count('an_apple') == 0


def test_a_picture_that_is_none_is_left_out_counted_and_listed(world, folder, tmp_path, run):
    before = run(*score_words(world, folder, '--json'))
    (folder / 'a_broken_one.png').write_bytes(b'no picture')
    (folder / 'a_cut_one.png').write_bytes(encoded(noise(seed=9))[:1000])
    assert run(*score_words(world, folder, '--json')) == before
    said = run(*score_words(world, folder))
    assert 'pictures left out: 1 of no known format; 1 damaged, or too large' in said
    assert 'a_broken_one.png: 10 bytes that do not open' in said
    run(*score_words(world, folder, '--out', tmp_path / 'x.csv'))
    listed = (tmp_path / 'x.csv.quarantine.jsonl').read_text().splitlines()
    assert [json.loads(row)['file'] for row in listed] == ['a_broken_one.png', 'a_cut_one.png']
    (folder / 'only').mkdir()
    (folder / 'only' / 'a_bad_one.png').write_bytes(b'x')
    said = run(*score_words(world, folder / 'only'), code=2)
    assert 'none of 1 pictures can be decoded' in said


def test_scores_are_kept_until_a_picture_changes(world, folder, run, monkeypatch):
    first = objects(run(*score_words(world, folder, '--json')))
    stop = lambda *_, **__: pytest.fail('an image was encoded')  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(encoders.Encoder, 'images', stop)
        assert objects(run(*score_words(world, folder, '--json'))) == first
    (folder / 'an_apple_2.jpg').write_bytes(turned(5))
    changed = objects(run(*score_words(world, folder, '--json')))
    assert changed[:3] == first[:3]
    assert changed[3]['scores'] != first[3]['scores']


def test_a_parquet_has_its_prompts(world, folder, tmp_path, run):
    data = list(several().values())
    texts = ['a red fox'] * 2 + ['an apple'] * 2
    pd.DataFrame({'image': data, 'text': texts}).to_parquet(tmp_path / 'x.parquet')
    rows = objects(run(*score_words(world, tmp_path / 'x.parquet', '--json')))
    files = objects(run(*score_words(world, folder, '--json')))
    assert [r['scores'] for r in rows] == [f['scores'] for f in files]
    assert rows[3]['file'] == 'row 3'


def test_from_python(world, folder):
    import balanceddpo as bd

    pictures = bd.Pictures(bd.PictureSource.of(folder, prompt='a fox'))
    table = bd.score(pictures, [f'clip={world}/clip'], device='cpu')
    assert list(table) == ['file', 'prompt', 'clip']
    assert set(table.prompt) == {'a fox'}
    assert bd.score(str(folder), [f'clip={world}/clip'], device='cpu').prompt[2] == 'an apple'


def test_a_dry_run_makes_nothing(world, folder, tmp_path, run):
    said = run(*score_words(world, folder, '--dry-run', '--out', tmp_path / 'x.csv'))
    assert 'read 4 pictures' in said
    assert 'at most 8 image passes and 4 text passes' in said
    assert not (tmp_path / 'x.csv').exists()
    assert not runs_root().exists()


def test_a_scorer_that_gives_nan_throughout_is_told(folder, tmp_path, run, monkeypatch):
    monkeypatch.setattr(registry, '_REGISTERED', {})
    code = "def lost(images, prompts):\n    return [float('nan')] * len(images)\n"
    install(tmp_path / 'site', monkeypatch, code, scorers={'lost': 'lost'})
    said = run('score', folder, '--scorers', 'lost', code=2)
    assert 'lost (of the package my-plugins 1.0)' in said
    assert 'gave no finite score for' in said


@pytest.mark.parametrize(
    'words, says',
    [
        ('score', 'name the pictures'),
        ('score {f}/nowhere', 'no such file or folder'),
        ('score {f} --prompt a --prompts {f}/x.txt', 'not both'),
        ('score {f} --prompts {w}/prompts.txt', 'has 2 lines, and there are 4 pictures'),
        ('score {f} --out {f}/x.txt', 'written as .parquet, .csv or .jsonl'),
        ('score {f} --scorers hsp', "unknown scorer 'hsp'"),
        ('score {w}/pairs.parquet', 'jpg_0, jpg_1 may all hold pictures'),
        ('score {w}/pairs.parquet --out {w}/pairs.parquet', 'holds no scores'),
    ],
)
def test_bad_input_is_one_line_and_code_2(world, folder, run, words, says):
    assert says in run(*words.format(w=world, f=folder).split(), code=2)


def test_ours_is_written_over_and_nothing_else(world, folder, tmp_path, run):
    words = score_words(world, folder, '--out', tmp_path / 'x.csv')
    run(*words)
    first = (tmp_path / 'x.csv').read_text()
    run(*words)
    assert (tmp_path / 'x.csv').read_text() == first
    (tmp_path / 'x.csv').write_text('name,age\n')
    assert 'is not overwritten' in run(*words, code=2)
    assert (tmp_path / 'x.csv').read_text() == 'name,age\n'


def test_images_in_tars_are_scored_like_loose_ones(world, tmp_path, run, monkeypatch):
    draw = ['sample', '--model', world / 'model', '--prompts', world / 'prompts.txt', *DRAW]
    run(*draw, '--out', tmp_path / 'loose')
    monkeypatch.setattr(sampling, 'PACKED_FROM', 4)
    run(*draw, '--out', tmp_path / 'packed')
    assert (tmp_path / 'packed/images-00000.tar').is_file()
    tables = []
    for name in ('loose', 'packed'):
        words = ['score', tmp_path / name, '--scorers', f'clip={world}/clip', '--device', 'cpu']
        said = run(*words, '--out', tmp_path / f'{name}.parquet')
        assert 'prompts: the index of balanceddpo sample' in said
        tables.append(pd.read_parquet(tmp_path / f'{name}.parquet'))
    loose, packed = (t.sort_values(['prompt', 'clip']).reset_index(drop=True) for t in tables)
    assert loose[['prompt', 'clip']].equals(packed[['prompt', 'clip']])
    assert packed.file.str.fullmatch(r'[0-9a-f]{16}-[01]\.png').all()
    assert '4 pictures' in run(*words, '--dry-run')
    # a tar that is gone is told like any picture that cannot be read
    (tmp_path / 'packed/images-00000.tar').unlink()
    assert 'none of 4 pictures can be decoded' in run(*words, code=2)
