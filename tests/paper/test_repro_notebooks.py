"""Every reproduction notebook runs at its smallest scale, writes what it says, and is rendered
again from what it kept; every table and figure of the paper has one."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from balanceddpo.core.files import file_digest, read_json
from balanceddpo.paper.repro_notebooks import (
    FIGURES,
    notebook_parameters,
    notebooks,
    read_notebook,
    run_cells,
    title_of,
)
from balanceddpo.paper.reproduction import reproduce
from balanceddpo.paper.study_jobs import Request, plan_jobs, results

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
    'claims',
    'benchmarks',
}
TABLE, NUMBERS, FIGURE = ('csv', 'md', 'tex'), ('csv',), ('png',)
LEAVES_A_PAGE = {'table1'}  # with all images, to look at and to vote on
WRITES = {  # beside finding.txt and provenance.json
    'table1': {
        'gains': TABLE,
        'table1': TABLE + FIGURE,
        'protocols': TABLE,
        'samples': FIGURE,
        'checks': NUMBERS,
    },
    'table2': {
        'gains': TABLE,
        'table2': TABLE + FIGURE,
        'samples': FIGURE,
        'checks': NUMBERS,
    },
    'table3': {
        'gains': TABLE,
        'table3': TABLE,
        'labels': TABLE,
        'paper': TABLE,
        'means': TABLE,
        'map': FIGURE,
        'map_paper': FIGURE,
        'checks': NUMBERS,
    },
    'table4': {
        'gains': TABLE,
        'table4': TABLE + FIGURE,
        'paper': TABLE,
        'effects': TABLE,
        'checks': NUMBERS,
    },
    'table5': {
        'table5': TABLE + FIGURE,
        'differences': TABLE,
    },
    'table6': {
        'table6': TABLE + FIGURE,
    },
    'figure01': {
        'figure01': TABLE + FIGURE,
    },
    'figure02': {
        'figure02': TABLE + FIGURE,
    },
    **{name: {name: NUMBERS + FIGURE} for name in FIGURES},
    'figure07': {
        'figure07': TABLE + FIGURE,
        'differences': NUMBERS,
        'filter': TABLE,
    },
    'figure11': {
        'figure11': TABLE + FIGURE,
        'seeds': TABLE,
        'spread': FIGURE,
    },
    'icon_world': {
        'icon_world': ('md',),
        'numbers': ('json',),
        'samples': FIGURE,
        'autoencoder': FIGURE,
    },
    'tuning': {
        'tuning': TABLE + FIGURE,
    },
    'refresh': {
        'gains': TABLE,
        'refresh': TABLE,
        'loss': NUMBERS + FIGURE,
        'distance': NUMBERS + FIGURE,
    },
    'conflict': {
        'conflict': TABLE + FIGURE,
        'cosines': NUMBERS,
        'other': FIGURE,
        'start': FIGURE,
        'end': FIGURE,
        'norms': FIGURE,
    },
    'noise': {
        'gains': TABLE,
        'noise': TABLE,
        'votes': FIGURE,
        'flipped': FIGURE,
        'gain': FIGURE,
        'replaced': FIGURE,
        'labels': NUMBERS,
    },
    'paper_audit': {
        'paper_audit': TABLE + FIGURE,
        'differences': TABLE + FIGURE,
        'statements': TABLE,
        'learning_rate': TABLE,
        'scores': TABLE,
        'rates': NUMBERS,
        'details': NUMBERS,
    },
    'seeds': {
        'gains': TABLE,
        'seeds': TABLE,
        'sd': TABLE,
        'differences': NUMBERS + FIGURE,
        'ranking': NUMBERS + FIGURE,
    },
    'rivals': {
        'rivals': TABLE,
        'compute': TABLE,
        'gains': NUMBERS,
        'summary': NUMBERS,
        'pareto': FIGURE,
        'samples': FIGURE,
        'differences': NUMBERS + FIGURE,
        'scorers': TABLE,
        'left_out': NUMBERS,
    },
    'rivals_tuning': {
        'rivals_tuning': TABLE + FIGURE,
    },
    'benchmarks': {
        'benchmarks': TABLE + FIGURE,
        'samples': FIGURE,
        'differences': TABLE,
        'parts': TABLE,
        'published': TABLE,
    },
    'votes': {
        'votes': TABLE + FIGURE,
        'rules': TABLE,
    },
    'claims': {
        'claims': TABLE + FIGURE,
        'differences': NUMBERS,
        'over_base': NUMBERS,
        'arms': TABLE,
        'ceiling': NUMBERS + FIGURE,
    },
    'agreement': {
        'agreement': TABLE,
        'kappa': FIGURE,
        'rate': FIGURE,
        'splits': NUMBERS + FIGURE,
        'ties': NUMBERS + FIGURE,
        'rules': TABLE,
        'results': TABLE + FIGURE,
        'against': NUMBERS,
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


def refuse(*args, **kwargs):
    raise AssertionError('a rendering uses no model')


def rendered(name, scale, kept_in, place, monkeypatch):
    """Render a notebook from what it kept under `kept_in`, in `place`, where it can make nothing:
    its job. It is run in this process, where it costs no kernel."""
    shutil.copytree(kept_in / name / 'kept', place / 'figures' / name / 'kept')
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(place / 'runs'))
    (job,) = plan_jobs(Request(name, scale, place / 'figures', from_scores=True))
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, '__call__', refuse)
        run_cells(job.path, job.parameters)
    pyplot.close('all')
    assert not (place / 'runs').exists(), 'a rendering has made something'
    return job


def without_time(note):
    return {k: v for k, v in note.items() if k not in ('seconds', 'finished')}


@pytest.mark.parametrize('name', sorted(WRITES))
def test_it_runs_at_smoke_and_is_rendered_again_from_what_it_kept(
    name, shared, tmp_path, monkeypatch
):
    (ran,) = reproduce(Request(name, 'smoke', shared / 'figures'), progress=False)
    files = {f'{stem}.{kind}' for stem, kinds in WRITES[name].items() for kind in kinds}
    there = {p.name for p in ran.folder.iterdir() if p.is_file() and p.stat().st_size}
    page = {'index.html'} if name in LEAVES_A_PAGE else set()
    assert there == files | page | {'finding.txt', 'provenance.json'}
    again = rendered(name, 'smoke', ran.out, tmp_path, monkeypatch)
    first, second = (
        {p.relative_to(job.folder).as_posix(): p for p in results(job)} for job in (ran, again)
    )
    assert first.keys() - page == second.keys()  # the images of a page are not kept
    first = {name: first[name] for name in second}
    note = 'provenance.json'
    assert without_time(read_json(first[note])) == without_time(read_json(second[note]))
    assert [f for f in first if f != note and first[f].read_bytes() != second[f].read_bytes()] == []


@pytest.mark.parametrize('name', sorted(WRITES))
def test_it_keeps_what_its_numbers_are_made_of(name):
    known = notebook_parameters(notebooks()[name])
    assert known['from_scores']['inferred_type_name'] == 'bool'
    assert known['from_scores']['default'] == 'False'


# The committed results: what is kept there is named in the note, and makes the files that lie
# beside it.
KEEPING = [name for name in sorted(WRITES) if (COMMITTED / name / 'kept').is_dir()]


def pixels(path):
    with Image.open(path) as image:
        return image.size, image.convert('RGBA').tobytes()


@pytest.mark.parametrize('name', KEEPING)
def test_the_committed_results_are_those_of_the_committed_scores(name, tmp_path, monkeypatch):
    folder = COMMITTED / name
    noted = {k: v['sha256'] for k, v in read_json(folder / 'provenance.json')['kept'].items()}
    there = sorted((folder / 'kept').iterdir())
    assert {p.relative_to(folder).as_posix(): file_digest(p) for p in there} == noted
    job = rendered(name, 'icons', COMMITTED, tmp_path, monkeypatch)
    told = {p.name: p for p in folder.iterdir() if p.is_file() and p.name != 'provenance.json'}
    made = {p.name: p for p in job.folder.iterdir() if p.is_file() and p.name != 'provenance.json'}
    assert made.keys() == told.keys()
    pictures = {name for name in told if name.endswith('.png')}
    other = [n for n in told.keys() - pictures if made[n].read_bytes() != told[n].read_bytes()]
    other += [n for n in pictures if pixels(made[n]) != pixels(told[n])]
    assert other == []


@pytest.mark.parametrize('name', sorted(WRITES))
def test_the_committed_note_names_the_files_beside_it_with_their_hashes(name):
    folder = COMMITTED / name
    there = [p for p in folder.iterdir() if p.is_file() and p.name != 'provenance.json']
    noted = read_json(folder / 'provenance.json')['outputs']
    assert noted == {p.name: file_digest(p) for p in there}


@pytest.mark.parametrize('name', sorted(WRITES))
def test_it_says_what_it_reproduces_and_what_it_costs(name):
    cells = read_notebook(notebooks()[name]).cells
    text = '\n'.join(c.source for c in cells if c.cell_type == 'markdown')
    number = re.fullmatch(r'(table|figure)0?(\d+)', name)
    roman = dict(zip('123456', ('I', 'II', 'III', 'IV', 'V', 'VI')))
    if number:
        assert title_of(name, notebooks()[name]).startswith(
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
