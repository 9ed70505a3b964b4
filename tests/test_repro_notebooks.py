"Every reproduction notebook runs at its smallest scale and writes what it says."
from pathlib import Path

import pytest

from balanceddpo.reproduction import reproduce

NOTEBOOKS = sorted(p.stem for p in (Path(__file__).parent.parent/'nbs'/'repro').glob('*.ipynb'))
WRITES = {'table1': ['table1.csv', 'table1.md', 'table1.tex', 'table1.pdf', 'table1.png', 'table1_samples.png', 'table1.json'],
          'icon_world': ['icon_world.json', 'icon_world_samples.png', 'icon_world_autoencoder.png'],
          'tuning': ['tuning.csv', 'tuning.md', 'tuning.tex', 'tuning.json']}


def test_each_notebook_is_listed_here():
    assert NOTEBOOKS == sorted(WRITES)


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_it_runs_at_smoke(name, tmp_path):
    job, = reproduce(name, scale='smoke', out=tmp_path/'figures', progress=False)
    missing = [f for f in WRITES[name] if not (tmp_path/'figures'/f).stat().st_size]
    assert not missing
