"""The wheel, not the editable install: built from a copy, installed away from the repository, and
used from another folder."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
def listed(tmp_path_factory):
    "The places of what the source distribution holds, as setuptools lists them."
    place = tmp_path_factory.mktemp('egg')
    run('setup.py', '--quiet', 'egg_info', '--egg-base', place, cwd=ROOT)
    (names,) = place.glob('*/SOURCES.txt')
    found = [name for name in names.read_text().splitlines() if '.egg-info/' not in name]
    return {Path(name).as_posix() for name in found}


@pytest.fixture(scope='module')
def wheel(listed, tmp_path_factory):
    "The wheel, built from a copy of what the source distribution holds beside results and tests."
    copy, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in listed:
        if not name.startswith(('paper_figures/', 'tests/', 'benchmarks/')):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
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


def test_the_source_distribution_holds_what_the_tests_and_the_wheel_need(listed):
    folders = 'balanceddpo nbs tests benchmarks docs paper_figures'.split()
    there = [p for folder in folders for p in (ROOT / folder).rglob('*') if p.is_file()]
    passing = {'__pycache__', '.ipynb_checkpoints', 'runs'}
    wanted = {
        p.relative_to(ROOT).as_posix() for p in there if not passing & {*p.relative_to(ROOT).parts}
    }
    top = 'pyproject.toml setup.py settings.ini constraints.txt Makefile README.md CHANGELOG.md'
    top += ' CONTRIBUTING.md CITATION.cff LICENSE NOTICE MANIFEST.in'
    assert {*wanted, *top.split()} - listed == set()
    assert not [name for name in listed if passing & {*Path(name).parts}]


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


def test_the_wheel_asks_for_what_pyproject_says(installed):
    "Which agrees with what the code imports: see `test_every_import_of_the_package_is_declared`."
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    told = BytesParser().parse((next(installed.glob('*.dist-info')) / 'METADATA').open('rb'))
    needs = [Requirement(text) for text in told.get_all('Requires-Dist')]
    base = {(n.name, str(n.specifier)) for n in needs if n.marker is None}
    wanted = [Requirement(text) for text in project['dependencies']]
    assert base == {(n.name, str(n.specifier)) for n in wanted}
    for extra, texts in project['optional-dependencies'].items():
        only = [n for n in needs if n.marker and n.marker.evaluate({'extra': extra})]
        assert {n.name for n in only} == {Requirement(text).name for text in texts}
    classifiers = told.get_all('Classifier')
    assert {f'Programming Language :: Python :: 3.{k}' for k in (11, 12, 13)} <= set(classifiers)
    assert told['Requires-Python'] == '>=3.11'
    assert told.get_all('Project-URL') is None  # the project has no address yet


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


# Nothing that an extra brings can be imported, as on a base install.
BASE = """
import sys

from balanceddpo.core.devices import EXTRAS

for modules in EXTRAS.values():
    sys.modules.update(dict.fromkeys(modules))

import balanceddpo
from balanceddpo.cli import main

print(balanceddpo.__file__)
"""
VERBS = """
for words in {verbs!r}:
    print('now', *words, file=sys.stderr, flush=True)
    code = main(words.split())
    assert code == 0, (words, code)
"""
SMALL = '--scorers icons:clip --device cpu'
CORE = (
    'methods',
    'methods BalancedDPO',
    'doctor --offline',
    'icons',
    f'label --pairs icons --limit 8 {SMALL} --out labels.parquet',
    'encode --pairs icons --limit 8 --model icons --device cpu --out encoded',
    'train --model icons --labels labels.parquet --encoded encoded --mode lora --resolution 64'
    ' --max-steps 2 --batch-size 2 --micro-batch-size 2 --device cpu --out lora',
    'sample --model icons --prompts icons:hpd --limit 2 --images-per-prompt 1 --steps 2'
    ' --device cpu --out drawn',
    'evaluate base=icons ours=icons+lora/model --prompts icons:hpd --limit 2 --images-per-prompt 1'
    f' --steps 2 {SMALL} --out results',
    'align BalancedDPO --model icons --pairs icons --dry-run',
    'verify',
)


def test_the_core_verbs_run_on_a_base_install(installed, tmp_path):
    said = run(
        *('-c', BASE + VERBS.format(verbs=CORE)),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
        HF_HUB_OFFLINE='1',
    )
    assert Path(said.splitlines()[0]).is_relative_to(installed)
    assert 'note    [repro]' in said
    assert (tmp_path / 'lora/model/pytorch_lora_weights.safetensors').is_file()
    assert len((tmp_path / 'lora/metrics.jsonl').read_text().splitlines()) == 2
    assert not (tmp_path / 'lora/tensorboard').exists()
    assert (tmp_path / 'results/win_rates.tex').is_file()


MISSING = {
    'reproduce table1 --scale smoke': 'reproduce needs papermill: ... [repro]',
    'icons --grid grid': '--grid needs matplotlib: ... [repro]',
    'label --pairs hub:owner/name --method human': 'hub:owner/name needs datasets: ... [hub]',
    'train --model icons --labels l --encoded e --tracker tensorboard': (
        'the tracker tensorboard is not installed: ... [tensorboard], or set it to none'
    ),
    'train --model icons --labels l --encoded e --optimizer adamw8bit': (
        'optimizer adamw8bit needs bitsandbytes: ... [8bit]'
    ),
    'label --pairs icons --on ray --processes 2': '--on ray needs ray: ... [ray]',
    'label --pairs icons --on slurm --processes 2': '--on slurm needs submitit: ... [slurm]',
}


def test_the_base_install_says_what_brings_the_rest(installed, tmp_path):
    code = f"""
for words in {[*MISSING]!r}:
    code = main(words.split())
    assert code == 2, (words, code)
"""
    command = [sys.executable, '-c', BASE + code]
    env = os.environ | {'PYTHONPATH': str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith('balanceddpo: ')]
    install = r'pip install "balanceddpo\1"'
    lines = [re.sub(r'\.\.\. (\[\w+\])', install, line) for line in MISSING.values()]
    assert told == [f'balanceddpo: {line}' for line in lines]
    assert not [*tmp_path.rglob('*.parquet')]


def test_with_the_extra_reproduce_finds_the_notebooks_of_the_wheel(installed, tmp_path):
    words = 'reproduce all --scale smoke --dry-run'.split()
    said = run('-m', 'balanceddpo.cli', *words, cwd=tmp_path, PYTHONPATH=str(installed))
    names = [p.stem for p in (ROOT / 'nbs/repro').glob('*.ipynb')]
    assert {name for name in names if f'{name}: to do' in said} >= {'table1', 'table6', 'votes'}
    assert str(ROOT) not in said


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
