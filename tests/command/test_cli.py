"""The command: four calls end to end on tiny random models, what it does with errors, and how light
it is."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError

from balanceddpo.cli import ORDER, VERBS, main
from balanceddpo.models.encoding import EncodedPairs
from balanceddpo.models.image_store import open_images
from balanceddpo.voting.labels import read_labels
from short_commands import (
    DRAW,
    KINDS,
    encode_words,
    file_times,
    label_words,
    scorer_texts,
    train_words,
)

HEAVY = 'torch numpy pandas pyarrow PIL papermill nbformat diffusers transformers'.split()
LIGHT = """
    cli command core core.commands core.config_files core.devices core.engines core.errors
    core.files core.hub_access core.jobs core.parallel core.processes core.progress
    core.publishing core.shares core.stages
    command.options command.plans command.labelling command.training command.alignment
    command.evaluation command.results command.sampling command.exporting command.inspection
    command.scoring
    command.studies command.votes command.verification command.doctor command.completion
    command.asking
    paper paper.making paper.repro_notebooks paper.reproduction paper.results_page
    paper.study_jobs
    recipes recipes.config training training.validation_config
""".split()


def label_and_encode(world, work, run):
    "The first two of the four commands."
    labels_file = work / 'labels.parquet'
    said = run(*label_words(world, '--scorers', *scorer_texts(world), '--out', labels_file))
    assert '8 rows, 8 pairs kept' in said
    assert 'agreement' in said
    labels, config = read_labels(labels_file)
    assert len(labels) == 8
    assert config.scorers == KINDS
    assert {f'vote_{k}' for k in KINDS} < set(labels)

    said = run(*encode_words(world, '--device', 'cpu', '--out', work / 'encoded'))
    assert '8 pairs, 3 captions at 32 pixels' in said
    assert EncodedPairs.open(work / 'encoded').pair_ids == list(labels.pair_id)


def train_a_lora(world, work, run):
    "The third command; the same one again finds all done."
    train = train_words(world, work, '--mode', 'lora', '--out', work / 'lora')
    assert f'model: {work}/lora/model' in run(*train)
    assert len((work / 'lora/metrics.jsonl').read_text().splitlines()) == 2
    before = file_times(work / 'lora/model')
    run(*train)
    assert file_times(work / 'lora/model') == before


def check_results(folder, said):
    "What the fourth command leaves, and prints."
    rates = pd.read_csv(folder / 'comparisons.csv')
    assert list(rates.scorer) == list(KINDS)
    assert set(rates.model_a) == {'ours'}
    assert set(rates.model_b) == {'base'}
    assert (rates.n == 2).all()
    assert set(rates.prompt_set) == {'prompts'}
    assert (rates.low <= rates.win_rate).all()
    assert (rates.win_rate <= rates.high).all()
    assert f'{100 * rates.win_rate[0]:.1f} [' in said
    assert rates[['gain', 'gain_low', 'gain_high', 'p', 'p_holm']].notna().all(axis=None)
    assert f'{rates.gain[0]:.3f} [{rates.gain_low[0]:.2f}, {rates.gain_high[0]:.2f}]' in said
    tables = {'win_rates.csv', 'win_rates.md', 'win_rates.tex'}
    outputs = tables | {'comparisons.csv', 'scores.parquet', 'images.parquet'}
    assert {p.name for p in folder.iterdir()} == outputs | {'provenance.json', 'index.html'}
    kept = json.loads((folder / 'provenance.json').read_text())
    assert kept['parameters']['options']['protocol'] == 'best'
    assert set(kept['outputs']) == outputs


def test_four_commands_from_parquet_to_win_rates_of_a_lora(world, tmp_path, run):
    work = tmp_path / 'work'
    label_and_encode(world, work, run)
    train_a_lora(world, work, run)
    contest = [
        'evaluate',
        f'base={world}/model',
        f'ours={world}/model+{work}/lora/model',
        *('--prompts', world / 'prompts.txt'),
        *('--scorers', *scorer_texts(world)),
        *DRAW,
    ]
    check_results(work / 'results', run(*contest, '--out', work / 'results'))
    stores = [open_images(p) for p in (tmp_path / 'runs/sample').iterdir()]
    assert len(stores) == 2
    assert stores[0].model != stores[1].model
    assert [len(s) for s in stores] == [4, 4]
    # the LoRA is in use
    assert not np.array_equal(*(np.asarray(s.image(stores[0].index.prompt_id[0])) for s in stores))

    # again, by another rule: nothing is drawn or scored
    before = file_times(tmp_path / 'runs')
    run(*contest, '--ties', 'drop', '--protocol', 'paired', '--out', work / 'paired')
    assert file_times(tmp_path / 'runs') == before
    assert set(pd.read_csv(work / 'paired/comparisons.csv').n) == {4}


def test_an_unknown_verb_is_told_the_others_in_their_order(refused):
    others = ', '.join(ORDER)
    said = refused('lable')
    assert f"unknown verb 'lable': did you mean label? there are {others}" in said


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError('a mistake of ours')

    monkeypatch.setitem(VERBS, 'icons', replace(VERBS['icons'], run=fail))
    with pytest.raises(RuntimeError, match='of ours'):
        main(['icons'])


def test_no_memory_left_is_a_line_with_advice(monkeypatch, capsys):
    import torch

    def fail(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nmore of it')

    monkeypatch.setitem(VERBS, 'icons', replace(VERBS['icons'], run=fail))
    assert main(['icons']) == 1
    assert '2 GiB.; use less at once: --micro-batch-size' in (said := capsys.readouterr().err)
    assert said.count('\n') == 1


@contextmanager
def files_of_at_most(n):
    "Until the end, no file can grow beyond `n` bytes, as on a full disk."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_in_every_verb_and_the_same_command_goes_on(
    world, tmp_path, run, capfd
):
    human = label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet')
    encode = encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded')
    train = train_words(world, tmp_path, '--mode', 'lora', '--out', tmp_path / 'lora')
    draw = ['sample', '--model', f'{world}/model', '--prompts', f'{world}/prompts.txt', *DRAW]
    drawn = [f'{name}={tmp_path}/{name}' for name in ('a', 'b')]
    scorer = ['--scorers', f'clip={world}/clip', '--device', 'cpu']
    for words in (
        human,
        encode,
        train,
        [*draw, '--out', tmp_path / 'a'],
        [*draw, '--out', tmp_path / 'b'],
        ['evaluate', *drawn, *scorer, '--out', tmp_path / 'compared'],
    ):
        with files_of_at_most(1500):
            assert main(list(map(str, words))) == 1
        said = capfd.readouterr().err.splitlines()[-1]  # above it are bars of the libraries
        assert said.startswith('balanceddpo: '), said
        assert 'File too large' in said
        assert re.search(f'bytes of {tmp_path}|cannot write {tmp_path}', said), said
        assert said.endswith('kept: then the same command goes on from there')
        run(*words)


@pytest.mark.parametrize(
    'error, code, says',
    [
        (
            OSError(errno.ENOSPC, 'No space left on device', 'x'),
            1,
            'x: No space left on device; make',
        ),
        (
            OSError(errno.EROFS, 'Read-only file system', 'x'),
            1,
            'x: Read-only file system; make room',
        ),
        (FileExistsError(errno.EEXIST, 'File exists', 'x'), 2, 'x: File exists'),
        (OSError('Unable to load\nmore of it'), 2, 'OSError: Unable to load more of it'),
        (MemoryError(), 1, 'MemoryError; use less at once'),
        # numpy's own class of it
        (type('_ArrayMemoryError', (MemoryError,), {})('Unable to allocate 1 TiB'), 1, 'use less'),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, 'use less'),
        (RuntimeError('PytorchStreamWriter failed: file write failed'), 1, 'make room, or choose'),
        (SafetensorError('I/O error: No space left on device (os error 28)'), 1, 'make room, or'),
        (SystemExit(0), 2, 'icons was ended from within'),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, error, code, says):
    def fail(*_):
        raise error

    monkeypatch.setitem(VERBS, 'icons', replace(VERBS['icons'], run=fail))
    assert main(['icons']) == code
    assert says in (said := capsys.readouterr().err)
    assert said.count('\n') == 1


def test_a_training_that_was_told_to_stop_exits_with_its_code(monkeypatch):
    def stop(*_):
        raise SystemExit(143)

    monkeypatch.setitem(VERBS, 'icons', replace(VERBS['icons'], run=stop))
    with pytest.raises(SystemExit, match='143'):
        main(['icons'])


def test_the_installed_command_in_a_shell(tmp_path):
    command = Path(sys.executable).parent / 'balanceddpo'
    done = subprocess.run(
        [command, 'label', '--pairs', 'none.parquet'], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and done.stdout == ''
        and re.fullmatch(r'balanceddpo: .*none\.parquet: no such file.*\n', done.stderr)
    ), done.stderr
    ascii = subprocess.run(
        [sys.executable, '-m', 'balanceddpo.cli', 'sample', '--steps', 'x'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'},
    )
    assert ascii.returncode == 2 and re.fullmatch(
        r"balanceddpo: --steps must be a whole number, not 'x' \(see balanceddpo sample --help\)\n",
        ascii.stderr,
    ), ascii.stderr
    listed = subprocess.run(
        f'{command} train --help | head -1',
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.startswith('usage: balanceddpo train')
    assert listed.stderr == ''


def run_python(code):
    "What a new process prints that runs this code, and the seconds of processor time that it took."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_light():
    code = f"""
import sys; from balanceddpo.cli import main
assert main(['--help']) == 0
heavy = {HEAVY!r} + ['tyro']
loaded = {{m.split('.')[0] for m in sys.modules}} & set(heavy)
ours = {{m.removeprefix('balanceddpo.') for m in sys.modules if m.startswith('balanceddpo.')}}
stages = ours - set({LIGHT!r})
assert not loaded | stages, loaded | stages
"""
    said, seconds = run_python(code)
    assert re.findall(r'^  (\w+)  ', said, re.M) == ORDER
    assert seconds < 0.5


def test_the_help_of_a_verb_loads_no_numeric_library():
    code = f"""
import sys; from balanceddpo.cli import main
for verb in {ORDER!r}:
    try:
        main([verb, '--help'])
    except SystemExit as stop:
        assert not stop.code
    loaded = {{m.split('.')[0] for m in sys.modules}} & set({HEAVY!r})
    assert not loaded, (verb, loaded)
"""
    said, _ = run_python(code)
    assert [f'usage: balanceddpo {verb} ' in said for verb in ORDER] == [True] * len(ORDER)


def test_a_warning_of_ours_is_one_line_and_no_place_in_the_code(capfd):
    code = """
import warnings
from balanceddpo import cli
from balanceddpo.scoring.scorers import tell_cut_texts
def stage(): tell_cut_texts({'clip': [2, 'fox ' * 99]}, 'prompts')
inside = compile('def verb(): stage()', cli.__file__, 'exec')
exec(inside)
def dispatch(words):
    verb()
    warnings.warn('of somebody else')
cli.dispatch = dispatch
before = warnings.formatwarning
cli.main([])
assert warnings.formatwarning is before
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    ours, *others = done.stderr.splitlines()
    assert ours.startswith('balanceddpo: warning: clip does not read 2 of the prompts to the end')
    assert 'UserWarning: of somebody else' in others[0]
