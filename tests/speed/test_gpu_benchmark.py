"""The GPU benchmark without a GPU: its clock, what is kept when a part fails, hangs or runs out of
memory, and every part from end to end at tiny size, by the very script that runs on a card."""

import importlib
import json
import os
import signal
import sys
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from random_networks import TINY

os.environ['BENCH_SIZE'] = 'tiny'
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
gpu, clock, labelling, rates, sampling, training, report, step, timing = (
    importlib.import_module(f'benchmarks.{name}')
    for name in (
        'gpu',
        'gpu_clock',
        'gpu_labelling',
        'gpu_rates',
        'gpu_sampling',
        'gpu_training',
        'report',
        'step',
        'timing',
    )
)
Part = clock.Part
COMMAND = (sys.executable, '-c')


@pytest.fixture
def rows(tmp_path, monkeypatch):
    "The folder of rows."
    monkeypatch.setenv('BENCH_OUT', str(tmp_path / 'rows'))
    monkeypatch.setenv('BENCH_COMMIT', 'none')
    (tmp_path / 'rows').mkdir()
    return tmp_path / 'rows'


@pytest.fixture
def log(rows):
    return timing.Log('gpu_test')


def kept(folder, name):
    "The rows of a part, without the head."
    return clock.whole_rows(folder / f'gpu_{name}.jsonl')[1:]


def write_rows(folder, name, values, ending=None):
    "Rows as a part and the clock leave them."
    lines = [{'bench': name}, *({'what': 'w', 'value': v} for v in values)]
    lines += [ending] if ending else []
    (folder / f'gpu_{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in lines))


# --- how much time a part has


@pytest.mark.parametrize(
    'left, given', [(200, 110), (112, 110), (100, 98), (47, 45), (46.9, 0), (-5, 0)]
)
def test_a_part_has_its_limit_or_what_is_left_and_is_not_started_below_its_least(left, given):
    "Two seconds of what is left are kept for ending a process."
    assert clock.time_for(Part('a', (), limit=110, least=45), left) == given


@pytest.fixture
def pretend(rows, monkeypatch):
    "Run parts on a clock of ours: `ends` says for each name (seconds it takes, exit code)."

    def run(parts, seconds, **ends):
        now, started = [0.0], []

        def process(command, limit):
            name = command[0]
            took, code = ends[name]
            started.append(name)
            write_rows(rows, name, [1.0])
            now[0] += min(took, limit)
            return code if took <= limit else None

        monkeypatch.setattr(clock, 'run_process', process)
        return started, clock.run_parts(parts, seconds, lambda: now[0])

    return run


def parts(**limits):
    "Parts by name: (limit, least)."
    return [Part(name, (name,), *both) for name, both in limits.items()]


def test_what_does_not_fit_is_named_and_what_comes_after_it_still_runs(pretend):
    "100 s: a takes 40 of its 60; b needs 80 of the 60 that are left; c is given all of its 30."
    started, found = pretend(parts(a=(60, 30), b=(100, 80), c=(30, 10)), 100, a=(40, 0), c=(25, 0))
    assert started == ['a', 'c']
    assert [(o.name, o.started, o.seconds, o.given) for o in found] == [
        ('a', 0, 40, 60),
        ('b', 40, 0, 0),
        ('c', 40, 25, 30),
    ]
    assert [o.outcome for o in found] == [
        'done',
        'left out: 60 s are left, and it needs 82',
        'done',
    ]


def test_all_parts_end_within_the_time_even_if_each_would_go_on(pretend):
    "Each would take 1000 s. 100 s: 60 for a, 38 for b (two are kept), and none for c."
    endless = dict.fromkeys('abc', (1000, 0))
    started, found = pretend(parts(a=(60, 5), b=(60, 5), c=(60, 5)), 100, **endless)
    assert started == ['a', 'b']
    assert sum(o.seconds for o in found) == 98
    assert [o.outcome for o in found[:2]] == ['stopped after 60 s', 'stopped after 38 s']


def test_a_second_call_goes_on_with_what_is_missing(pretend, rows):
    """Done: not again. Cut short by the end of the time, or never begun: first, in order. Failed,
    or stopped at its own limit: last."""
    some = parts(done=(10, 5), fails=(10, 5), hangs=(10, 5), cut=(20, 5), late=(10, 5))
    ends = dict(done=(5, 0), fails=(5, 1), hangs=(99, 0), cut=(15, 0), late=(5, 0))
    started, found = pretend(some, 30, **ends)
    assert started == ['done', 'fails', 'hangs', 'cut']
    assert [o.outcome.split()[0] for o in found] == ['done', 'failed', 'stopped', 'stopped', 'left']
    started, found = pretend(some, 100, **ends | {'hangs': (8, 0)})
    assert started == ['cut', 'late', 'fails', 'hangs']
    endings = {name: kept(rows, name)[-1] for name in ends}
    assert {n: e['outcome'] for n, e in endings.items()} == {
        **dict.fromkeys(('done', 'hangs', 'cut', 'late'), 'done'),
        'fails': 'failed with exit code 1',
    }
    assert {n for n, e in endings.items() if not e['done']} == {'fails'}
    assert pretend(some, 100, **ends)[0] == ['fails']


# --- what is kept


@pytest.mark.parametrize(
    'before, after, ended, values',
    [
        (3, 1, False, 3),  # less than before, and not to the end: the rows of before
        (3, 4, False, 4),
        (3, 1, True, 1),
        (0, 0, False, 0),
    ],
)
def test_a_rerun_that_fails_loses_nothing(rows, before, after, ended, values):
    path = rows / 'gpu_a.jsonl'
    write_rows(rows, 'a', [1.0] * before)
    clock.set_aside(path)
    assert not path.exists()
    write_rows(rows, 'a', [2.0] * after, {'part': 'a', 'outcome': 'x', 'given': 9, 'done': ended})
    clock.keep_the_fuller(path)
    assert clock.count_measurements(path) == values
    assert clock.complete(path) == ended
    assert kept(rows, 'a')[-1]['outcome'] == 'x'  # how the last try ended
    assert not clock.earlier(path).exists()


def test_a_call_that_was_ended_in_the_middle_of_a_rerun_loses_nothing(pretend, rows):
    write_rows(rows, 'a', [1.0, 2.0])
    clock.set_aside(rows / 'gpu_a.jsonl')
    pretend(parts(a=(60, 50)), 10)
    assert [row['value'] for row in kept(rows, 'a')] == [1.0, 2.0]


def test_half_a_line_of_a_stopped_part_is_dropped_and_the_rest_can_be_read(rows):
    path = rows / 'gpu_a.jsonl'
    write_rows(rows, 'a', [1.0])
    path.write_text(path.read_text() + '{"what": "w", "val')
    assert not clock.complete(path)
    clock.close_rows(path, clock.Outcome('a', 0.0, 3.0, 'stopped after 3 s', 3.0))
    assert [row.get('outcome') for row in kept(rows, 'a')] == [None, 'stopped after 3 s']
    assert [head['bench'] for head, _ in report.read(rows)] == ['gpu_a']


# --- processes

GRANDCHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def ended(pid, within=10.0):
    "Whether a process is gone, or dead and not yet collected, in so many seconds."
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == 'Z':
            return True
        time.sleep(0.1)
    return False


def hanging(folder, limit):
    "A part that never ends, and has started another process."
    return Part('hangs', (*COMMAND, GRANDCHILD, str(folder / 'pid')), limit, 1)


FAILING = Part('fails', (*COMMAND, 'raise SystemExit(3)'), 60, 1)


def test_a_part_writes_where_the_clock_looks(tmp_path, monkeypatch):
    "A folder named from here is the same folder from the root of the repository, where parts run."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('BENCH_OUT', 'mine')
    (tmp_path / 'mine').mkdir()
    write = "import os, pathlib; pathlib.Path(os.environ['BENCH_OUT'], 'row').touch()"
    assert clock.run_process((*COMMAND, write), 30.0) == 0
    assert (tmp_path / 'mine/row').exists()


def test_a_part_that_hangs_is_stopped_at_its_limit_with_all_that_it_started(rows, tmp_path):
    began = time.monotonic()
    assert clock.run_process(hanging(tmp_path, 0).command, 4.0) is None
    assert 4.0 <= time.monotonic() - began < 9.0
    assert ended(int((tmp_path / 'pid').read_text()))


def test_the_end_of_the_benchmark_is_the_end_of_its_part(rows, tmp_path):
    "An interruption while a part runs: nothing is left behind."

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 4.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            clock.run_process(hanging(tmp_path, 0).command, 60.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended(int((tmp_path / 'pid').read_text()))


# --- goals, memory, gates


def test_goals_are_those_of_the_card():
    assert rates.goal('eager', 'NVIDIA H100 80GB HBM3') == '>= 34'
    assert rates.goal('compiled', 'NVIDIA H200') == '>= 55'
    assert rates.goal('as it ships', 'NVIDIA H200') == '>= 3'
    for other in ('NVIDIA GH200 480GB', 'NVIDIA A100-SXM4-80GB', ''):
        assert {rates.goal(name, other) for name in ('eager', 'equal batch', 'refresh')} == {''}


def test_what_runs_out_of_memory_is_a_row_and_its_tensors_are_freed(log, monkeypatch):
    "They are gone when the memory is given back to the device, and not later."
    found, alive = [], []
    monkeypatch.setattr(rates, 'free', lambda: alive.append(found[0]() is not None))

    def work():
        big = torch.zeros(3)
        found.append(weakref.ref(big))
        raise torch.OutOfMemoryError('CUDA out of memory')

    with rates.fits(log, 'a step'):
        rates.measure(log, rates.Rate('a step', 1), work)
    assert [row['note'] for row in log.rows] == ['a step: out of memory']
    assert alive == [False]
    with rates.fits(log, 'a product'):
        raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')
    assert len(log.rows) == 2
    with pytest.raises(RuntimeError, match='shapes'), rates.fits(log, 'a bug'):
        raise RuntimeError('shapes cannot be multiplied')
    assert len(log.rows) == 2


def test_a_micro_batch_that_does_not_fit_leaves_the_others_their_rows(log, monkeypatch):
    "Of 2, 1 and 4 pairs at once the first does not fit; the gradients that it left are dropped."
    real = training.our_step

    def small(run):
        assert run.parameters[0].grad is None
        if run.config.micro_batch_size == 2:
            run.parameters[0].grad = torch.ones_like(run.parameters[0])
            raise torch.OutOfMemoryError('CUDA out of memory')
        return real(run)

    monkeypatch.setattr(training, 'our_step', small)
    training.step(log)
    notes = [row['note'] for row in log.rows if 'note' in row]
    assert notes == ['tiny step, eager, micro-batch 2: out of memory']
    assert {row['micro'] for row in log.rows if 'micro' in row} == {1, 4}
    assert any('refresh' in row.get('what', '') for row in log.rows)
    assert training.best_micro(log.rows) in (1, 4)


def test_a_failed_gate_marks_the_rows_after_it_and_stops_nothing(log, monkeypatch):
    monkeypatch.setattr(step, 'GRADIENT', {'cpu': 0.0})
    monkeypatch.setattr(training, 'ROUNDS', 1)
    training.rivals(log, 'full')
    failed = [row['gate'] for row in log.rows if row.get('passed') is False]
    assert 'R1 (DiffusionDPO), fp32, relative error of the first gradient' in failed
    ratios = [row for row in log.rows if 'what' in row]
    assert [row['what'].split(', ')[-1] for row in ratios] == [
        'equal batch of 2',
        'one pair at a time',
    ]
    assert {row['same_work'] for row in ratios} == {False}
    lines = report.summaries(report.read(log.path.parent))
    assert {line['verdict'] for line in lines} == {'a gate failed'}


def test_the_gate_of_the_cpu_still_stops(log, monkeypatch, tmp_path):
    monkeypatch.setattr(step, 'GRADIENT', {'cpu': 0.0})
    world = step.make_world(TINY, tmp_path, n=2)
    run = step.start_ours(world, step.train_config(TINY, 'full', 2), tmp_path / 'run')
    rival = step.R1(world, run.config, 2, step.our_random_numbers)
    with pytest.raises(SystemExit, match='nothing is timed'):
        step.gate(log, 'test', run, rival)


def test_the_best_micro_batch_is_that_of_the_highest_median():
    "Medians 20, 25 and 9; the largest single rate is of another one."
    values = {16: [20, 20, 90], 8: [25, 24, 26], 32: [9]}
    some = [{'micro': micro, 'value': v} for micro, vs in values.items() for v in vs]
    assert training.best_micro([{'bench': 'gpu_step'}, *some, {'note': 'x'}]) == 8
    assert training.best_micro([]) == 16


# --- labelling and sampling


def test_pictures_have_the_bytes_of_photographs_and_every_copy_is_a_file_of_its_own():
    "Pick-a-Pic's are 168 KB at 512 pixels; a smooth picture of that size has a tenth."
    from balanceddpo.data.pairs import decode
    from benchmarks.world import picture

    photo = labelling.photograph(0, 512)
    assert 150e3 < len(photo) < 190e3
    assert len(picture(0, 512)) < 0.3 * len(photo)
    one, two = labelling.copy_of(photo, 1), labelling.copy_of(photo, 22)
    assert len({photo, one, two}) == 3
    assert decode(one).tobytes() == decode(two).tobytes() == decode(photo).tobytes()


def test_no_picture_of_a_run_is_known_from_another(tmp_path):
    "Or a network would not look again: 40 pairs of two pictures, and their captions come 14 times."
    from balanceddpo.data.pairs import write_pairs
    from balanceddpo.data.sources import read_pairs

    source = write_pairs(labelling.photograph_pairs(40, 32, distinct=2), tmp_path / 'p.parquet')
    pairs = list(read_pairs(source))
    assert len({image for pair in pairs for image in pair.image_ids}) == 80
    assert list(Counter(pair.caption for pair in pairs).values()) == [14, 14, 12]


def test_what_bounds_labelling_by_hand():
    "300 and 150 pairs a second: 150 if they overlap, 100 if they wait for each other."
    assert labelling.find_bound(300.0, 150.0, 140.0) == 'bound by the networks'
    assert labelling.find_bound(150.0, 300.0, 140.0) == 'bound by reading and preparing'
    assert labelling.find_bound(300.0, 150.0, 100.0).startswith('the networks wait for the rest')


def test_one_core_is_one_core():
    before = os.sched_getaffinity(0), os.cpu_count(), torch.get_num_threads()
    with labelling.cores(1):
        assert (len(os.sched_getaffinity(0)), os.cpu_count(), torch.get_num_threads()) == (1, 1, 1)
    assert (os.sched_getaffinity(0), os.cpu_count(), torch.get_num_threads()) == before


def test_without_its_network_a_scorer_still_reads_prepares_and_scores():
    from PIL import Image

    from balanceddpo.scoring.scorers import score_items

    scorers = labelling.real_scorers('cpu', torch.float32, 'L', 'tiny', 'tiny')
    encoders = labelling.distinct_encoders(scorers)
    images = [Image.new('RGB', (40, 30), (n, 0, 0)) for n in range(3)]
    items = [(str(n), image, 'a fox') for n, image in enumerate(images)]
    networks = [encoder.encode_images for encoder in encoders]
    with labelling.without_networks(scorers):
        assert all(t.encode_images is not network for t, network in zip(encoders, networks))
        scores = score_items(scorers, items)
    assert {name: v.shape for name, v in scores.items()} == dict.fromkeys(
        ('hps', 'clip', 'pickscore', 'aesthetic'), (3,)
    )
    assert all(t.encode_images is network for t, network in zip(encoders, networks))


def test_the_difference_of_pictures_by_hand():
    "The second pair differs by 10 in one of three channels everywhere: 10/3 on average."
    from PIL import Image

    a = [Image.new('RGB', (2, 2), (0, 0, 0)), Image.new('RGB', (2, 2), (10, 5, 5))]
    b = [Image.new('RGB', (2, 2), (0, 0, 0)), Image.new('RGB', (2, 2), (20, 5, 5))]
    assert sampling.difference(a, b) == pytest.approx(10 / 3)


# --- from end to end


def call(monkeypatch, some, *words):
    "`python -m benchmarks.gpu` with these parts, as a person types it."
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, 'argv', ['gpu.py', *words])
    try:
        gpu.main(some)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_gpu_and_at_full_size_it_counts(rows, monkeypatch, capsys):
    monkeypatch.setattr(gpu, 'SIZE', 'cpu')
    monkeypatch.setattr(gpu, 'counted_limits', lambda: [('a step', 6.42, 123.1, 43.0, 0.35)])
    call(monkeypatch, tuple(gpu.PARTS.values()))
    told = capsys.readouterr().out
    assert 'No GPU here' in told
    assert 'goal 43/s, 35% of the peak' in told
    assert 'rivals_full' in told
    assert [p.name for p in rows.iterdir()] == ['counted.jsonl']


def test_every_part_from_end_to_end_and_what_fails_or_hangs_stops_no_other(
    rows, monkeypatch, capsys, tmp_path
):
    "The same script and limits as on a card, and two parts more; then the same line again."
    monkeypatch.setenv('BENCH_ROUNDS', '1')
    # the clock starts with the process, and this one may have run tests for minutes
    monkeypatch.setattr(clock, 'START', time.perf_counter())
    real = list(gpu.PARTS.values())
    assert [p.name for p in real[:4]] == ['step', 'rivals_full', 'rivals_lora', 'compiled']
    some = [real[0], FAILING, hanging(tmp_path, 4), *real[1:]]
    call(monkeypatch, some, '--minutes', '13')
    endings = {p.name: kept(rows, p.name)[-1] for p in some}
    assert {name: e['outcome'] for name, e in endings.items()} == {
        **dict.fromkeys(gpu.PARTS, 'done'),
        'fails': 'failed with exit code 3',
        'hangs': 'stopped after 4 s',
    }
    in_order = sorted(endings, key=lambda name: endings[name]['started'])
    assert in_order == [p.name for p in some]
    assert ended(int((tmp_path / 'pid').read_text()))
    check_rows(rows)
    told = capsys.readouterr().out
    assert 'What became of the parts' in told
    assert 'stopped after 4 s' in told
    call(monkeypatch, some, '--minutes', '0.5')
    assert capsys.readouterr().out.count('complete before') == 2 * len(real)


def check_rows(folder):
    "What the parts must have measured at tiny size."
    every = {name: kept(folder, name) for name in gpu.PARTS}
    values = [row for rows in every.values() for row in rows if 'what' in row]
    assert all(np.isfinite(row['value']) and row['value'] > 0 for row in values)
    assert all(row['goal'] == '' for row in values)  # no card, no goal
    assert not [row for rows in every.values() for row in rows if 'out of memory' in str(row)]
    assert {row['micro'] for row in every['step'] if 'micro' in row} == {2, 1, 4}
    for name in ('rivals_full', 'rivals_lora'):
        gates = [row for row in every[name] if 'fp32' in row.get('gate', '')]
        assert len(gates) == 3
        assert all(row['passed'] for row in gates)
        assert {row['same_work'] for row in every[name] if 'what' in row} == {True}
    bounds = [row for row in every['labelling'] if 'rates' in row]
    assert len(bounds) == 5  # two sizes of picture on all cores and on one; and `clip@l14`
    text = report.report(folder)
    assert 'against a diffusers call a prompt' in text
    assert 'trainings side by side' in text
    assert 'gpu_rivals_compiled' in text


def test_the_memory_of_a_step_is_told_as_a_part_of_what_the_plan_counts(
    rows, log, tmp_path, monkeypatch
):
    run = training.sd15_run(tmp_path / 'world', 2, offload_reference=True)
    weights = sum(p.numel() * p.element_size() for p in run.parameters)
    found = training.counted_memory(run)
    saved = training.counted_memory(run, offload_reference=False) - found
    assert weights / 2 < saved < weights  # the reference, but for its largest layer
    monkeypatch.setattr(training, 'peak_gib', lambda: 3 * found / 2**30)
    training.compare_with_plan(log, run, 'step')
    (row,) = kept(rows, 'test')
    assert (row['what'], row['value']) == ('step: memory over the plan', pytest.approx(3))
