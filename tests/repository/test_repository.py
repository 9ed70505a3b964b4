"""What the repository promises about itself: one configuration, notebooks that are the source,
light imports, declared needs."""

import ast
import configparser
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import balanceddpo
from balanceddpo.core import devices

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)
REPRO = [p for p in NOTEBOOKS if p.is_relative_to(ROOT / 'nbs/repro')]
SOURCES = [p for p in NOTEBOOKS if p not in REPRO]
MODULES = sorted(
    '.'.join(p.relative_to(ROOT / 'balanceddpo').with_suffix('').parts)
    for p in (ROOT / 'balanceddpo').rglob('*.py')
    if p.stem not in ('__init__', '_modidx')
)
# The way of the data; a room imports from those before it.
ROOMS = (
    'core data scoring voting losses models training recipes'
    ' evaluation pipeline figures page icon_world paper command cli'
).split()
# Rooms that can be imported as a whole: their `__init__.py` is written by hand.
DOORS = {'pipeline'}
# What the command line needs before it knows what to do: it starts without a model library.
LIGHT = (
    'core.errors core.files core.parallel core.stages voting.config models.config training.config'
    ' paper.repro_notebooks paper.reproduction paper.results_page paper.study_jobs'
    ' command.options command.plans command.labelling command.training command.alignment'
    ' command.evaluation command.results command.sampling command.exporting command.scoring'
    ' command.studies'
    ' command.completion command.doctor command.votes command.asking core.config_files core.devices'
    ' core.hub_access core.plugins cli'
).split()
HEAVY = (
    'torch torchvision diffusers transformers accelerate peft datasets open_clip timm pandas'
    ' pyarrow numpy PIL matplotlib seaborn scipy tyro papermill nbformat tensorboard'
).split()
WIDTH = 100  # columns
MOST_LINES = 40  # of a function, and of an exported cell (blank ones aside)
MOST_LINES_OF_A_CLASS = 60  # of an exported cell that holds one class and nothing else
MOST_PARAMETERS = 7


def named(paths):
    "A case for each notebook, called by its place in nbs."
    return pytest.mark.parametrize(
        'path', paths, ids=lambda p: p.relative_to(ROOT / 'nbs').as_posix()
    )


def cells(path):
    "The cells of a notebook."
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell):
    "The text of a cell."
    return ''.join(cell['source'])


def code_cells(path):
    "The cells of a notebook that hold code."
    return [c for c in cells(path) if c['cell_type'] == 'code']


def directives(cell):
    "What nbdev is told at the top of a cell: export, hide, default_exp ..."
    return {m.split()[0].rstrip(':') for m in re.findall(r'^#\|\s*(\S.*)$', source(cell), re.M)}


@pytest.fixture(scope='module')
def project():
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())


@pytest.fixture(scope='module')
def settings():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / 'settings.ini')
    return parser['DEFAULT']


# one configuration


def test_settings_ini_agrees_with_pyproject(project, settings):
    p, nbdev = project['project'], project['tool']['nbdev']
    assert settings['lib_name'] == settings['repo'] == p['name'] == 'balanceddpo'
    assert settings['version'] == balanceddpo.__version__
    assert settings['description'] == p['description']
    assert settings['min_python'] == p['requires-python'].removeprefix('>=')
    assert (
        (settings['lib_path'], settings['nbs_path'])
        == (nbdev['lib_path'], nbdev['nbs_path'])
        == ('balanceddpo', 'nbs')
    )
    assert settings['requirements'].split() == p['dependencies']
    assert settings['console_scripts'] == 'balanceddpo=' + p['scripts']['balanceddpo']
    assert settings['author'] == p['authors'][0]['name']


def test_both_nbdevs_keep_the_parameters_tag(project, settings):
    # a list: nbdev 3 does not take a string
    assert project['tool']['nbdev']['allowed_cell_metadata_keys'] == ['tags']
    assert settings['allowed_cell_metadata_keys'] == 'tags'
    assert settings['update_pyproject'] == 'False'
    assert settings['doc_host'] == ''
    assert 'Documentation' not in project['project'].get('urls', {})


def test_citation_agrees(project):
    import yaml

    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert cff['version'] == balanceddpo.__version__
    assert cff['license'] == project['project']['license']
    assert cff['title'] == project['project']['name']
    assert cff['references'][0]['identifiers'][0]['value'] == 'arXiv:2503.12575'


def test_constraints_satisfy_the_declared_needs(project):
    lines = re.findall(r'^[^#\s]\S*', (ROOT / 'constraints.txt').read_text(), re.M)
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}
    extras = project['project']['optional-dependencies']
    needs = [*project['project']['dependencies'], *chain.from_iterable(extras.values())]
    for need in map(Requirement, needs):
        if need.name == 'balanceddpo':
            continue
        pin = pins.get(canonicalize_name(need.name))
        assert pin, f'{need.name} is not in constraints.txt'
        version = next(iter(pin.specifier)).version
        told = f'constraints.txt pins {pin}, pyproject.toml asks for {need}'
        assert need.specifier.contains(version), told


# notebooks are the source


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the notebooks and the configuration, exported into an empty package and cleaned."
    copy = tmp_path_factory.mktemp('copy')
    shutil.copytree(
        ROOT / 'nbs',
        copy / 'nbs',
        ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__'),
    )
    (copy / 'balanceddpo').mkdir()
    by_hand = [f'balanceddpo/{room}/__init__.py' for room in ('.', *DOORS)]
    for name in ('pyproject.toml', 'settings.ini', 'README.md', *by_hand):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    # under IN_TEST nbdev exports nothing
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    code = (
        'from nbdev.export import *\n'
        'from nbdev.doclinks import nbdev_export\n'
        'from nbdev.clean import nbdev_clean\n'
        'nbdev_export()\n'
        'nbdev_clean()\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=copy, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return copy


def test_export_and_clean_leave_no_difference_in_the_package(exported):
    ours, anew = modules_in(ROOT), modules_in(exported)
    told = 'a module without a notebook, or a notebook that was not exported'
    assert ours.keys() == anew.keys(), told
    told = 'make export: these modules are not what the notebooks say'
    assert [name for name in ours if ours[name] != anew[name]] == [], told


def modules_in(root):
    "Place -> text of each file of the package."
    files = (root / 'balanceddpo').rglob('*.py')
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def test_export_and_clean_leave_no_difference_in_the_notebooks(exported):
    places = [path.relative_to(ROOT) for path in NOTEBOOKS]
    unclean = [p for p in places if (ROOT / p).read_text() != (exported / p).read_text()]
    assert unclean == [], 'make export'


def test_clean_keeps_the_parameters_tag(exported):
    cell = {
        'cell_type': 'code',
        'execution_count': 3,
        'id': 'abcd1234',
        'metadata': {'tags': ['parameters'], 'scrolled': True},
        'outputs': [],
        'source': ['n = 1'],
    }
    notebook = exported / 'nbs/tagged.ipynb'
    notebook.write_text(
        json.dumps({'cells': [cell], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5})
    )
    code = 'from nbdev.clean import nbdev_clean; nbdev_clean("nbs/tagged.ipynb")'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=exported, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert cells(notebook)[0]['metadata'] == {'tags': ['parameters']}
    assert cells(notebook)[0]['execution_count'] is None
    notebook.unlink()


@named(NOTEBOOKS)
def test_no_error_is_committed(path):
    wrong = [
        c['id'] for c in code_cells(path) if any(o['output_type'] == 'error' for o in c['outputs'])
    ]
    assert not wrong, f'cells with an error in their output: {wrong}'


@named(NOTEBOOKS)
def test_no_place_on_a_machine_is_committed(path):
    assert not re.findall(r'/(?:root|home|work|Users)/[\w.-]+', path.read_text())


@named(NOTEBOOKS)
def test_no_progress_bar_is_committed(path):
    "A widget says nothing once its kernel is gone, and is a hundred lines long."
    assert 'jupyter.widget' not in path.read_text()


@named(SOURCES)
def test_exported_cells_are_short(path):
    too_long = {}
    for cell in code_cells(path):
        if {'export', 'exporti', 'exports'} & directives(cell):
            lines = source(cell).splitlines()
            count = sum(1 for line in lines if line.strip() and not line.startswith('#|'))
            if count > most_lines(cell):
                too_long[cell['id']] = count
    assert too_long == {}


def most_lines(cell):
    "Lines that an exported cell may have."
    statements = ast.parse(source(cell)).body
    one_class = len(statements) == 1 and isinstance(statements[0], ast.ClassDef)
    return MOST_LINES_OF_A_CLASS if one_class else MOST_LINES


@named(SOURCES)
def test_a_source_notebook_opens_with_its_title(path):
    first = cells(path)[0]
    assert first['cell_type'] == 'markdown'
    assert re.match(r'# \S.*\n+> \S', source(first))


@named(REPRO or [ROOT / 'nbs/repro'])
def test_a_repro_notebook_has_one_parameters_cell_and_exports_nothing(path):
    if path.is_dir():
        pytest.fail('nbs/repro holds no notebook')
    assert sum('parameters' in c['metadata'].get('tags', []) for c in code_cells(path)) == 1
    assert not any({'export', 'default_exp'} & directives(c) for c in code_cells(path))


# lines and functions that a reader can take in


def exported_files():
    "The files of the package, without nbdev's index."
    return [p for p in (ROOT / 'balanceddpo').rglob('*.py') if p.name != '_modidx.py']


def generated_lines(path):
    "Numbers of the lines that nbdev adds to an exported file: `__all__`, and where cells begin."
    text = path.read_text(encoding='utf-8')
    found = {n for n, line in enumerate(text.splitlines(), 1) if line.startswith('# %%')}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            found |= set(range(node.lineno, node.end_lineno + 1))
    return found


def long_lines(path, left_out=()):
    "'file:line' of each line that is too wide."
    lines = path.read_text(encoding='utf-8').splitlines()
    wide = [n for n, line in enumerate(lines, 1) if len(line) > WIDTH and n not in left_out]
    return [f'{path.relative_to(ROOT)}:{n}' for n in wide]


def test_no_line_of_the_package_is_too_long():
    wide = [long_lines(path, generated_lines(path)) for path in exported_files()]
    assert sum(wide, []) == []


def test_no_line_of_the_tests_and_benchmarks_is_too_long():
    paths = [p for folder in ('tests', 'benchmarks') for p in (ROOT / folder).rglob('*.py')]
    assert sum(map(long_lines, paths), []) == []


def functions(path):
    "Yield (where, lines, parameters) of each function of a file; `self` and `cls` are not counted."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            parameters = [a.arg for a in given if a.arg not in ('self', 'cls')]
            where = f'{path.relative_to(ROOT)}:{node.lineno} {node.name}'
            yield where, node.end_lineno - node.lineno + 1, len(parameters)


def test_functions_are_short_and_take_few_parameters():
    found = [function for path in exported_files() for function in functions(path)]
    assert len(found) > 500
    assert [(where, lines) for where, lines, _ in found if lines > MOST_LINES] == []
    assert [(where, many) for where, _, many in found if many > MOST_PARAMETERS] == []


# imports go one way


def file_of(module):
    "The exported file of a module."
    return ROOT / 'balanceddpo' / (module.replace('.', '/') + '.py')


def own_imports(module):
    """The modules of this package that a module imports, at its top or inside a function; a room
    that is imported as a whole stands for all of its modules."""
    found, package = set(), ['balanceddpo', *module.split('.')[:-1]]
    for node in ast.walk(ast.parse(file_of(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            source = '.'.join([*up, *filter(None, [node.module])])
            found |= {source, *(f'{source}.{a.name}' for a in node.names)}
    found = {m.removeprefix('balanceddpo.') for m in found}
    behind = {m for m in MODULES if m.rpartition('.')[0] in found & DOORS}
    return (found | behind) & set(MODULES)


def place(module):
    "Where a module stands: its room, and its notebook's number in it."
    room, _, name = module.rpartition('.')
    notebooks = [p.name for p in (ROOT / 'nbs' / room).glob('*.ipynb') if p.stem[3:] == name]
    return ROOMS.index(room or module), notebooks


def test_every_module_has_a_notebook_in_the_same_room():
    exported = {
        m[1]
        for path in SOURCES
        for c in code_cells(path)
        if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M))
    }
    assert exported == set(MODULES)
    for path in SOURCES:
        if path.parent != ROOT / 'nbs':
            name = re.match(r'\d\d_(\w+)$', path.stem)[1]
            assert f'{path.parent.name}.{name}' in exported


@pytest.mark.parametrize('module', MODULES)
def test_imports_go_one_way(module):
    for wanted in own_imports(module) - {module}:
        assert place(wanted) < place(module), f'{module} imports {wanted}, which comes after it'


# light imports


def test_importing_the_package_and_its_light_modules_imports_nothing_heavy():
    assert set(LIGHT) <= set(MODULES)
    code = f"""
import importlib
import sys

seen = set()
for name in ['balanceddpo', *('balanceddpo.' + module for module in {LIGHT!r})]:
    importlib.import_module(name)
    new = {{heavy for heavy in {HEAVY!r} if heavy in sys.modules}} - seen
    seen |= new
    if new:
        print(name, 'imports', *sorted(new))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ''


# declared needs


def third_party(tree):
    "Top-level names of what a module imports, apart from the standard library and this package."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.split('.')[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split('.')[0])
    return names - set(sys.stdlib_module_names) - {'balanceddpo'}


# what is not needed to change this package, and may be asked for where it is used
EXTRAS = ('hub', 'tensorboard', 'repro', 'hpsv2', 'ray', 'slurm', '8bit')


@cache
def owners_of_imports():
    "Name that is imported -> distributions; it reads the metadata of all that is installed, once."
    return packages_distributions()


def undeclared(names, project, *extras):
    "Those of some imported names that neither the base install nor these extras ask for."
    needs = list(project['project']['dependencies'])
    for extra in extras:
        needs += project['project']['optional-dependencies'][extra]
    declared = {canonicalize_name(Requirement(need).name) for need in needs}
    owners = owners_of_imports()

    def is_declared(name):
        return any(canonicalize_name(owner) in declared for owner in owners.get(name, [name]))

    return {name for name in names if not is_declared(name)}


@pytest.mark.parametrize('name', MODULES)
def test_every_import_of_the_package_is_declared(name, project):
    tree = ast.parse(file_of(name).read_text())
    assert undeclared(third_party(tree), project, *EXTRAS) == set()
    top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    extras = ['repro'] if name.startswith('figures.') else []  # a figure needs matplotlib anyway
    told = 'imported with the module, so the base install must have it'
    assert undeclared(third_party(top), project, *extras) == set(), told


def test_an_extra_brings_the_modules_that_the_package_says_it_does(project):
    extras = project['project']['optional-dependencies']
    assert set(devices.EXTRAS) == set(EXTRAS) == set(extras) - {'dev', 'docs'}
    nothing = {'project': {'dependencies': [], 'optional-dependencies': extras}}
    for extra, modules in devices.EXTRAS.items():
        others = {m for m in modules if importlib.util.find_spec(m) or m == extra}
        assert undeclared(others, nothing, extra) == set()
        # what the base install has is asked for without an extra
        assert undeclared(others, project) == others
    imported = {n for m in MODULES for n in third_party(ast.parse(file_of(m).read_text()))}
    told = {m for modules in devices.EXTRAS.values() for m in modules}
    assert undeclared(imported, project) <= told
    (ours,) = [need for need in extras['dev'] if need.startswith('balanceddpo')]
    assert Requirement(ours).extras == set(extras) - {'dev', 'hpsv2'}


@named(REPRO or [ROOT / 'nbs/repro'])
def test_every_import_of_a_repro_notebook_is_declared(path, project):
    if path.is_dir():
        pytest.fail('nbs/repro holds no notebook')
    code = '\n'.join(re.sub(r'^\s*[%!].*$', '', source(c), flags=re.M) for c in code_cells(path))
    assert undeclared(third_party(ast.parse(code)), project, 'repro') == set()


def test_every_import_of_the_tests_is_declared(project):
    mine = {path.stem for path in (ROOT / 'tests').rglob('*.py')} | {'benchmarks'}
    for path in (ROOT / 'tests').rglob('*.py'):
        names = third_party(ast.parse(path.read_text())) - mine
        assert undeclared(names, project, 'dev', 'docs', *EXTRAS) == set(), path.name


# the face


def test_readme_is_short_and_begins_with_something_to_type():
    text = (ROOT / 'README.md').read_text()
    assert len(text.split()) <= 900
    assert len(re.findall(r'\d+(?:[.,]\d+)?', text)) <= 40
    assert len(text.partition('```')[0].split()) <= 150


def test_settings_ini_and_methods_are_what_they_are_made_of():
    done = subprocess.run(
        [sys.executable, 'docs/make.py', '--check'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_room_with_a_door_gives_all_that_is_public_in_its_modules():
    rooms = {path.parent.name for path in (ROOT / 'balanceddpo').glob('*/__init__.py')}
    written = {room for room in rooms if (ROOT / f'balanceddpo/{room}/__init__.py').read_text()}
    assert written == DOORS
    for room in DOORS:
        door = importlib.import_module(f'balanceddpo.{room}')
        inside = [m for m in MODULES if m.startswith(f'{room}.')]
        public = [importlib.import_module(f'balanceddpo.{m}').__all__ for m in inside]
        assert sorted(door.__all__) == sorted(sum(public, []))


def test_every_name_at_the_door_is_there():
    for name in balanceddpo.__all__:
        assert getattr(balanceddpo, name).__name__ == name
    assert set(balanceddpo.__all__) <= set(dir(balanceddpo))
    with pytest.raises(AttributeError, match='No balanceddpo attribute tower'):
        balanceddpo.tower  # noqa: B018
