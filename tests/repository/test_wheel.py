"""The wheel, not the editable install: built from a copy, installed away from the repository, and
used from another folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'balanceddpo'
ASSETS = PACKAGE / 'icon_world/assets'


def run(*args, cwd, **env):
    "What Python with these words prints, run in another folder."
    command, env = [sys.executable, *map(str, args)], {**os.environ, **env}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the repository's files."
    copy, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'NOTICE'):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(PACKAGE, copy / 'balanceddpo', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(
        ROOT / 'nbs/repro', copy / 'nbs/repro', ignore=shutil.ignore_patterns('.ipynb_checkpoints')
    )
    run('-m', 'build', '--wheel', '--no-isolation', '--outdir', out, copy, cwd=copy)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A folder that holds the wheel's content; on PYTHONPATH it comes before the editable install."
    target = tmp_path_factory.mktemp('installed')
    options = '--quiet --no-deps --no-index --no-compile --target'.split()
    run('-m', 'pip', 'install', *options, target, wheel, cwd=target)
    return target


def content(root):
    "Place -> digest of each file below `root`."
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }


def notebooks_in(folder):
    "Name -> notebook of a folder."
    return {p.name: json.loads(p.read_text(encoding='utf-8')) for p in folder.glob('*.ipynb')}


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel, installed):
    there = content(installed / 'balanceddpo')
    assert {k: v for k, v in there.items() if not k.startswith('repro/')} == content(PACKAGE)
    top = {name.split('/')[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {'balanceddpo', f'{wheel.name.split("-py3")[0]}.dist-info'}


def test_the_wheel_has_the_notebooks_without_their_outputs(installed):
    ours, theirs = notebooks_in(ROOT / 'nbs/repro'), notebooks_in(installed / 'balanceddpo/repro')
    assert any(c.get('outputs') for notebook in ours.values() for c in notebook['cells'])
    for notebook in ours.values():
        for cell in notebook['cells']:
            if cell['cell_type'] == 'code':
                cell.update(outputs=[], execution_count=None)
    assert theirs == ours


def test_the_wheel_carries_the_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(n.endswith(('licenses/LICENSE', 'licenses/NOTICE')) for n in names) == 2


def test_every_module_imports_away_from_the_repository(installed, tmp_path):
    code = """
import importlib
import json
import pkgutil

import balanceddpo

names = [m.name for m in pkgutil.walk_packages(balanceddpo.__path__, 'balanceddpo.')]
for name in names:
    importlib.import_module(name)
print(json.dumps([balanceddpo.__file__, names]))
"""
    file, names = json.loads(run('-c', code, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(file).is_relative_to(installed)
    modules = {p.relative_to(PACKAGE.parent).with_suffix('') for p in PACKAGE.rglob('*.py')}
    modules = {m.parent if m.name == '__init__' else m for m in modules}
    assert set(names) == {'.'.join(m.parts) for m in modules} - {'balanceddpo'}


def test_the_command_is_there(wheel, installed, tmp_path):
    points = next(installed.glob('*.dist-info')) / 'entry_points.txt'
    assert 'balanceddpo = balanceddpo.cli:main' in points.read_text()
    code = """
import sys

from balanceddpo.cli import main

sys.argv = ['balanceddpo', '--help']
sys.exit(main())
"""
    assert 'reproduce' in run('-c', code, cwd=tmp_path, PYTHONPATH=str(installed))


def test_an_asset_is_read_away_from_the_repository(installed, tmp_path):
    assets = sorted(p.relative_to(ASSETS) for p in ASSETS.rglob('*') if p.is_file())
    assert assets, 'the package ships no assets'
    code = """
import sys

from balanceddpo.core.files import asset, file_digest

path = asset(sys.argv[1])
print(path)
print(file_digest(path))
"""
    path, sha = run('-c', code, assets[0], cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert Path(path).is_relative_to(installed)
    assert sha == hashlib.sha256((ASSETS / assets[0]).read_bytes()).hexdigest()


def test_the_assets_stay_small():
    sizes = {p: p.stat().st_size for p in ASSETS.rglob('*') if p.is_file()}
    # all weights
    assert sum(size for p, size in sizes.items() if p.suffix == '.safetensors') <= 75e6
    assert sum(sizes.values()) <= 80e6  # and drawings, pairs, prompts


def test_no_asset_names_the_place_where_it_was_made():
    for p in ASSETS.rglob('*.json'):
        assert '_name_or_path' not in p.read_text(), p
