"""balanceddpo reproduce and icons."""

import pytest
from PIL import Image

from balanceddpo.command.studies import PARTS
from balanceddpo.core.files import asset, content_digest


def test_the_icon_world_can_be_seen_and_copied_out(tmp_path, run):
    said = run('icons')
    assert 'simulated' in said
    assert 'pairs' in said
    assert '150 hpd' in said
    run('icons', '--export', tmp_path / 'world')
    for part in PARTS:
        assert content_digest(tmp_path / 'world' / part) == content_digest(asset(part))
    assert 'is there already' in run('icons', '--export', tmp_path / 'world', code=2)
    said = run('icons', '--grid', tmp_path / 'pairs.png', '--rows', 2)
    assert Image.open(tmp_path / 'pairs.png').width > 500
    assert 'pairs.pdf' in said


@pytest.mark.parametrize(
    'words, says',
    [
        ('reproduce', 'NAME'),
        ('reproduce table0', "no notebook 'table0'"),
        ('reproduce table1 --slurm partition=a', '--slurm says what to ask Slurm for'),
        ('reproduce table1 --on slurm --slurm cluster=x', '--slurm cluster=x: use slurm or local'),
        ('reproduce table1 --parameters x=1', "unknown parameter 'x'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, words, says):
    assert says.lower() in refused(words)
