"""Every reproduction notebook runs at its smallest scale, writes what it says, and is rendered
again from what it kept; every table and figure of the paper has one."""

import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from balanceddpo.core.files import file_digest, read_json
from balanceddpo.paper.reproduction import (
    Request,
    bears_name,
    notebook_parameters,
    notebooks,
    read_notebook,
    reproduce,
    results,
    title_of,
)

COMMITTED = Path(__file__).resolve().parents[2] / 'paper_figures' / 'icons'

PAPER = {*(f'table{k}' for k in range(1, 7)), *(f'figure{k:02d}' for k in range(1, 12))}
BEYOND = {
    'icon_world',
    'tuning',
    'seeds',
    'refresh',
    'agreement',
    'conflict',
    'noise',
    'paper_audit',
    'rivals',
    'rivals_tuning',
    'votes',
    'benchmarks',
}
TABLE, FIGURE = ('csv', 'md', 'tex'), ('pdf', 'png')
WRITES = {  # beside <name>.json and <name>_finding.txt
    'table1': {
        'table1_gains': TABLE,
        'table1': TABLE + FIGURE,
        'table1_protocols': TABLE,
        'table1_samples': FIGURE,
        'table1_checks': ('csv',),
    },
    'table2': {
        'table2_gains': TABLE,
        'table2': TABLE + FIGURE,
        'table2_samples': FIGURE,
        'table2_checks': ('csv',),
    },
    'table3': {
        'table3_gains': TABLE,
        'table3': TABLE,
        'table3_labels': TABLE,
        'table3_paper': TABLE,
        'table3_means': TABLE,
        'table3_map': FIGURE,
        'table3_map_paper': FIGURE,
        'table3_checks': ('csv',),
    },
    'table4': {
        'table4_gains': TABLE,
        'table4': TABLE + FIGURE,
        'table4_paper': TABLE,
        'table4_effects': TABLE,
        'table4_checks': ('csv',),
    },
    'table5': {'table5': TABLE + FIGURE, 'table5_differences': TABLE},
    'table6': {'table6': TABLE + FIGURE},
    'figure01': {'figure01': TABLE + FIGURE},
    'figure02': {'figure02': TABLE + FIGURE},
    **{f'figure{k:02d}': {f'figure{k:02d}': ('csv',) + FIGURE} for k in (3, 4, 5, 6, 8, 9, 10)},
    'figure07': {
        'figure07': TABLE + FIGURE,
        'figure07_differences': ('csv',),
        'figure07_filter': TABLE,
    },
    'figure11': {'figure11': TABLE + FIGURE, 'figure11_seeds': TABLE, 'figure11_spread': FIGURE},
    'icon_world': {
        'icon_world': ('md',),
        'icon_world_numbers': ('json',),
        'icon_world_samples': FIGURE,
        'icon_world_autoencoder': FIGURE,
    },
    'tuning': {'tuning': TABLE + FIGURE},
    'refresh': {
        'refresh_gains': TABLE,
        'refresh': TABLE,
        'refresh_loss': ('csv',) + FIGURE,
        'refresh_distance': ('csv',) + FIGURE,
    },
    'conflict': {
        'conflict': TABLE + FIGURE,
        'conflict_cosines': ('csv',),
        **{f'conflict_{k}': FIGURE for k in ('other', 'start', 'end', 'norms')},
    },
    'noise': {
        'noise_gains': TABLE,
        'noise': TABLE,
        **{f'noise_{k}': FIGURE for k in ('votes', 'flipped', 'gain', 'replaced')},
        'noise_labels': ('csv',),
    },
    'paper_audit': {
        'paper_audit': TABLE + FIGURE,
        'paper_audit_differences': TABLE + FIGURE,
        **{f'paper_audit_{k}': TABLE for k in ('statements', 'learning_rate', 'scores')},
        'paper_audit_rates': ('csv',),
        'paper_audit_details': ('csv',),
    },
    'seeds': {
        'seeds_gains': TABLE,
        'seeds': TABLE,
        'seeds_sd': TABLE,
        'seeds_differences': ('csv',) + FIGURE,
        'seeds_ranking': ('csv',) + FIGURE,
    },
    'rivals': {
        'rivals': TABLE,
        'rivals_compute': TABLE,
        'rivals_gains': ('csv',),
        'rivals_summary': ('csv',),
        'rivals_pareto': FIGURE,
        'rivals_samples': FIGURE,
        'rivals_differences': ('csv',) + FIGURE,
        'rivals_scorers': TABLE,
        'rivals_left_out': ('csv',),
    },
    'rivals_tuning': {'rivals_tuning': TABLE + FIGURE},
    'benchmarks': {
        'benchmarks': TABLE + FIGURE,
        'benchmarks_samples': FIGURE,
        **{f'benchmarks_{k}': TABLE for k in ('differences', 'parts', 'published')},
    },
    'votes': {'votes': TABLE + FIGURE, 'votes_rules': TABLE},
    'agreement': {
        'agreement': TABLE,
        'agreement_kappa': FIGURE,
        'agreement_rate': FIGURE,
        'agreement_splits': ('csv', 'png'),
        'agreement_ties': ('csv', 'png'),
        'agreement_rules': TABLE,
        'agreement_results': TABLE + FIGURE,
        'agreement_against': ('csv',),
    },
}


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    """One folder of runs for all notebooks and all workers: what one has trained, drawn or scored,
    another finds."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'shared'
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(autouse=True)
def runs_are_shared(shared, monkeypatch, runs_in_a_temporary_folder):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(shared / 'runs'))


def test_every_table_and_figure_of_the_paper_has_a_notebook_and_every_notebook_is_listed_here():
    assert set(notebooks()) == PAPER | BEYOND == set(WRITES)


# Python reads it when it starts.
NO_NETWORKS = """
import sys
from importlib.machinery import PathFinder


def refuse(*args, **kwargs):
    raise AssertionError('a rendering uses no model')


class Finder:
    "Lets torch be imported, and no network of it be used."

    def find_spec(self, name, path=None, target=None):
        if name != 'torch.nn.modules.module':
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.Module.__call__ = refuse

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def without_networks(place, monkeypatch):
    "Let nothing that starts from here use a network of torch: so no model and no scorer."
    place.mkdir(parents=True)
    (place / 'sitecustomize.py').write_text(NO_NETWORKS)
    monkeypatch.setenv('PYTHONPATH', str(place))


def rendered(name, scale, kept_in, place, monkeypatch):
    """Render a notebook from what it kept under `kept_in`, in `place`, where it can make nothing:
    its job."""
    copied = [p for p in (kept_in / 'kept').glob(f'{name}_*') if bears_name(p, name, notebooks())]
    (place / 'figures' / 'kept').mkdir(parents=True)
    for path in copied:
        shutil.copy(path, place / 'figures' / 'kept')
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(place / 'runs'))
    without_networks(place / 'nothing', monkeypatch)
    request = Request(name, scale, place / 'figures', from_scores=True)
    (job,) = reproduce(request, progress=False)
    assert [p.name for p in (place / 'runs').iterdir()] == ['reproduce'], (
        'a rendering has made something'
    )
    return job


def without_time(note):
    return {k: v for k, v in note.items() if k not in ('seconds', 'finished')}


@pytest.mark.parametrize('name', sorted(WRITES))
def test_it_runs_at_smoke_and_is_rendered_again_from_what_it_kept(
    name, shared, tmp_path, monkeypatch
):
    (ran,) = reproduce(Request(name, 'smoke', shared / 'figures'), progress=False)
    files = [f'{stem}.{kind}' for stem, kinds in WRITES[name].items() for kind in kinds] + [
        f'{name}.json',
        f'{name}_finding.txt',
    ]
    missing = [f for f in files if not (ran.out / f).is_file() or not (ran.out / f).stat().st_size]
    assert not missing, sorted(p.name for p in ran.out.glob(f'{name}*'))
    again = rendered(name, 'smoke', ran.out, tmp_path, monkeypatch)
    first, second = (
        {p.relative_to(job.out).as_posix(): p for p in results(job)} for job in (ran, again)
    )
    assert first.keys() == second.keys()
    note = f'{name}.json'
    assert without_time(read_json(first[note])) == without_time(read_json(second[note]))
    assert [f for f in first if f != note and first[f].read_bytes() != second[f].read_bytes()] == []


@pytest.mark.parametrize('name', sorted(WRITES))
def test_it_keeps_what_its_numbers_are_made_of(name):
    known = notebook_parameters(notebooks()[name])
    assert known['from_scores']['inferred_type_name'] == 'bool'
    assert known['from_scores']['default'] == 'False'


# The committed results: what is kept there is named in the note, and makes the files that lie
# beside it.
KEEPING = [
    name
    for name in sorted(WRITES)
    if any(bears_name(p, name, WRITES) for p in (COMMITTED / 'kept').glob(f'{name}_*'))
]


def pixels(path):
    with Image.open(path) as image:
        return image.size, image.convert('RGBA').tobytes()


@pytest.mark.parametrize('name', KEEPING)
def test_the_committed_results_are_those_of_the_committed_scores(name, tmp_path, monkeypatch):
    noted = {k: v['sha256'] for k, v in read_json(COMMITTED / f'{name}.json')['kept'].items()}
    there = [p for p in (COMMITTED / 'kept').glob(f'{name}_*') if bears_name(p, name, WRITES)]
    assert {p.relative_to(COMMITTED).as_posix(): file_digest(p) for p in there} == noted
    job = rendered(name, 'icons', COMMITTED, tmp_path, monkeypatch)
    told = [p for p in COMMITTED.glob(f'{name}*') if bears_name(p, name, WRITES)]
    texts = [p for p in told if p.suffix in ('.csv', '.md', '.tex', '.txt')]
    pictures = [p for p in told if p.suffix == '.png']
    other = [p.name for p in texts if (job.out / p.name).read_bytes() != p.read_bytes()]
    other += [p.name for p in pictures if pixels(job.out / p.name) != pixels(p)]
    assert texts
    assert not other


@pytest.mark.parametrize('name', sorted(WRITES))
def test_it_says_what_it_reproduces_and_what_it_costs(name):
    cells = read_notebook(notebooks()[name]).cells
    text = '\n'.join(c.source for c in cells if c.cell_type == 'markdown')
    number = re.fullmatch(r'(table|figure)0?(\d+)', name)
    roman = dict(zip('123456', ('I', 'II', 'III', 'IV', 'V', 'VI')))
    if number:
        assert title_of(notebooks()[name]).startswith(
            f'Table {roman[number[2]]}:' if number[1] == 'table' else f'Figure {number[2]}:'
        )
    # which is the same at every scale
    assert 'icon world' in text.lower()
    assert 'smoke' in text or name == 'paper_audit'


def test_what_was_run_is_in_the_list_of_results(tmp_path):
    reproduce(Request('paper_audit', 'smoke', tmp_path / 'figures'), progress=False)
    listed = re.findall(
        r'<br>`balanceddpo reproduce (\w+) --scale smoke`',
        (tmp_path / 'figures' / 'README.md').read_text(),
    )
    assert listed == ['paper_audit']
