"""Processes that a launcher has started make labels, latents, images and scores together: the same
bytes as one process, the work of one that is missing done by the other, each thing made once."""

import json
import os
import subprocess
import sys

import pytest

from balanceddpo.cli import main
from balanceddpo.core.stages import runs_root, verify_manifest

DRAWING = '--limit 3 --images-per-prompt 2 --steps 2 --batch-size 2 --device cpu'.split()
VERBS = (
    'label --pairs icons --limit 24 --device cpu --scorers icons --out {0}/labels.parquet'.split(),
    'encode --pairs icons --limit 24 --device cpu --model icons --shard-size 5'.split()
    + ['--out', '{0}/encoded'],
    ['sample', '--model', 'icons', '--prompts', 'icons:hpd', *DRAWING, '--out', '{0}/images'],
)
CHILD = """
import json, sys
from balanceddpo.cli import main
from balanceddpo.data import pairs
from balanceddpo.models import encoding, image_store
count = dict(shards=0, images=0, decoded=0)
def counted(module, name, what):
    real = getattr(module, name)
    def call(*args, **options):
        count[what] += 1
        return real(*args, **options)
    setattr(module, name, call)
counted(encoding, 'encode_unit', 'shards')
counted(pairs, 'decode', 'decoded')
counted(image_store, 'write_image', 'images')
for words in json.loads(sys.argv[1]):
    assert main(words) == 0
print(json.dumps(count), file=sys.stderr)
"""


def commands(place):
    return [[word.format(place) for word in words] for words in VERBS]


def contents(place):
    "Name -> bytes of what is made at `place`."
    return {
        p.relative_to(place).as_posix(): p.read_bytes()
        for p in sorted(place.rglob('*'))
        if p.is_file() and p.name not in ('.lock',)
    }


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "What one process makes."
    place = tmp_path_factory.mktemp('alone')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BALANCEDDPO_RUNS', str(tmp_path_factory.mktemp('runs')))
        for words in commands(place):
            assert main(words) == 0
    return contents(place)


def two_processes(code, told, runs):
    "(stdout, stderr) of two processes of one launcher that run some code with an argument."
    words = [sys.executable, '-W', 'ignore', '-c', code, json.dumps(told)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = []
    for rank in '01':
        launched = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2', OMP_NUM_THREADS='1')
        launched['BALANCEDDPO_RUNS'] = str(runs)
        running.append(subprocess.Popen(words, env=os.environ | launched, **pipes))
    ended = [process.communicate(timeout=400) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended[0][1] + ended[1][1]
    return ended


def test_two_processes_make_the_bytes_of_one_and_nothing_twice(alone, tmp_path):
    place = tmp_path / 'two'
    place.mkdir()
    ended = two_processes(CHILD, commands(place), tmp_path / 'runs')
    assert contents(place) == alone
    counts = [json.loads(err.strip().splitlines()[-1]) for _, err in ended]
    # 24 pairs in shards of 5, and 3 x 2 images in batches of 2: each made once, by either
    assert sum(c['shards'] for c in counts) == 5
    assert sum(c['images'] for c in counts) == 6
    assert sum(c['decoded'] for c in counts) == 2 * 48  # to label, and to encode
    assert '24 pairs labelled' in ended[0][0]
    assert ended[1][0] == ''  # the first one prints


def test_a_process_that_is_left_alone_makes_the_whole(alone, tmp_path, monkeypatch, capsys):
    "The second of two, whose first has died or never came."
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    place = tmp_path / 'left'
    place.mkdir()
    for words in commands(place):
        assert main(words) == 0
    made = contents(place)
    # the labels file is the first one's to write
    assert made == {name: data for name, data in alone.items() if name != 'labels.parquet'}
    assert capsys.readouterr().out == ''
    assert not [p for p in tmp_path.rglob('*.claims')]
    for name in ('encoded', 'images'):
        verify_manifest(place / name)


def test_a_run_that_was_killed_between_images_and_captions_goes_on(alone, tmp_path, monkeypatch):
    "Both processes had made their images, and said so; then both were killed."
    words = [word.format(tmp_path) for word in VERBS[1]]
    assert main(words) == 0
    folder, claims = tmp_path / 'encoded', tmp_path / '.encoded.images.claims'
    for path in (folder / 'manifest.json', *folder.glob('p*.json'), *folder.glob('p*.safetensors')):
        path.unlink()
    claims.mkdir()
    for k in (0, 1):
        (claims / f'{k}-of-2').write_text('made')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(words) == 0
    found = contents(folder)
    assert found == {n.removeprefix('encoded/'): d for n, d in alone.items() if 'encoded' in n}


def test_models_are_judged_together(tmp_path, monkeypatch):
    "Of two stores each process scores one; both have the scores of both."
    results = []
    for rank in '01':
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('WORLD_SIZE', '2')
        out = tmp_path / rank
        words = ['evaluate', 'base=icons', 'same=icons', '--prompts', 'icons:hpd', *DRAWING]
        assert main([*words, '--scorers', 'icons', '--out', str(out)]) == 0
        results.append((out / 'comparisons.csv').exists())
    assert results == [True, False]
    assert len([*(runs_root() / 'scores').glob('*.parquet')]) == 1  # the same images


JUDGE = """
import json, sys
from functools import partial
from balanceddpo.cli import main
from balanceddpo.evaluation import scores
from balanceddpo.pipeline import stages
stages.parts_of = partial(stages.parts_of, size=2)
real, scored = scores._score_missing, []
def count(store, table, part, columns, *args):
    found = real(store, table, part, columns, *args)
    if any(column.startswith('hps@') for column in columns.values()):  # the world has a check too
        scored.append(found)
    return found
scores._score_missing = count
assert main(json.loads(sys.argv[1])) == 0
print(sum(scored), file=sys.stderr)
"""


def test_the_images_of_one_model_are_scored_by_all_processes(tmp_path):
    "Six images in three parts, each scored once by either of two processes."
    words = ['evaluate', 'base=icons', 'same=icons', '--prompts', 'icons:hpd', *DRAWING]
    words += ['--scorers', 'icons:hps', '--out', str(tmp_path / 'out')]
    ended = two_processes(JUDGE, words, tmp_path / 'runs')
    assert sum(int(err.strip().splitlines()[-1]) for _, err in ended) == 3
    (kept,) = [p for p in (tmp_path / 'runs' / 'scores').iterdir() if not p.name.startswith('.')]
    assert kept.suffix == '.parquet'


def test_studies_are_not_made_by_several_processes(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '0')
    assert main(['reproduce', 'table1', '--scale', 'smoke']) == 2
    assert 'run it without a launcher' in capsys.readouterr().err
