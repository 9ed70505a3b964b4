"""Running notebooks: bad parameters refused before anything runs, this Python's kernel, what is
done is skipped, what failed says so in one line."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lazy_loader
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from balanceddpo.cli import main
from balanceddpo.core import files
from balanceddpo.core.errors import InputError
from balanceddpo.paper import repro_notebooks, reproduction, results_page, study_jobs
from balanceddpo.paper.repro_notebooks import FIGURES, notebook_parameters, notebooks
from balanceddpo.paper.reproduction import NotebookError, reproduce
from balanceddpo.paper.results_page import between_markers
from balanceddpo.paper.study_jobs import Request, is_done, plan_jobs

ROOT = Path(__file__).resolve().parents[2]
PAPER = [*(f'table{k}' for k in range(1, 7)), *(f'figure{k:02d}' for k in range(1, 12))]
SETTINGS = (
    "scale: str = 'icons'  # size\nout: str = 'x'  # results\nn: int = 100  # prompts a set\nrate ="
    " 0.5\nlabel: str = 'a'  # a word\nrates: list[float] = [1.]  # some"
)
WRITE = (
    'import sys\nfrom pathlib import Path\n'
    "(Path(out)/name/f'{name}.csv').write_text(f'{scale} {n} {label} {sys.executable}')"
)


def write(place, name, *cells, tag='parameters', settings=SETTINGS):
    place.mkdir(parents=True, exist_ok=True)
    book = new_notebook(
        metadata={
            'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}
        },
        cells=[
            new_markdown_cell('# Example'),
            new_code_cell(settings, metadata={'tags': [tag]}),
            *(new_code_cell(f'name = {name!r}\n{c}') for c in cells),
        ],
    )
    nbformat.write(book, place / f'{name}.ipynb')
    return place / f'{name}.ipynb'


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with one working notebook, in the place of the package's own."
    write(tmp_path / 'nbs', 'table1', WRITE)
    monkeypatch.setattr(repro_notebooks, 'notebooks_folder', lambda: tmp_path / 'nbs')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'nbs'


def plan(name='table1', scale='smoke', **asked):
    return plan_jobs(Request(name, scale, **asked))


def go(name='table1', scale='smoke', force=False, workers=1, **asked):
    request = Request(name, scale, **asked)
    execution = reproduction.Execution(workers)
    return reproduce(request, force=force, progress=False, execution=execution)


def times(job):
    return job.executed.stat().st_mtime_ns


def test_a_notebook_runs_in_this_python_whatever_kernels_are_installed(
    place, tmp_path, monkeypatch
):
    for variable in ('JUPYTER_PATH', 'JUPYTER_DATA_DIR'):  # a kernel 'python3' of somebody else
        spec = tmp_path / variable / 'kernels' / 'python3'
        spec.mkdir(parents=True)
        (spec / 'kernel.json').write_text(
            json.dumps({'argv': ['false'], 'display_name': 'other', 'language': 'python'})
        )
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (job,) = go(parameters=['n=3', 'label=7', 'rates=[1e-6, 2]'])
    wrote = tmp_path / 'paper_figures/smoke/table1/table1.csv'
    assert wrote.read_text() == f'smoke 3 7 {sys.executable}'
    assert job.executed == Path(os.environ['BALANCEDDPO_RUNS']) / 'reproduce/smoke/table1.ipynb'
    assert is_done(job)
    injected = [
        c.source
        for c in nbformat.read(job.executed, 4).cells
        if 'injected-parameters' in c.metadata.get('tags', [])
    ]
    assert len(injected) == 1
    assert 'n = 3' in injected[0]
    assert os.environ['JUPYTER_PATH'] == str(tmp_path / 'JUPYTER_PATH')  # as it was


def test_what_is_done_is_skipped_until_something_changes(place, tmp_path):
    (job,) = go()
    first = times(job)
    assert is_done(job)
    assert times(*go()) == first
    book = nbformat.read(job.path, 4)  # kept outputs are no change
    book.cells[2].outputs = [nbformat.v4.new_output('stream', text='seen')]
    nbformat.write(book, job.path)
    assert is_done(job)
    book.cells[0].source = '# Another title'
    nbformat.write(book, job.path)
    assert not is_done(job)
    nbformat.write(nbformat.read(job.executed, 4), tmp_path / 'copy.ipynb')
    write(place, 'table1', WRITE)
    assert is_done(job)
    for change in (
        lambda: (job.folder / 'table1.csv').write_text('x'),
        lambda: (job.folder / 'table1.csv').unlink(),
        lambda: job.executed.write_text('x'),
        lambda: job.note.write_text('{'),
        lambda: job.note.write_text('[1]'),
        lambda: job.note.unlink(),
    ):
        kept = {p: p.read_bytes() for p in (job.folder / 'table1.csv', job.executed, job.note)}
        change()
        assert not is_done(job)
        for p, data in kept.items():
            p.write_bytes(data)
        assert is_done(job)
    assert not is_done(plan(parameters={'n': 5})[0])
    assert not is_done(plan(out='elsewhere')[0])
    assert times(*go(force=True)) != first


def test_what_was_changed_while_it_ran_is_not_taken_for_what_ran(place, monkeypatch):
    import papermill

    real = papermill.execute_notebook

    def changing(path, *args, **kwargs):
        real(path, *args, **kwargs)
        book = nbformat.read(path, 4)
        book.cells[0].source += ' changed'
        nbformat.write(book, path)

    (job,) = plan()
    with monkeypatch.context() as patch:
        patch.setattr(papermill, 'execute_notebook', changing)
        go()
    assert job.note.exists()
    assert not is_done(job)


def test_another_package_makes_it_not_done(place, monkeypatch):
    (job,) = go()
    assert is_done(job)
    monkeypatch.setattr(study_jobs, 'package_key', lambda: 'another')
    assert not is_done(job)


def test_the_package_key_follows_sources_and_assets(tmp_path, monkeypatch):
    (tmp_path / 'assets').mkdir()
    (tmp_path / 'a.py').write_text('1')
    (tmp_path / 'assets' / 'w').write_text('1')
    monkeypatch.setattr(files, 'package_folder', lambda: tmp_path)
    key = study_jobs.package_key.__wrapped__
    before = key()
    (tmp_path / '__pycache__').mkdir()
    (tmp_path / '__pycache__' / 'a.pyc').write_text('x')
    assert key() == before
    for file in ('a.py', 'assets/w'):
        (tmp_path / file).write_text(f'new {file}')
        assert key() != before
        before = key()


@pytest.mark.parametrize(
    'options, says',
    [
        (dict(parameters=['m=3']), "table1: unknown parameter 'm'"),
        (dict(parameters={'m': 3}), "table1: unknown parameter 'm'"),
        (dict(parameters=['n=three']), 'n must be int'),
        (dict(parameters={'n': '3'}), 'n must be int'),
        (dict(parameters=['rates=3']), 'rates must be list[float]'),
        (dict(parameters=['n']), 'NAME=VALUE'),
        (dict(scale='large'), "unknown scale 'large'"),
        (dict(name='table9'), "no notebook 'table9'"),
        (dict(name='../table1'), 'no notebook'),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(place, options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        go(**options)
    assert not Path(os.environ['BALANCEDDPO_RUNS']).exists()


@pytest.mark.parametrize(
    'broken, says',
    [
        (
            lambda p: write(p, 'table2', WRITE, tag='parameter'),
            "has 0 code cells with the tag 'parameters'",
        ),
        (
            lambda p: write(p, 'table2', WRITE, settings="scale: str = 'icons'\nn: int = 3"),
            "table2: unknown parameter 'out'",
        ),
        (lambda p: (p / 'table2.ipynb').write_text('no json'), 'is not a notebook'),
        (lambda p: (p / 'table2.ipynb').write_text('{"cells": 3}'), 'is not a notebook'),
    ],
)
def test_one_bad_notebook_stops_all_before_the_first(place, broken, says):
    broken(place)
    with pytest.raises(InputError, match=re.escape(says)):
        go('all')
    assert not Path(os.environ['BALANCEDDPO_RUNS']).exists()


def test_two_parameters_cells_are_refused(place):
    path = write(place, 'table1', WRITE)
    book = nbformat.read(path, 4)
    book.cells[2].metadata.tags = ['parameters']
    nbformat.write(book, path)
    with pytest.raises(InputError, match='has 2 code cells'):
        go()


def test_an_interrupted_run_of_all_goes_on_where_it_was(place, tmp_path, capfd):
    write(
        place,
        'table2',
        f"assert (Path := __import__('pathlib').Path)({str(tmp_path / 'ready')!r}).exists(),"
        f" 'not\\nready'\n{WRITE}",
    )
    write(place, 'table10', WRITE)
    assert main(['reproduce', 'all', '--scale', 'smoke']) == 1
    lines = capfd.readouterr().err.splitlines()
    error = [line for line in lines if line.startswith('balanceddpo:')]
    assert len(error) == 1
    assert 'table2: cell [3]' in error[0]
    assert 'AssertionError: not ready' in error[0]
    assert str(tmp_path / 'runs/reproduce/smoke/table2.ipynb') in error[0]
    assert nbformat.read(tmp_path / 'runs/reproduce/smoke/table2.ipynb', 4).cells
    assert not (tmp_path / 'paper_figures/smoke/table10/table10.csv').exists()
    first = times(plan()[0])
    (tmp_path / 'ready').touch()
    assert main(['reproduce', 'all', '--scale', 'smoke']) == 0
    assert times(plan()[0]) == first
    assert [line.split(';')[0] for line in capfd.readouterr().out.splitlines()] == [
        'table1: was done before',
        'table2: running at scale smoke',
        'table2: done',
        'table10: running at scale smoke',
        'table10: done',
    ]


def test_side_by_side_a_failure_is_told_and_stops_what_has_not_begun(place, tmp_path):
    write(
        place,
        'table2',
        "from balanceddpo.core.errors import InputError\nraise InputError('no weights at /x')",
    )
    for k in range(3, 7):
        write(place, f'table{k}', WRITE)
    with pytest.raises(InputError, match='table2: .*no weights at /x'):
        go('all', workers=2)
    made = {p.stem for p in (tmp_path / 'paper_figures/smoke').glob('*/*.csv')}
    assert 'table1' in made
    assert 'table6' not in made
    write(place, 'table2', WRITE)
    go('all', workers=2)
    assert {p.stem for p in (tmp_path / 'paper_figures/smoke').glob('*/*.csv')} == {
        f'table{k}' for k in range(1, 7)
    }


SEEN = """
import os
from pathlib import Path
(Path(out)/name/f'{name}.csv').write_text(os.environ['CUDA_VISIBLE_DEVICES'])
"""


def test_each_of_several_at_a_time_sees_one_gpu(place, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5')
    for name in ('table1', 'table2'):
        write(place, name, SEEN)
    go('all', workers=2)
    seen = [p.read_text() for p in (tmp_path / 'paper_figures/smoke').glob('*/*.csv')]
    assert sorted(seen) == ['4', '5']
    go('all', force=True)
    assert {p.read_text() for p in (tmp_path / 'paper_figures/smoke').glob('*/*.csv')} == {'4,5'}


FAILS = """
from balanceddpo.paper import experiments, scales
world = scales.scale_of(scale)
experiments.score_models(world, [experiments.base_model(world)], [('x', 'nowhere.txt')])
"""


def test_what_cannot_be_made_ahead_is_told_by_the_notebook_that_wants_it(place):
    write(place, 'table2', FAILS)
    with pytest.raises(InputError, match='table2: cell .*nowhere.txt'):
        go('all', workers=2)


def test_an_input_error_in_a_notebook_is_bad_input(place, capfd):
    write(
        place,
        'table1',
        "from balanceddpo.core.errors import InputError\nraise InputError('no weights at /x')",
    )
    assert main(['reproduce', 'table1', '--scale', 'smoke']) == 2
    assert 'InputError: no weights at /x' in capfd.readouterr().err


def test_a_kernel_that_dies_is_told(place):
    write(place, 'table1', 'import os; os._exit(1)')
    with pytest.raises(NotebookError, match='table1: .*died'):
        go()


def test_one_notebook_runs_once_at_a_time(place):
    with (
        reproduction.locked(Path(os.environ['BALANCEDDPO_RUNS']) / 'reproduce/smoke/.locks/table1'),
        pytest.raises(InputError, match='in use by process'),
    ):
        go()


def test_the_results_are_the_files_in_the_folder_of_the_notebook(place):
    (job,) = plan()
    assert job.folder == job.out / 'table1'
    for name in ('table1/table1.csv', 'table1/more/a.png', 'table10/table10.csv', 'README.md'):
        (job.out / name).parent.mkdir(parents=True, exist_ok=True)
        (job.out / name).touch()
    names = [p.relative_to(job.folder).as_posix() for p in study_jobs.results(job)]
    assert names == ['more/a.png', 'table1.csv']


def test_the_picture_in_the_list_is_that_of_the_notebooks_name_or_else_the_first(place, tmp_path):
    def row():
        return results_page.write_index(tmp_path, 'smoke', place).read_text()

    folder = tmp_path / 'table1'
    folder.mkdir()
    (folder / 'provenance.json').write_text('{}')
    assert '.png' not in row()
    assert '[**Example**](table1)' in row()
    (folder / 'map.png').touch()
    assert '<a href="table1"><img src="table1/map.png"' in row()
    (folder / 'table1.png').touch()
    assert 'src="table1/table1.png"' in row()


def test_a_job_without_pdf_is_not_done_when_pdf_is_asked(place):
    settings = f'{SETTINGS}\npdf: bool = False  # figures as PDF too'
    write(
        place, 'table3', f"{WRITE}\n(Path(out)/name/'pdf').write_text(str(pdf))", settings=settings
    )
    (job,) = go('table3')
    (asked,) = plan('table3', pdf=True)
    assert asked.parameters['pdf'] is True
    assert not is_done(asked)
    assert main(['reproduce', 'table3', '--scale', 'smoke', '--pdf']) == 0
    assert (job.folder / 'pdf').read_text() == 'True'
    assert is_done(asked)
    assert is_done(job)  # it has what is asked for, and more


def test_pdf_is_for_notebooks_that_have_figures(place):
    settings = f'{SETTINGS}\npdf: bool = False  # figures as PDF too'
    write(place, 'table3', WRITE, settings=settings)
    with pytest.raises(InputError, match="table1: unknown parameter 'pdf'"):
        plan(pdf=True)
    asked = {job.name: job.pdf for job in plan('all', pdf=True)}
    assert asked == {'table1': False, 'table3': True}


# figures of one notebook

SHARED = f"{SETTINGS}\nfigure: str = 'figure04'  # which\nprompt_set: str = 'x'  # from where"


@pytest.fixture
def shared(place):
    "The notebook of the figures 8, 9 and 10, which writes of which it was asked."
    work = "from pathlib import Path\n(Path(out)/figure/'set.txt').write_text(prompt_set)"
    return write(place, 'sample_sheet', work, settings=SHARED)


def test_a_notebook_of_several_figures_is_run_under_the_name_of_each(shared, place, tmp_path):
    assert list(notebooks()) == ['figure08', 'figure09', 'figure10', 'table1']
    assert notebooks()['figure09'] == shared
    with pytest.raises(InputError, match="no notebook 'sample_sheet'"):
        plan('sample_sheet')
    jobs = go('all', 'icons')
    assert [job.name for job in jobs] == ['figure08', 'figure09', 'figure10', 'table1']
    made = {job.name: (job.folder / 'set.txt').read_text() for job in jobs[:3]}
    assert made == {'figure08': 'pickapic', 'figure09': 'partiprompts', 'figure10': 'hpd'}
    assert len({job.executed for job in jobs}) == 4
    assert all(map(is_done, jobs))


def test_a_figure_of_a_notebook_of_several_has_its_own_title_and_scales(shared, place, monkeypatch):
    assert repro_notebooks.title_of('figure09', shared) == 'Figure 9: samples for PartiPrompts'
    assert repro_notebooks.title_of('sample_sheet', shared) == 'Example'
    monkeypatch.setitem(
        FIGURES, 'figure09', replace(FIGURES['figure09'], scales=('smoke', 'icons'))
    )
    with pytest.raises(InputError, match='figure09: it runs at smoke or icons, not'):
        plan('figure09', 'sdxl')
    with pytest.raises(InputError, match='figure09: the figure is the one that is asked for'):
        plan('figure09', parameters=['figure=figure10'])
    (job,) = plan('figure09', parameters=['prompt_set=mine'])
    assert job.parameters['prompt_set'] == 'mine'


def test_in_a_run_of_all_a_parameter_is_for_those_that_have_it(place):
    write(
        place,
        'table2',
        WRITE,
        settings="scale: str = 'icons'  # size\nout: str = 'x'  # results\nm: int = 1  # other",
    )
    for parameters in (['n=3', 'm=4'], {'n': 3, 'm': 4}):
        assert [
            {k: v for k, v in j.parameters.items() if k in 'nm'}
            for j in plan('all', parameters=parameters)
        ] == [{'n': 3}, {'m': 4}]
    with pytest.raises(InputError, match="unknown parameter 'k': no notebook has it"):
        plan('all', parameters=['n=3', 'k=1'])


def test_dry_run_lists_and_runs_nothing(place, capsys):
    assert main(['reproduce', 'all', '--dry-run', '--parameters', 'n=7']) == 0
    said = capsys.readouterr().out
    assert 'table1: to do' in said
    assert 'n = 7  prompts a set' in said
    assert not Path(os.environ['BALANCEDDPO_RUNS']).exists()


# rendering from what was kept

KEEPING = f'{SETTINGS}\nfrom_scores: bool = False  # render from what is kept'


def keeping(name, made='[1, 2]'):
    "The work of a notebook that keeps a value and writes it."
    return (
        'from pathlib import Path\nfrom balanceddpo.paper.kept import Kept\n'
        'own = Path(out)/name\nkept = Kept(name, own, from_scores)\n'
        f"value = kept.values('scores', lambda: {made})\n"
        "(own/f'{name}.csv').write_text(str(value))"
    )


def test_a_rendering_reads_what_the_run_has_kept_and_each_is_done_by_itself(place, tmp_path):
    made = "(Path(out)/'made').open('a').write('once ') and [1, 2]"
    write(place, 'table3', keeping('table3', made), settings=KEEPING)
    (job,) = go('table3')
    (rendering,) = go('table3', from_scores=True)
    wrote, count = job.folder / 'table3.csv', job.out / 'made'
    assert wrote.read_text() == '[1, 2]'
    assert count.read_text() == 'once '
    assert rendering.executed == job.executed.parent / 'from_scores' / 'table3.ipynb'
    assert rendering.inputs != job.inputs
    assert is_done(job)
    assert is_done(rendering)
    assert times(*go('table3', from_scores=True)) == times(rendering)
    for each in (job, rendering):
        names = {p.name for p in study_jobs.results(each)}
        assert names == {'table3.csv', 'scores.json'}
    # what is kept is a result of the run, and what the rendering is made of
    (job.folder / 'kept' / 'scores.json').write_text('{"made": {}, "values": [3]}')
    assert not is_done(job)
    assert not is_done(rendering)
    go('table3', from_scores=True)
    assert wrote.read_text() == '[3]'
    assert not is_done(job)
    go('table3')
    assert wrote.read_text() == '[1, 2]'
    assert count.read_text() == 'once once '


def test_a_rendering_takes_no_value_that_the_run_was_made_with(place):
    write(place, 'table3', keeping('table3'), settings=KEEPING)
    go('table3')
    with pytest.raises(
        InputError,
        match='table3: a rendering shows what was kept, made with its own n: leave it out',
    ):
        go('table3', from_scores=True, parameters=['n=1'])


def test_what_is_missing_is_told_with_the_command_that_makes_it(place, capfd):
    write(place, 'table3', keeping('table3'), settings=KEEPING)
    assert main(['reproduce', 'table3', '--scale', 'smoke', '--from-scores']) == 2
    (error,) = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith('balanceddpo:')
    ]
    assert (
        'paper_figures/smoke/table3/kept/scores.json is not there: '
        'run `balanceddpo reproduce table3` without --from-scores' in error
    )


def test_a_notebook_that_keeps_nothing_is_refused_or_left_out_of_all_and_said(place, capsys):
    assert main(['reproduce', 'table1', '--scale', 'smoke', '--from-scores']) == 2
    assert (
        capsys.readouterr().err == 'balanceddpo: table1: it keeps no scores to render from: '
        'it has no parameter from_scores\n'
    )
    assert main(['reproduce', 'all', '--scale', 'smoke', '--from-scores']) == 2
    assert 'nothing is kept in paper_figures/smoke: run it' in capsys.readouterr().err
    for name in ('table3', 'table4'):
        write(place, name, keeping(name), settings=KEEPING)
    go('table3')
    assert main(['reproduce', 'all', '--scale', 'smoke', '--from-scores']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        'table1: left out, it has no parameter from_scores',
        'table4: left out, nothing is in paper_figures/smoke/table4/kept',
        'table3: rendering from scores at scale smoke',
        'table3: done; 2 files in paper_figures/smoke/table3',
    ]
    assert main(['reproduce', 'all', '--scale', 'smoke', '--from-scores', '--dry-run']) == 0
    said = capsys.readouterr().out
    assert 'table3: done' in said
    assert 'from_scores = True  render from what is kept' in said
    assert 'table4: left out' in said


def test_a_rendering_of_all_means_those_that_are_run_only_by_name_too(place, tmp_path):
    for name in ('table3', 'votes', 'rivals', 'rivals_tuning'):
        write(place, name, keeping(name), settings=KEEPING)
    for name in ('table3', 'rivals_tuning'):
        go(name, scale='icons')
    assert [j.name for j in plan('all', 'icons', from_scores=True)] == [
        'rivals_tuning',
        'table3',
    ]
    assert set(study_jobs.notebooks_left_out(notebooks(), 'icons')) == {
        'table1',
        'votes',
        'rivals',
    }
    jobs = go('all', scale='icons', from_scores=True, workers=2)
    assert all(map(is_done, jobs))
    assert [j.from_scores for j in jobs] == [True, True]


# the package's own notebooks


def test_every_repro_notebook_can_be_planned_at_every_scale():
    # what the package brings along, and what takes hours, is made only when asked by name
    named = ['claims', 'icon_world', 'rivals', 'rivals_tuning', 'votes']
    for scale in ('smoke', 'icons'):
        assert [j.name for j in plan('all', scale)] == [
            n for n in notebooks() if scale == 'smoke' or n not in named
        ]
    paths = dict(model='folder', pairs='pairs.parquet', prompts=['mine=a.txt'])
    large = {
        scale: [j.name for j in plan('all', scale, changes=paths)] for scale in ('sd15', 'sdxl')
    }
    assert {'table1', 'table3', 'figure04', 'seeds', 'paper_audit'} <= {*large['sd15']}
    assert not {
        'table2',
        'tuning',
        'noise',
        'rivals',
    } & {*large['sd15']}
    # the paper's own, and more, on the second base model too
    assert {*large['sd15']} | {'table2', 'figure03'} == {*large['sdxl']}
    assert {*PAPER} <= {*large['sdxl']}
    # GenEval's prompts are not among the three sets
    assert 'benchmarks' not in large['sdxl']
    asked = plan('all', 'sdxl', changes=paths, parameters=['metadata=geneval.jsonl'])
    assert 'benchmarks' in [job.name for job in asked]
    for name, scale, says in (
        ('table1', 'sd15', 'table1: scale .sd15. needs model and pairs and prompts: give'),
        ('figure03', 'sd15', 'runs at smoke or icons or sdxl, not'),
        ('tuning', 'sd15', 'runs at smoke or icons, not'),
        ('all', 'sd15', 'needs model and pairs and prompts'),
    ):
        with pytest.raises(InputError, match=says):
            plan(name, scale)
    assert all([j.name for j in plan(n, 'icons')] == [n] for n in named)
    assert 'table1' in notebooks()
    for path in notebooks().values():
        for p in notebook_parameters(path).values():
            assert p['help'] and p['inferred_type_name'] != 'None', (
                f'{path.stem}: parameter {p["name"]} needs a type and a comment'
            )


def build(hook, tmp_path):
    """What a build hook of the repository makes, unpacked into a folder, its paths those of a copy
    of the repository."""
    copy, out, target = (tmp_path / n for n in ('copy', 'dist', 'target'))
    out.mkdir()
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'NOTICE'):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(
        ROOT / 'balanceddpo',
        copy / 'balanceddpo',
        ignore=shutil.ignore_patterns('__pycache__', 'assets'),
    )
    write(copy / 'nbs/repro', 'table1', WRITE)
    write(copy / 'nbs/repro', 'figure01', WRITE)
    code = f'from setuptools import build_meta; print(build_meta.{hook}({str(out)!r}))'
    subprocess.run([sys.executable, '-c', code], cwd=copy, check=True, capture_output=True)
    subprocess.run(
        [sys.executable, '-m', 'zipfile', '-e', *map(str, out.glob('*.whl')), str(target)],
        check=True,
    )
    return copy, target


@pytest.mark.parametrize('hook', ['build_wheel', 'build_editable'])
def test_the_notebooks_are_found_in_a_wheel_and_in_an_editable_installation(hook, tmp_path):
    copy, target = build(hook, tmp_path)
    # what it needs lies behind it, and no installation there is looked at (-S)
    others = str(Path(lazy_loader.__file__).parents[1])
    code = (
        f'import site, sys; site.addsitedir({str(target)!r}); sys.path.append({others!r});'
        ' from balanceddpo.paper.repro_notebooks import notebooks;'
        ' print(*notebooks().values(), sep="\\n")'
    )
    found = subprocess.run(
        [sys.executable, '-I', '-S', '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    home = target / 'balanceddpo/repro' if hook == 'build_wheel' else copy / 'nbs/repro'
    assert found == [str(home / 'figure01.ipynb'), str(home / 'table1.ipynb')]


@pytest.mark.parametrize(
    'page, name',
    [
        ('results', 'table1/table1'),
        ('results', 'table1/gains'),
        ('results', 'claims/claims'),
        ('icon_world', 'icon_world/icon_world'),
    ],
)
def test_the_table_on_the_page_is_the_one_that_was_written(page, name):
    shown = between_markers((ROOT / f'docs/{page}.md').read_text(), name)
    assert shown == (ROOT / f'paper_figures/icons/{name}.md').read_text().strip()
