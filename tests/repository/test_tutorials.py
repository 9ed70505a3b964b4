"""The tutorials run from the first cell to the last, each in an empty folder."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / 'docs/tutorials').glob('*.ipynb'))
SPEC = importlib.util.spec_from_file_location('run_tutorials', ROOT / 'docs/run_tutorials.py')
run_tutorials = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_tutorials)


@pytest.fixture(autouse=True)
def this_checkout(monkeypatch):
    "Kernels and commands use the package that is tested, and the environment's own scripts."
    scripts = Path(sys.executable).parent
    monkeypatch.setenv('PATH', f'{scripts}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def said(book):
    "What the cells have printed and shown, as text."
    outputs = [o for cell in book['cells'] for o in cell.get('outputs', [])]
    return [''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in outputs]


@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs(path):
    anew = run_tutorials.tidied(run_tutorials.executed(path))
    kept = nbformat.read(path, as_version=4)
    assert len(said(anew)) == len(said(kept))
    # the same first words, where those are no numbers: what is measured differs by machine
    for new, old in zip(said(anew), said(kept), strict=True):
        assert re.findall(r'[A-Za-z]+', new)[:5] == re.findall(r'[A-Za-z]+', old)[:5]


@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_what_a_tutorial_keeps_is_for_readers(path):
    text = path.read_text(encoding='utf-8')
    assert not re.search(r'/(?:root|home|work|tmp|Users)/[\w.-]+/', text)
    assert 'jupyter.widget' not in text
    assert path.stem in (path.parent / 'index.md').read_text(encoding='utf-8')
    book = json.loads(text)
    assert all(cell.get('execution_count') is None for cell in book['cells'])
    assert any(said(book))


def test_a_command_that_fails_stops_a_tutorial(tmp_path):
    path = tmp_path / 'fails.ipynb'
    cell = nbformat.v4.new_code_cell('!balanceddpo methods NoSuchMethod')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with pytest.raises(Exception, match='returned non-zero exit status 2'):
        run_tutorials.executed(path)


def test_bars_of_progress_are_not_kept():
    bars = (
        'a\nx:  50%|# | 1/2 [00:01<00:01, 1.00it/s]\rx: 100%|##| 2/2 [00:02<00:00, 1.00it/s]\nb\n'
    )
    assert run_tutorials.last_words(bars) == 'a\nb\n'
    assert run_tutorials.last_words('pairs: 6pair [00:00, 29.56pair/s]\nend [a, b]') == 'end [a, b]'
    assert run_tutorials.last_words('10 %\r20 %\nend') == '20 %\nend'
