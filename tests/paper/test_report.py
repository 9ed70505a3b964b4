"A report writes the files of a study where they belong, and names each of them in its note."

import json

import pandas as pd
import pytest
from matplotlib.figure import Figure

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import file_digest
from balanceddpo.paper.report import Report, named_files

RATES = pd.DataFrame({'HPS': [62.0, 50.0]}, index=['ours', 'base'])


def page():
    figure = Figure(figsize=(2, 1))
    figure.text(0.5, 0.5, 'word')
    return figure


def gains():
    names = {'model_a': ['ours'], 'model_b': ['base'], 'prompt_set': ['hpd']}
    return pd.DataFrame(names | {'gain': [0.25], 'low': [0.125], 'high': [0.375]})


@pytest.fixture
def report(tmp_path):
    return Report('paper_audit', tmp_path, 'smoke')


def names(report):
    return sorted(p.name for p in report.folder.iterdir())


def note(report):
    return json.loads((report.folder / 'provenance.json').read_text())


def test_the_main_table_bears_the_name_of_the_study_and_is_shown(report):
    shown = report.table(RATES, 'Win rates.', digits=0)
    assert names(report) == ['paper_audit.csv', 'paper_audit.md', 'paper_audit.tex']
    assert shown.data == (report.folder / 'paper_audit.md').read_text()
    assert shown.data.startswith('Win rates. Bold: the largest of a column.')
    assert '| ours | **62** |' in shown.data
    assert r'\label{tab:paper-audit}' in (report.folder / 'paper_audit.tex').read_text()


def test_another_table_has_its_own_name_and_a_label_of_both(report):
    report.table(RATES, 'Rates.', name='learning_rate', bold=None, interval=(RATES - 9, RATES + 9))
    assert [p.name for p in report.files] == [f'learning_rate.{k}' for k in ('csv', 'md', 'tex')]
    text = (report.folder / 'learning_rate.tex').read_text()
    assert r'\label{tab:paper-audit-learning-rate}' in text
    assert '62.0 [53, 71]' in text


def test_gains_are_spread_over_rows_and_columns(report):
    shown = report.gains(gains(), 'Gain.', rows=('model_a',), columns=('model_b',))
    assert '| ours | 0.250 [0.12, 0.38] |' in shown.data
    assert names(report) == ['gains.csv', 'gains.md', 'gains.tex']


def test_numbers_are_written_in_a_form_and_returned(report):
    third = pd.DataFrame({'model': ['ours'], 'gain': [1 / 3]})
    assert report.csv(third, name='checks', form='%.4f') is third
    assert (report.folder / 'checks.csv').read_text() == 'model,gain\nours,0.3333\n'
    report.csv(third.set_index('model'), index=True)
    assert (report.folder / 'paper_audit.csv').read_text() == 'model,gain\nours,0.333333\n'


def test_a_table_without_rows_is_returned_and_not_written(report):
    empty = gains()[:0]
    assert report.csv(empty, name='checks') is empty
    assert report.files == []
    assert not report.folder.exists()


def test_a_figure_is_a_png_and_a_pdf_only_where_it_is_asked_for(report, tmp_path):
    image = report.figure(page())
    assert names(report) == ['paper_audit.png']
    assert image.data == (report.folder / 'paper_audit.png').read_bytes()
    asked = Report('paper_audit', tmp_path, 'smoke', pdf=True)
    asked.figure(page(), name='samples')
    assert [p.name for p in asked.files] == ['samples.png', 'samples.pdf']


def test_no_pdf_stays_beside_a_figure_that_it_does_not_show(report, tmp_path):
    Report('paper_audit', tmp_path, 'smoke', pdf=True).figure(page())
    assert names(report) == ['paper_audit.pdf', 'paper_audit.png']
    report.figure(page())
    assert names(report) == ['paper_audit.png']


def test_the_note_names_every_file_with_its_hash_and_how_it_was_made(report, capsys):
    report.kept.values('costs', lambda: 3)
    report.table(RATES, 'Win rates.')
    report.figure(page(), name='samples')
    report.text('{}', 'numbers.json')
    report.close('Ours wins.', parameters={'level': 0.05}, seeds=(1, 2))
    there = {p.name: file_digest(p) for p in report.folder.iterdir() if p.is_file()}
    there.pop('provenance.json')
    told = note(report)
    assert told['outputs'] == there
    assert set(there) > {'finding.txt', 'numbers.json', 'samples.png'}
    assert list(told['kept']) == ['kept/costs.json']
    assert told['command'] == 'balanceddpo reproduce paper_audit --scale smoke'
    assert told['parameters'] == {'level': 0.05}
    assert told['seeds'] == [1, 2]
    assert (report.folder / 'finding.txt').read_text() == 'Ours wins.\n'
    said = capsys.readouterr().out
    assert said.startswith('Ours wins.\n')
    assert 'paper_audit.csv, paper_audit.md, paper_audit.tex, samples.png, numbers.json' in said


def test_the_command_and_what_was_read_can_be_told(report, tmp_path):
    (tmp_path / 'results.jsonl').write_text('{}')
    report.close('Found.', inputs=[tmp_path / 'results.jsonl'], command='make it')
    assert note(report)['command'] == 'make it'
    assert list(note(report)['inputs']) == ['results.jsonl']


def test_a_finding_of_two_lines_is_refused(report):
    with pytest.raises(InputError, match='the finding of paper_audit must be one line'):
        report.close('One.\nTwo.')


def test_a_rendering_reads_what_was_kept_and_keeps_the_time_of_the_making(report, tmp_path):
    report.kept.values('costs', lambda: 3)
    report.close('Found.')
    path = report.folder / 'provenance.json'
    path.write_text(json.dumps(note(report) | {'seconds': 100}))
    rendering = Report('paper_audit', tmp_path, 'smoke', from_scores=True)
    assert rendering.kept.values('costs', None) == 3
    rendering.close('Found.')
    assert note(rendering)['seconds'] == 100


def test_files_with_names_are_read_from_a_text():
    assert named_files('a=x.txt,b=y=z.txt') == {'a': 'x.txt', 'b': 'y=z.txt'}
    assert named_files('') == {}
    for wrong in ('x.txt', '=x.txt', 'a=x.txt,y.txt'):
        with pytest.raises(InputError, match='no name or no value: write NAME=FILE'):
            named_files(wrong)
