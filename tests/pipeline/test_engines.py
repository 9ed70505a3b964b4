"""A verb on several GPUs, on Ray and on Slurm makes the bytes of one process; a process that is
killed costs no more than the shard that it was at; what cannot be done is refused in one line."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from balanceddpo.cli import main
from balanceddpo.core.engines import (
    ASKED,
    ASKED_OF_SLURM,
    EngineOptions,
    engine_for,
    slurm_parameters,
)
from balanceddpo.core.shard_notes import read_note
from balanceddpo.core.stages import verify_manifest

SCORER = """
from balanceddpo.scoring.registry import register_scorer

@register_scorer('grey')
def grey(images, prompts):
    return [float(sum(i.convert('L').tobytes()) % 97) for i in images]
"""


@pytest.fixture(autouse=True)
def only_errors(monkeypatch):
    "How far a stage is is not told: what else is said is compared as a whole."
    monkeypatch.setenv('BALANCEDDPO_LOG_LEVEL', 'off')


# what Python runs first: the second of two processes is killed, once, when it begins its second
# shard of latents, and the first one waits for that
KILLER = """
import os, pathlib, signal, sys, threading, time

def be_killed_once(is_first, marker):
    while not hasattr(encoding := sys.modules.get('balanceddpo.models.encoding'), 'encode_pairs'):
        time.sleep(0.01)
    real, begun = encoding.encode_unit, []

    def call(*args, **options):
        begun.append(1)
        while is_first and not marker.exists():
            time.sleep(0.01)
        if len(begun) == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    encoding.encode_unit = call

share = os.environ.get('BALANCEDDPO_SHARE') or os.environ.get('RANK')
if share:
    told = (share[0] == '0', pathlib.Path(os.environ['BALANCEDDPO_KILLED_ONCE']))
    threading.Thread(target=be_killed_once, args=told, daemon=True).start()
"""
ENGINES = {
    'gpus': ['--on', 'gpus', '--processes', '2'],
    'slurm': ['--on', 'slurm', '--processes', '2', '--slurm', 'cluster=local'],
    'ray': ['--on', 'ray', '--processes', '2'],
}
PAIRS = '--pairs icons --limit 12 --device cpu'.split()


def is_missing(module):
    return importlib.util.find_spec(module) is None


needs_submitit = pytest.mark.skipif(is_missing('submitit'), reason='submitit is not installed')
needs_ray = pytest.mark.skipif(is_missing('ray'), reason='ray is not installed')
SLURM = pytest.param('slurm', marks=needs_submitit)
RAY = pytest.param('ray', marks=needs_ray)


@pytest.fixture(scope='module')
def scorer(tmp_path_factory):
    "The words of a scorer that needs no network."
    path = tmp_path_factory.mktemp('scorer') / 'grey.py'
    path.write_text(SCORER)
    return ['--scorers', 'grey', '--register', str(path)]


def encode_words(place):
    return ['encode', *PAIRS, '--model', 'icons', '--shard-size', '2', '--out', str(place)]


def contents(place):
    "Name -> bytes of what is made at `place`, but for the locks, which name a process."
    files = [p for p in sorted(Path(place).rglob('*')) if p.is_file() and p.name != '.lock']
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope='module')
def alone(tmp_path_factory, scorer):
    "What one process makes: the scores and labels, the encoded pairs."
    place = tmp_path_factory.mktemp('alone')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BALANCEDDPO_RUNS', str(place / 'runs'))
        assert main(['label', *PAIRS, *scorer, '--out', str(place / 'labels.parquet')]) == 0
    assert main(encode_words(place / 'encoded')) == 0
    return place


CLUSTER = """
import os, sys
os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
import ray
started = ray.init(address='local', num_cpus=2, num_gpus=0, include_dashboard=False)
print(started.address_info['gcs_address'], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope='module')
def cluster():
    "A Ray of two cores, at RAY_ADDRESS. What it consists of has 15 s to start, by Ray's decision."
    words = [sys.executable, '-c', CLUSTER]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    asks = os.environ | {'RAY_AUTH_MODE': 'token'}  # as is Ray's default for a Ray of one's own
    for _ in range(3):
        with subprocess.Popen(words, env=asks, stderr=subprocess.DEVNULL, **pipes) as ray:
            if address := ray.stdout.readline().strip():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv('RAY_ADDRESS', address)
                    patch.setenv('RAY_AUTH_MODE', 'token')
                    yield
                return  # its stdin is closed now, and it ends
    pytest.skip('Ray does not start on this machine, which may be too busy')


# what submitit calls of Slurm: the array of jobs is run at once, on this machine
SLURM_PROGRAMS = {
    'sbatch': f"""#!{sys.executable}
import os, pathlib, re, subprocess, sys
text = pathlib.Path(sys.argv[1]).read_text()
pathlib.Path(__file__).with_name('asked').write_text(text)
for k in range(int(re.search(r'--array=0-(\\d+)', text)[1]) + 1):
    told = dict(SLURM_ARRAY_JOB_ID='7', SLURM_ARRAY_TASK_ID=str(k), SLURM_JOB_ID=f'{{8 + k}}')
    told |= dict.fromkeys(['SLURM_NTASKS', 'SLURM_JOB_NUM_NODES'], '1')
    told |= dict.fromkeys(['SLURM_NODEID', 'SLURM_PROCID', 'SLURM_LOCALID'], '0')
    nowhere = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.Popen(['bash', sys.argv[1]], env=os.environ | told, **nowhere)
print('Submitted batch job 7')
""",
    'srun': """#!/usr/bin/env bash
while [[ $1 == -* ]]; do [[ $1 == --un* ]] || shift; shift; done
"$@"
""",
    'sacct': '#!/usr/bin/env bash\necho "JobID|State|NodeList"',
}


@pytest.fixture
def slurm_in_a_box(tmp_path, monkeypatch):
    "The folder of programs that take the place of Slurm's; `asked` has what was asked for."
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in SLURM_PROGRAMS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def one_is_killed(tmp_path, monkeypatch):
    "The second of two processes will be killed once while it encodes; the file that says so."
    (tmp_path / 'first' / 'sitecustomize.py').parent.mkdir()
    (tmp_path / 'first' / 'sitecustomize.py').write_text(KILLER)
    marker = tmp_path / 'killed'
    monkeypatch.setenv('BALANCEDDPO_KILLED_ONCE', str(marker))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'first'), prepend=os.pathsep)
    return marker


@needs_submitit
def test_labels_by_an_array_of_jobs_are_those_of_one_process(
    alone, scorer, slurm_in_a_box, tmp_path, capfd
):
    out = tmp_path / 'labels.parquet'
    asked = 'partition=a,gpus_per_node=1,nodelist=n1,n2'
    words = ['label', *PAIRS, *scorer, '--out', str(out), '--on', 'slurm', '--processes', '2']
    assert main([*words, '--slurm', asked]) == 0
    assert out.read_bytes() == (alone / 'labels.parquet').read_bytes()
    assert capfd.readouterr().out.count('12 pairs labelled') == 1
    told = re.findall(r'^#SBATCH --([\w-]+=\S+)', (slurm_in_a_box / 'asked').read_text(), re.M)
    needed = 'array=0-1%2 partition=a gpus-per-node=1 nodelist=n1,n2 time=60 nodes=1'.split()
    assert set(needed) <= set(told)


def test_labels_are_those_of_one_process(alone, scorer, tmp_path, capfd):
    out = tmp_path / 'labels.parquet'
    assert main(['label', *PAIRS, *scorer, '--out', str(out), *ENGINES['gpus']]) == 0
    assert out.read_bytes() == (alone / 'labels.parquet').read_bytes()
    kept = contents(tmp_path / 'runs' / 'pair_scores')
    assert kept == contents(alone / 'runs' / 'pair_scores')
    said = capfd.readouterr()
    assert said.out.count('12 pairs labelled') == 1
    assert said.err == ''


def test_a_config_file_may_name_the_engine(alone, scorer, tmp_path, capfd):
    "Its processes are told its words, not the file: they would start others."
    out, path = tmp_path / 'labels.parquet', tmp_path / 'run.yaml'
    path.write_text('pairs: icons\nlimit: 12\ndevice: cpu\non: gpus\nprocesses: 2\n')
    assert main(['label', *scorer, '--config', str(path), '--out', str(out)]) == 0
    assert out.read_bytes() == (alone / 'labels.parquet').read_bytes()
    said = capfd.readouterr()
    assert said.out.count('12 pairs labelled') == said.out.count('\nnext: ') == 1
    assert said.err == ''


def test_two_processes_train_what_one_trains(alone, tmp_path, capfd):
    "But for the rounding of the gradients that they exchange."
    inputs = ['--labels', str(alone / 'labels.parquet'), '--encoded', str(alone / 'encoded')]
    settings = '--model icons --mode lora --resolution 64 --max-steps 2 --batch-size 4'.split()
    settings += '--learning-rate 1e-3 --device cpu --tracker none'.split()
    moved, rows = [], []
    for name, engine in (('one', []), ('two', ENGINES['gpus'])):
        out = tmp_path / name
        assert main(['train', *inputs, *settings, '--out', str(out), *engine]) == 0
        lora = load_file(out / 'model' / 'pytorch_lora_weights.safetensors')
        # the factor that begins at zero
        moved.append(torch.cat([v.flatten() for k, v in lora.items() if '.up.' in k]))
        rows.append([json.loads(row) for row in (out / 'metrics.jsonl').read_text().splitlines()])
    one, two = moved
    assert one.norm() > 0
    assert (one - two).norm() < 1e-3 * one.norm()
    assert [[row['step'] for row in some] for some in rows] == [[1, 2], [1, 2]]
    for whole, shared in zip(*rows, strict=True):
        assert shared['grad_norm'] == pytest.approx(whole['grad_norm'], rel=1e-4)
    said = capfd.readouterr()
    assert said.out.count(f'model: {tmp_path}/two/model') == 1


def test_two_processes_rehearse_what_they_will_do(scorer, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    words = ['align', 'BalancedDPO', '--model', 'icons', *PAIRS, *scorer, '--max-steps', '9']
    words += '--batch-size 2 --micro-batch-size 1'.split()
    assert main([*words, *ENGINES['gpus'], '--rehearse']) == 0
    said = capfd.readouterr()
    assert said.out.count('rehearsed: the plan of the same command now says this') == 1
    assert said.err == ''
    (kept,) = (tmp_path / 'runs').iterdir()  # nothing else is left
    assert kept.name == 'trials'
    assert main([*words, *ENGINES['gpus'], '--dry-run']) == 0
    told = re.search(r'training: (\S+) s a step, 9 steps', capfd.readouterr().out)
    assert float(told[1]) > 0
    assert main([*words, '--dry-run']) == 0  # of one process nobody has measured it
    assert 'hours: not measured yet' in capfd.readouterr().out


def test_one_that_is_killed_ends_all_and_the_same_command_goes_on(
    alone, one_is_killed, tmp_path, capfd
):
    place = tmp_path / 'encoded'
    words = [*encode_words(place), *ENGINES['gpus']]
    assert main(words) == 1
    told = 'balanceddpo: process 1 of 2 was killed: the same command goes on where it was\n'
    assert capfd.readouterr().err == told
    assert one_is_killed.exists()
    # what the other process had just written when it was ended has no note yet, and no claim
    ended = [p for p in place.glob('*.safetensors') if read_note(p)]
    before = {p: p.stat().st_ino for p in ended}
    assert before
    assert not (place / 'manifest.json').exists()
    assert main(words) == 0
    assert contents(place) == contents(alone / 'encoded')
    assert {p: p.stat().st_ino for p in before} == before  # not made again
    verify_manifest(place)
    assert not [*tmp_path.glob('.*.claims')]


@pytest.mark.parametrize('engine', [SLURM, RAY])
def test_one_that_is_killed_is_started_again(
    engine, alone, one_is_killed, tmp_path, capfd, request
):
    if engine == 'ray':
        request.getfixturevalue('cluster')
    place = tmp_path / 'encoded'
    assert main([*encode_words(place), *ENGINES[engine]]) == 0
    assert one_is_killed.exists()
    assert contents(place) == contents(alone / 'encoded')
    assert '12 pairs, 12 captions' in capfd.readouterr().out


WAITS = """
import os, pathlib, time
pathlib.Path({folder!r}, os.environ['RANK']).write_text(str(os.getpid()))
if os.environ['RANK'] == '1' and {fails}:
    raise ValueError('no such weights')
time.sleep(600)
"""


def waiting_words(folder, fails):
    "The words of a command whose processes wait for ever, but for one that may fail."
    folder.mkdir()
    (folder / 'waits.py').write_text(WAITS.format(folder=str(folder), fails=fails))
    own = ['--register', str(folder / 'waits.py'), '--scorers', 'icons:hps']
    return ['label', '--pairs', 'icons', *own, *ENGINES['gpus']]


def is_running(pid):
    "Whether a process is there and has not ended."
    try:
        return ' Z ' not in Path('/proc', pid, 'stat').read_text()
    except FileNotFoundError:
        return False


def test_one_that_fails_ends_those_that_wait(tmp_path, capfd):
    folder = tmp_path / 'pids'
    assert main(waiting_words(folder, True)) == 2
    told = f'process 1 of 2: the file of scorers failed ({folder}/waits.py, line 5): ValueError'
    assert capfd.readouterr().err == f'balanceddpo: {told}: no such weights\n'
    assert not any(is_running(p.read_text()) for p in folder.glob('[01]'))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_the_one_that_started_them(number, tmp_path):
    folder = tmp_path / 'pids'
    words = [sys.executable, '-m', 'balanceddpo.cli', *waiting_words(folder, False)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as parent:
        until = time.monotonic() + 300
        while len([*folder.glob('[01]')]) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # the number is written
        pids = [p.read_text() for p in folder.glob('[01]')]
        assert [is_running(pid) for pid in pids] == [True, True]
        parent.send_signal(number)
        said = parent.communicate()[1]
    time.sleep(0.5)
    assert not any(is_running(pid) for pid in pids)
    assert parent.returncode == (130 if number == signal.SIGINT else -9)
    told = 'balanceddpo: interrupted: the same command goes on where it was\n'
    assert said == (told if number == signal.SIGINT else '')


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        ('--on gpus', '--on gpus: no GPU is in sight: say how many with --processes N'),
        ('--on slurm', '--on slurm: say how many with --processes N'),
        ('--on ray', '--on ray: say how many with --processes N'),
        ('--on gpus --processes 0', '--processes must be 1 or more, not 0'),
        ('--processes 2', '--processes goes with --on gpus, ray or slurm'),
        ('--slurm partition=a', '--slurm says what to ask Slurm for: it goes with --on slurm'),
        ('--on slurm --processes 2 --slurm partitoin=a', "--slurm 'partitoin=a': write NAME=VALUE"),
        ('--on slurm --processes 2 --slurm cluster=x', '--slurm cluster=x: use slurm or local'),
        ('--on slurm --processes 2', '--on slurm: there is no sbatch here'),
        ('--on slurm --processes 2 --slurm mem_gb=x,cluster=local', '--slurm: Parameter "mem_gb"'),
    ],
)
def test_what_cannot_be_started_is_refused(words, told, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    monkeypatch.setenv('PATH', '/nowhere')
    if '--on slurm' in words and is_missing('submitit') and 'sbatch' in told + words:
        pytest.skip('submitit is not installed')
    assert main([*encode_words(tmp_path / 'encoded'), *words.split()]) == 2
    said = capfd.readouterr()
    assert said.err.startswith(f'balanceddpo: {told}')
    assert said.err.count('\n') == 1
    assert said.out == ''


@pytest.mark.parametrize(('engine', 'module'), [('ray', 'ray'), ('slurm', 'submitit')])
def test_a_missing_extra_is_told(engine, module, monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, module, None)
    words = [*encode_words(tmp_path / 'encoded'), '--on', engine, '--processes', '2']
    assert main(words) == 2
    told = f'--on {engine} needs {module}: pip install "balanceddpo[{engine}]"'
    assert capfd.readouterr().err == f'balanceddpo: {told}\n'


def test_an_engine_and_a_launcher_are_one_too_many(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '0')
    assert main([*encode_words(tmp_path / 'encoded'), *ENGINES['gpus']]) == 2
    assert 'run it without a launcher' in capfd.readouterr().err


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        ('--on gpus --processes 2', 'on gpus: 2 processes on this machine'),
        ('--on ray --processes 3', 'on ray: 3 processes at this machine'),
        (
            '--on slurm --processes 4 --slurm partition=a',
            'on slurm: 4 processes, a job each, asked for with partition=a',
        ),
    ],
)
def test_a_dry_run_names_the_engine_and_starts_none(words, told, monkeypatch, tmp_path, capfd):
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    for module in ('ray', 'submitit'):
        monkeypatch.setitem(sys.modules, module, None)
    assert main([*encode_words(tmp_path / 'encoded'), *words.split(), '--dry-run']) == 0
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == f'  {told}'
    assert said.err == ''


ALIGN = 'align BalancedDPO --model icons --pairs icons --on'.split()


@needs_ray
def test_ray_with_fewer_cores_than_processes_is_refused(cluster, tmp_path, capfd):
    assert main([*encode_words(tmp_path / 'encoded'), '--on', 'ray', '--processes', '3']) == 2
    told = '--processes 3: Ray has 2 CPUs: ask for no more than one process for each'
    assert capfd.readouterr().err == f'balanceddpo: {told}\n'


@needs_ray
def test_ray_at_an_address_where_nobody_is_is_refused(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')
    assert main([*encode_words(tmp_path / 'encoded'), *ENGINES['ray']]) == 2
    told = 'balanceddpo: RAY_ADDRESS 127.0.0.1:1: nobody answers (Connection refused)\n'
    assert capfd.readouterr().err == told


def test_ray_does_not_train(capfd):
    assert main([*ALIGN, 'ray', '--processes', '2']) == 2
    assert 'align trains, which is no work for --on ray: use --on gpus' in capfd.readouterr().err


@needs_submitit
def test_slurm_aligns_in_one_job_of_one_node():
    options = EngineOptions(on='slurm', processes=8, slurm='cluster=local,gpus_per_node=8')
    words = [*ALIGN, 'slurm', '--processes=8', '--slurm', 'cluster=local,gpus_per_node=8']
    command = engine_for(options, words, 8).command
    assert command.processes == 1
    assert list(command.words) == [*ALIGN, 'gpus', '--processes', '8']


@needs_submitit
def test_submitit_knows_what_may_be_asked_for():
    import submitit

    assert set(ASKED) <= submitit.AutoExecutor._valid_parameters()
    assert set(ASKED_OF_SLURM) <= submitit.SlurmExecutor._valid_parameters()
    assert slurm_parameters('use_srun=false,time=90')['slurm_use_srun'] is False
