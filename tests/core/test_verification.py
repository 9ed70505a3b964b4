"""What is told of a folder of results, by states that are made by hand."""

import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from balanceddpo.cli import main
from balanceddpo.core.files import staged
from balanceddpo.core.seals import write_sealed
from balanceddpo.core.stages import open_stage, write_manifest
from balanceddpo.core.verification import verify_folder


@pytest.fixture
def runs(tmp_path):
    "A finished stage with a sealed table in it, and labels that lie alone."
    stage = open_stage('sample', {'steps': 2}, root=tmp_path)
    write_sealed(stage.folder / 'index.parquet', pa.table({'seed': [1, 2]}))
    stage.finish(images=2)
    write_sealed(tmp_path / 'labels.parquet', pa.table({'s': [1, -1]}))
    return tmp_path


def states(folder):
    return {f.path.relative_to(folder).as_posix(): f.state for f in verify_folder(folder)}


def test_no_flipped_bit_goes_unnoticed(runs):
    stage = next((runs / 'sample').iterdir()).relative_to(runs).as_posix()
    assert states(runs) == {'labels.parquet': 'whole', stage: 'whole'}
    files = [p for p in runs.rglob('*') if p.is_file()]
    assert len(files) == 4
    for path in files:
        whole = path.read_bytes()
        for i in range(0, len(whole), 7):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            found = states(runs)
            if found == {'labels.parquet': 'whole', stage: 'whole'}:
                assert path.name == 'manifest.json'  # a space in it: the same manifest
                assert not whole[i : i + 1].strip()
        path.write_bytes(whole)


def test_what_is_unfinished_older_or_left_over(runs):
    stage = open_stage('sample', {'steps': 3}, root=runs)
    assert states(runs)[stage.folder.relative_to(runs).as_posix()] == 'unfinished'
    (stage.folder / 'manifest.json').write_text('{"files": {}}')
    assert states(runs)[stage.folder.relative_to(runs).as_posix()] == 'older'
    shutil.rmtree(stage.folder)
    with staged(runs / 'model') as temporary:
        temporary.mkdir()
        assert states(runs)[temporary.name] == 'surplus'


def test_checkpoints_are_whole_one_by_one(runs):
    "Their folder has inputs and no manifest of its own, and is no stage."
    (runs / 'checkpoints').mkdir()
    (runs / 'checkpoints' / 'inputs.json').write_text('{}')
    for step in ('1', '2'):
        (runs / 'checkpoints' / step).mkdir()
        (runs / 'checkpoints' / step / 'policy').write_bytes(b'weights')
        write_manifest(runs / 'checkpoints' / step, step=int(step))
    (runs / 'checkpoints/1/policy').write_bytes(b'weighty')
    found = states(runs)
    assert 'checkpoints' not in found
    assert (found['checkpoints/1'], found['checkpoints/2']) == ('damaged', 'whole')


def test_the_command_says_what_is_damaged(runs, capsys):
    assert main(['verify', str(runs)]) == 0
    assert f'{runs}: 2 whole' in capsys.readouterr().out
    (runs / 'labels.parquet').write_bytes(
        (runs / 'labels.parquet').read_bytes().replace(b's', b't', 1)
    )
    assert main(['verify', str(runs)]) == 2
    told = capsys.readouterr()
    assert f'damaged: {runs / "labels.parquet"}' in told.out
    assert '1 of 2 results are damaged' in told.err


def test_a_process_that_ends_after_a_reading_ends_well(runs):
    "Two of three such processes were aborted at their end, after all was said, by Arrow's threads."
    code = 'import sys; from balanceddpo.cli import main; sys.exit(main(["verify", sys.argv[1]]))'
    for _ in range(6):
        done = subprocess.run([sys.executable, '-c', code, str(runs)], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b'')
