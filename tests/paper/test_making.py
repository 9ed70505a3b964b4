"What notebooks want is known before they run, made once, and found by them."

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from balanceddpo.core.jobs import Job
from balanceddpo.paper.making import look_ahead, make_ahead, rehearse, rehearse_all, tell_progress
from balanceddpo.paper.repro_notebooks import notebooks
from balanceddpo.paper.reproduction import reproduce
from balanceddpo.paper.study_jobs import Request

SMOKE = {'scale': 'smoke'}


def trainings(asked):
    return sorted(
        job.title for job in asked.values() if job.after is None and 'training' in job.title
    )


def test_table_3_wants_each_model_and_its_images_and_notebooks_share_what_they_want():
    "Table I wants two models of Table III and images of two more prompt sets."
    table1, table3 = (rehearse(notebooks()[name], SMOKE) for name in ('table1', 'table3'))
    assert len(trainings(table3)) == 12
    assert {*trainings(table1)} <= {*trainings(table3)}
    shared = table1.keys() & table3.keys()
    both = rehearse_all([(notebooks()[n], SMOKE) for n in ('table1', 'table3')])
    assert len(both) == len(table1) + len(table3) - len(shared)
    # two trainings, and the images of three models for one set
    assert len(shared) == 2 + 3


def test_a_study_of_several_seeds_wants_all_of_them_at_once():
    asked = rehearse(notebooks()['seeds'], SMOKE)
    seeds = [title.rsplit(' ', 1)[1] for title in trainings(asked)]
    assert sorted(seeds) == ['0', '0', '0', '1', '1', '1']
    # images of each model of each seed, and of base
    assert len(asked) == 6 + 6 + 1


def test_a_rehearsal_writes_nothing_and_passes_over_cells_that_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = new_notebook(
        cells=[
            new_code_cell("scale = 'icons'\nout = 'figures'", metadata={'tags': ['parameters']}),
            new_code_cell(
                'from pathlib import Path\nfrom balanceddpo.paper import experiments, scales'
            ),
            new_code_cell("(Path(out) / 'x').write_text(scale)\nprint('aloud')\n1 / 0"),
            new_code_cell(
                "world = scales.scale_of(scale)\nmodel = experiments.model_of(world, 'HPS')"
            ),
            new_code_cell('experiments.score_models(world, [model]).groupby(1)'),
        ]
    )
    nbformat.write(book, tmp_path / 'mine.ipynb')
    asked = rehearse(tmp_path / 'mine.ipynb', SMOKE)
    assert trainings(asked) == ['training of HPS, seed 0']
    assert [p.name for p in tmp_path.iterdir()] == ['mine.ipynb']


def test_what_is_left_is_reckoned_from_what_is_made():
    jobs = {
        'a': Job('training of a', print, {}, cost=30),
        'b': Job('training of b', print, {}, cost=60),
    }
    assert tell_progress(jobs, ['a'], ['b'], seconds=300) == (
        '1 of 2 models and sets of images made; now training of b; some 10 min left'
    )
    assert tell_progress(jobs, ['a', 'b'], [], 900) == '2 of 2 models and sets of images made'


def test_a_notebook_finds_made_what_it_wanted_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    said = []
    jobs, gpus = look_ahead([(notebooks()['table1'], SMOKE)])
    make_ahead(jobs, 2, gpus, said.append)
    assert said[-1] == f'{len(jobs)} of {len(jobs)} models and sets of images made'

    def made():
        places = ('train', 'sample', 'encode', 'pair_scores')
        return {p for name in places for p in (tmp_path / 'runs' / name).glob('*/manifest.json')}

    before = made()
    assert len(before) >= 2 + 9  # models, and their images for three sets
    times = {p: p.stat().st_mtime_ns for p in before}
    reproduce(Request('table1', 'smoke', tmp_path / 'figures'), progress=False)
    assert {p: p.stat().st_mtime_ns for p in made()} == times
    assert (tmp_path / 'figures' / 'table1' / 'table1.csv').is_file()


@pytest.mark.parametrize('name', ['figure01', 'paper_audit'])
def test_a_notebook_without_models_wants_none(name):
    assert rehearse(notebooks()[name], SMOKE) == {}
