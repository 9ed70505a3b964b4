"A note says how files were made, and nothing about the machine's folders."

import json
from dataclasses import dataclass
from hashlib import sha256

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.paper.provenance import Making, write_provenance


def test_provenance_tells_all_but_the_place(tmp_path):
    @dataclass
    class Settings:
        steps: int = 20

    (tmp_path / 'model').mkdir()
    (tmp_path / 'model/w.bin').write_bytes(b'w')
    (tmp_path / 't.md').write_bytes(b'table')
    path = write_provenance(
        tmp_path,
        Making('balanceddpo reproduce table1', Settings(), seeds=range(2), seconds=3),
        inputs=[tmp_path / 'model'],
        outputs=[tmp_path / 't.md'],
    )
    assert path == tmp_path / 'provenance.json'
    note = json.loads(path.read_text())
    assert note['outputs'] == {'t.md': sha256(b'table').hexdigest()}
    assert list(note['inputs']) == ['model']
    assert note['seeds'] == [0, 1]
    assert note['parameters'] == {'steps': 20}
    assert note['versions']['python']
    assert note['versions']['matplotlib']
    assert note['finished'].endswith('+00:00')
    assert str(tmp_path) not in path.read_text()
    with pytest.raises(InputError, match='absent'):
        write_provenance(tmp_path, outputs=[tmp_path / 'absent'])
