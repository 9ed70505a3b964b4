"""A file is read to check its hash once a launch and machine; a changed or damaged one is seen."""

import os
import subprocess
import sys
import time

import pytest

import balanceddpo
from balanceddpo.core.checked_files import has_hash, marks_folder
from balanceddpo.core.errors import InputError
from balanceddpo.core.files import file_digest

CHILD = """
import json, sys, time
sys.path.insert(0, {package!r})
from balanceddpo.core import checked_files
real, read = checked_files.file_digest, []
def slow(path):
    read.append(str(path))
    time.sleep(.1)
    return real(path)
checked_files.file_digest = slow
files = json.loads(sys.argv[1])
print(json.dumps([[checked_files.has_hash(f, sha) for f, sha in files.items()], read]))
"""


def processes(files, count=3, **environ):
    "What each of several processes of one launch found of the files, and which it has read."
    import json

    package = os.path.dirname(os.path.dirname(balanceddpo.__file__))
    told = {
        'LOCAL_WORLD_SIZE': str(count),
        'MASTER_PORT': '29500',
        'TORCHELASTIC_RUN_ID': str(time.time_ns()),
        **environ,
    }
    started = [
        subprocess.Popen(
            [sys.executable, '-c', CHILD.format(package=package), json.dumps(files)],
            env=os.environ | told | {'LOCAL_RANK': str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(1, count + 1)  # none removes the folder while others may start
    ]
    said = [json.loads(process.communicate()[0]) for process in started]
    assert [process.returncode for process in started] == [0] * count
    return [found for found, _ in said], sum((read for _, read in said), [])


@pytest.fixture
def files(tmp_path, monkeypatch):
    "Three files and their hashes; the machine's temporary folder is a new one."
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    made = [tmp_path / name for name in 'abc']
    for path in made:
        path.write_text(path.name * 1000)
    return {str(path): file_digest(path) for path in made}


def test_the_processes_of_a_launch_read_a_file_once_together(files):
    found, read = processes(files)
    assert found == [[True] * 3] * 3
    assert sorted(read) == sorted(files)


def test_another_launch_and_a_process_alone_read_for_themselves(files):
    assert sorted(processes(files, 1)[1]) == sorted(files)
    assert sorted(processes(files)[1]) == sorted(files)
    assert sorted(processes(files)[1]) == sorted(files)


def test_a_damaged_file_is_damaged_for_all_and_one_that_changes_is_read_again(files):
    damaged = next(iter(files))
    wrong = files | {damaged: 64 * '0'}
    found, read = processes(wrong)
    assert found == [[False, True, True]] * 3
    assert read.count(damaged) == 3  # nobody marks it
    same = dict(TORCHELASTIC_RUN_ID='one')
    processes(files, **same)
    with open(damaged, 'r+') as file:
        file.write('x')
    found, read = processes(files, **same)
    assert found == [[False, True, True]] * 3
    assert {*read} == {damaged}


def test_a_folder_that_is_not_this_users_is_not_believed(files, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    told = {'LOCAL_WORLD_SIZE': '2', 'MASTER_PORT': '1'}
    folder = marks_folder(told)
    assert folder.is_dir()
    folder.chmod(0o777)
    assert marks_folder(told) is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert marks_folder(told) is None


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match='cannot read'):
        has_hash(tmp_path / 'none', 64 * '0')
