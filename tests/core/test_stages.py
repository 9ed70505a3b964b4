"""What `core.stages` promises when a file is damaged, two write at once, or inputs are others."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from balanceddpo.core import stages
from balanceddpo.core.errors import InputError
from balanceddpo.core.files import content_files, digest, file_digest, write_json
from balanceddpo.core.stages import (
    held,
    locked,
    open_stage,
    runs_root,
    verify_manifest,
    write_manifest,
)


@dataclass(frozen=True)
class Inputs:
    path: Path = Path('a/b')
    names: tuple = ('x', 'y')


def python(code, *args):
    "A process that runs `code`."
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
    )


# manifests


@pytest.fixture
def folder(tmp_path):
    f = tmp_path / 'folder'
    f.mkdir()
    for i in range(3):
        (f / f'{i}.bin').write_bytes(bytes([i]) * 100)
    write_manifest(f, step=7)
    return f


def test_manifest_of_a_sound_folder(folder):
    manifest = verify_manifest(folder)
    assert manifest['step'] == 7
    assert manifest['files']['1.bin'] == {
        'bytes': 100,
        'sha256': file_digest(folder / '1.bin'),
    }
    (folder / 'later.txt').touch()
    verify_manifest(folder)  # more than was promised is no damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    'damage',
    [
        flip,
        lambda p: p.write_bytes(b''),
        lambda p: os.truncate(p, 50),
        lambda p: p.unlink(),
        lambda p: (p.unlink(), p.mkdir()),
    ],
)
def test_manifest_names_the_damaged_file(folder, damage):
    damage(folder / '1.bin')
    with pytest.raises(InputError, match='1.bin') as e:
        verify_manifest(folder)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '[]',
        '{}',
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {"bytes": 1}}}',
        'null',
    ],
)
def test_a_garbled_manifest_is_bad_input(folder, text):
    (folder / 'manifest.json').write_text(text)
    with pytest.raises(InputError, match='manifest.json'):
        verify_manifest(folder)


@pytest.mark.parametrize('name', ['../secret', '/etc/passwd', 'a/../../b'])
def test_a_manifest_cannot_point_outside(folder, name):
    manifest = {'files': {name: {'bytes': 1, 'sha256': ''}}}
    sealed = manifest | {'seal': digest(manifest)}
    (folder / 'manifest.json').write_text(json.dumps(sealed))
    with pytest.raises(InputError, match='outside'):
        verify_manifest(folder)


def test_manifest_is_written_last(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('x')
    seen = []
    monkeypatch.setattr(
        stages, 'file_digest', lambda p: seen.append((tmp_path / 'manifest.json').exists()) or 'h'
    )
    write_manifest(tmp_path)
    assert seen == [False]


# locks


def test_a_second_process_is_refused_and_told_who(tmp_path):
    code = (
        'import sys; from balanceddpo.core.stages import locked\n'
        'with locked(sys.argv[1]): print("in")'
    )
    with locked(tmp_path):
        second = python(code, tmp_path)
        assert second.returncode == 1
        assert f'process {os.getpid()}' in second.stderr.strip().splitlines()[-1]
    assert python(code, tmp_path).stdout.strip() == 'in'


def test_a_killed_holder_frees_its_lock(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            textwrap.dedent("""
        import sys, time; from balanceddpo.core.stages import locked
        with locked(sys.argv[1]): print("in", flush=True); time.sleep(60)"""),
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline().strip() == 'in'
        with pytest.raises(InputError, match=f'process {holder.pid}'), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass


def test_one_who_waits_comes_in_when_the_other_is_out(tmp_path):
    said = []

    def wait():
        with locked(tmp_path, wait=True):
            said.append('second in')

    with locked(tmp_path):
        second = Thread(target=wait)
        second.start()
        second.join(0.3)
        assert second.is_alive()
        said.append('first out')
    second.join(30)
    assert said == ['first out', 'second in']


def test_of_many_threads_one_is_in_at_a_time(tmp_path):
    inside, most = [], []

    def work(k):
        with locked(tmp_path / 'new' / 'place', wait=True):
            inside.append(k)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(k)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert most == [1] * 12


def test_one_who_waits_in_a_folder_that_is_removed_makes_it_again(tmp_path):
    place, took = tmp_path / 'claims' / '0-of-2.lock', []

    def wait():
        with held(place, wait=True) as mine:
            took.append((mine, place.exists()))

    with held(place) as mine:
        assert mine
        second = Thread(target=wait)
        second.start()
        time.sleep(0.2)
        shutil.rmtree(place.parent)
    second.join(30)
    assert took == [(True, True)]


def test_a_lock_is_no_content_and_its_holder_is_named_only_while_it_is_held(tmp_path):
    with locked(tmp_path):
        assert f'{os.getpid()} on ' in (tmp_path / '.holder').read_text()
        assert content_files(tmp_path) == []
    assert not (tmp_path / '.holder').exists()


# stages


def test_stage_is_done_only_when_finished_whole_and_of_these_inputs(tmp_path):
    s = open_stage('train', Inputs(), root=tmp_path)
    assert s.folder == tmp_path / 'train' / digest(Inputs())
    assert not s.done
    (s.folder / 'model').write_bytes(b'weights')
    assert not s.done
    s.finish(seconds=2.0)
    assert s.done
    assert verify_manifest(s.folder)['seconds'] == 2.0
    os.truncate(s.folder / 'model', 3)
    assert not s.done


def test_stage_in_a_named_folder_refuses_other_inputs(tmp_path):
    open_stage(
        'encode', {'config': {'resolution': 64, 'model': 'a'}, 'seed': 0}, folder=tmp_path / 'x'
    )
    open_stage(
        'encode', {'seed': 0, 'config': {'model': 'a', 'resolution': 64}}, folder=tmp_path / 'x'
    )
    with pytest.raises(InputError, match=r'config.resolution = 64, not 128'):
        open_stage(
            'encode',
            {'config': {'resolution': 128, 'model': 'a'}, 'seed': 1},
            folder=tmp_path / 'x',
        )
    with pytest.raises(InputError, match=r"crop = '\(absent\)', not 'center'"):
        open_stage(
            'encode',
            {'config': {'resolution': 64, 'model': 'a'}, 'seed': 0, 'crop': 'center'},
            folder=tmp_path / 'x',
        )


def test_stage_does_not_move_into_a_users_folder(tmp_path):
    (tmp_path / 'holiday.jpg').write_bytes(b'beach')
    with pytest.raises(InputError, match='holiday.jpg'):
        open_stage('sample', {}, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['holiday.jpg']


def test_stage_with_garbled_inputs_says_so(tmp_path):
    s = open_stage('sample', {'a': 1}, root=tmp_path)
    (s.folder / 'inputs.json').write_text('{')
    assert not s.done
    with pytest.raises(InputError, match='inputs.json'):
        open_stage('sample', {'a': 1}, root=tmp_path)


def test_runs_root_follows_the_environment(monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', '~/elsewhere')
    assert runs_root() == Path.home() / 'elsewhere'
    monkeypatch.delenv('BALANCEDDPO_RUNS')
    assert runs_root() == Path('runs')


def test_no_flipped_bit_of_a_manifest_is_believed(folder):
    "Whatever a flip makes of it: refused in one line, or the same manifest as before."
    good = write_manifest(folder, rows=2, numerics='torch')
    assert good['seal'] == digest({k: v for k, v in good.items() if k != 'seal'})
    whole = (folder / 'manifest.json').read_bytes()
    for i in range(len(whole)):
        (folder / 'manifest.json').write_bytes(
            whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :]
        )
        try:
            found = verify_manifest(folder)
        except InputError as e:
            assert str(folder) in str(e)
        else:
            assert found == {k: v for k, v in good.items() if k != 'seal'}


def test_a_url_is_no_place_for_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ('s3://bucket/encoded', Path('memory://encoded')):
        with pytest.raises(InputError, match='is a URL: write to a folder'):
            open_stage('encode', {}, folder=place)
        with pytest.raises(InputError, match='is a URL: write to a folder'):
            write_json(place, {})
    assert not [*tmp_path.iterdir()]
