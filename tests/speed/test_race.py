"""The race against a peer's script, with a stand-in for it: arithmetic, rows, and refusals."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ['BENCH_SIZE'] = 'tiny'
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
peers, race = (importlib.import_module(f'benchmarks.{name}') for name in ('peers', 'race'))

# A training script in a few lines: it counts its steps as a progress bar does, and saves the
# pipeline that it was given with every weight of the denoiser moved by 0.001.
STAND_IN = '''
import argparse
import shutil
import sys
import time

from safetensors.numpy import load_file, save_file

parser = argparse.ArgumentParser()
parser.add_argument("--no_hflip", action="store_true")
for name in """
    pretrained_model_name_or_path dataset_name cache_dir output_dir resolution max_train_steps
    learning_rate lr_warmup_steps mixed_precision seed
    --train_batch_size --gradient_accumulation_steps --beta_dpo --proportion_empty_prompts
""".split():
    parser.add_argument("--" + name.strip("-"), required=True)
asked = parser.parse_args()
steps = int(asked.max_train_steps)
for n in range(steps + 1):
    print(f"\\rSteps: | {n}/{steps} [00:00]", end="", file=sys.stderr, flush=True)
    time.sleep(0.01)
shutil.copytree(asked.pretrained_model_name_or_path, asked.output_dir)
weights = asked.output_dir + "/unet/diffusion_pytorch_model.safetensors"
save_file({k: w + 0.001 for k, w in load_file(weights).items()}, weights, {"format": "pt"})
'''


@pytest.fixture
def clone(tmp_path):
    "A folder with the stand-in, as if it were DiffusionDPO's."
    folder = tmp_path / 'clone'
    folder.mkdir()
    (folder / 'train.py').write_text(STAND_IN)
    return folder


@pytest.fixture
def course(tmp_path):
    return peers.Course(tmp_path / 'model', tmp_path / 'pickapic_24', 24, 64)


def cost(cpu, **more):
    return race.Cost(cpu, **{'wall': 2 * cpu, 'peak': 100.0, 'first': 1.0} | more)


# --- arithmetic


def test_steps_are_visits_over_eight():
    assert [race.steps_of(24, v) for v in (1, 3, 10)] == [3, 9, 30]
    assert race.steps_of(1000, 1) == 125
    with pytest.raises(SystemExit, match='20 pairs are not whole steps: use a multiple of 8'):
        race.steps_of(20, 1)


def test_cpu_seconds_a_step_by_hand():
    "Over 27 further steps: ours 27 s and then 54 s, the peer's 81 s."
    heats = [
        race.Heat(9, cost(36.0), cost(58.0), cost(42.0)),  # between the others: not used
        race.Heat(30, cost(57.0), cost(121.0), cost(84.0)),
        race.Heat(3, cost(30.0), cost(40.0), cost(30.0)),
    ]
    assert race.per_step(heats) == {'before': 1.0, 'theirs': 3.0, 'after': 2.0}
    row = race.step_row(peers.PEERS[0], 24, heats)
    assert (row['value'], row['control'], row['goal']) == (2.0, 2.0, '>= 2.2')


def test_a_row_compares_the_peer_with_the_mean_of_ours():
    heat = race.Heat(125, cost(8.0), cost(15.0, first=None), cost(12.0, peak=50.0))
    rows = {r['what']: r for r in race.heat_rows(peers.PEERS[0], 1000, 1, heat)}
    where = 'DiffusionDPO over ours, 1,000 pairs x 1: '
    found = rows[where + 'CPU seconds']
    assert (found['value'], found['control'], found['goal']) == (1.5, 1.5, '>= 1.3')
    assert rows[where + 'peak memory']['value'] == pytest.approx(100 / 75)
    assert where + 'wall seconds to the first step' not in rows  # the peer's was not seen
    assert not rows[where + 'wall seconds']['goal']


# --- what a process takes


def test_the_first_step_is_seen_in_a_progress_bar(tmp_path):
    output = tmp_path / 'output.txt'
    output.write_text('Total optimization steps = 3\nSteps:   0%|          | 0/3 [00:00<?, ?it/s]')
    assert not race.bar_moved(output)
    output.write_text(output.read_text() + '\rSteps:  33%|███▎      | 1/3 [00:00<00:00, 2.63it/s]')
    assert race.bar_moved(output)


def test_a_peer_that_fails_is_told_in_one_line(tmp_path):
    code = "import sys; print('loading'); sys.exit('no weights\\nin this folder')"
    with pytest.raises(SystemExit) as e:
        command = [sys.executable, '-c', code]
        race.run_and_measure('DiffusionDPO', command, tmp_path, dict(os.environ), race.bar_moved)
    expected = 'DiffusionDPO ended with exit code 1: ... loading no weights in this folder'
    assert str(e.value) == expected


def test_a_peer_that_saves_nothing_is_told(tmp_path):
    with pytest.raises(SystemExit, match='DiffusionDPO ended well and saved no model'):
        race.check_saved('DiffusionDPO', tmp_path)


MEASURED = """
import os
import sys
from pathlib import Path

from benchmarks import race

child = "import time\\nwhile time.process_time() < 0.5: pass"
work = f'''
import subprocess
import sys

held = bytearray(b"1") * (200 * 2**20)
print("ready", flush=True)
subprocess.run([sys.executable, "-c", {child!r}])
'''
command = [sys.executable, "-c", work]


def is_ready(output):
    return b"ready" in output.read_bytes()


cost = race.run_and_measure("work", command, Path(sys.argv[1]), dict(os.environ), is_ready)
print(cost.cpu, cost.wall, cost.peak, cost.first)
"""


def test_a_process_is_measured(tmp_path):
    """Half a second of work in its child, and 200 MiB of its own.

    A small process measures: a peak begins with the memory of the one that started it."""
    command = [sys.executable, '-c', MEASURED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    cpu, wall, peak, first = map(float, done.stdout.split())
    assert 0.5 <= cpu < 3
    assert wall >= 0.5
    assert 200 <= peak < 260
    assert 0 < first < wall


# --- ours


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_our_command_line_takes_the_options(course, tmp_path, mode):
    from balanceddpo.cli import VERBS
    from balanceddpo.command.asking import parse

    race.write_model(course.model)
    *python, verb, recipe = race.our_command(mode, course, 3, tmp_path)[:5]
    assert python == [sys.executable, '-m', 'balanceddpo.cli']
    assert (verb, recipe) == ('align', 'DiffusionDPO')
    words = [str(word) for word in race.our_command(mode, course, 3, tmp_path)[4:]]
    options, config = parse(VERBS['align'], words)
    assert (options.pairs, options.out) == (str(course.pairs), tmp_path / 'run')
    assert (config.mode, config.max_steps, config.batch_size, config.beta) == (mode, 3, 8, 5000)
    assert (config.precision, config.warmup_steps, config.empty_prompt_rate) == ('fp32', 0, 0)
    assert (config.optimizer, config.clip, config.sample_latents) == ('adamw', 1, True)


def test_ours_is_one_process(course, tmp_path, monkeypatch):
    called = []

    def run_and_measure(name, command, folder, environment, stepped):
        called.append((name, environment['BALANCEDDPO_RUNS']))
        (folder / 'run' / 'model').mkdir(parents=True)
        (folder / 'run' / 'model' / 'model_index.json').touch()
        return race.Cost(3.0, 3.0, 1.0, 2.5)

    monkeypatch.setattr(race, 'run_and_measure', run_and_measure)
    out = tmp_path / 'out'
    assert race.run_ours('full', course, 3, out) == race.Cost(3.0, 3.0, 1.0, 2.5)
    assert called == [('balanceddpo align', str(out / 'runs'))]


# --- all of it


def our_stand_in(mode, course, steps, out):
    "In the place of our process: the model with other weights, at a second a step."
    from safetensors.numpy import load_file, save_file

    model = out / 'run' / 'model'
    shutil.copytree(course.model, model)
    weights = model / 'unet' / 'diffusion_pytorch_model.safetensors'
    save_file({k: 2 * w for k, w in load_file(weights).items()}, weights, {'format': 'pt'})
    (model / 'training.json').write_text('{"numerics": "torch"}')
    return race.Cost(10.0 + steps, 20.0, 100.0, 11.0)


@pytest.fixture
def rows_folder(tmp_path, monkeypatch):
    "No stand-ins, which are slow to import; our side is a stand-in, and no process is new."
    monkeypatch.setattr(peers, 'SITECUSTOMIZE', '')
    monkeypatch.setattr(race, 'run_ours', our_stand_in)
    monkeypatch.setattr(race, 'in_new_process', lambda function, *arguments: function(*arguments))
    monkeypatch.setenv('BENCH_COMMIT', 'none')
    monkeypatch.setenv('BENCH_OUT', str(tmp_path / 'rows'))
    return tmp_path / 'rows'


def test_a_race_from_end_to_end(clone, rows_folder, capsys):
    race.main(['--peer', str(clone), '--visits', '1', '3', '--rounds', '1'])
    lines = (rows_folder / 'race_diffusiondpo.jsonl').read_text().splitlines()
    head, *rows = [json.loads(line) for line in lines]
    assert head['peer'] == {'name': 'DiffusionDPO', 'commit': 'unknown', 'as_named': False}
    assert head['steps'] == [3, 9]
    assert [r['numerics'] for r in rows if 'numerics' in r] == ['torch']
    gates = [r for r in rows if 'gate' in r]
    assert [g['value'] for g in gates if 'ours' in g['gate']] == [pytest.approx(1.0)]
    assert len(gates) == 2
    assert all(g['passed'] for g in gates)
    timed = {r['what']: r for r in rows if 'what' in r}
    assert len(timed) == 2 * len(race.MEASURES) + 1
    assert {r['peer_commit'] for r in timed.values()} == {'unknown'}
    first = timed['DiffusionDPO over ours, 24 pairs x 1: wall seconds to the first step']
    assert first['took']['theirs'] > 0
    assert first['took']['before'] == 11.0
    step = timed['DiffusionDPO over ours, 24 pairs: CPU seconds a step']
    assert step['took']['before'] == 1.0
    assert step['control'] == 1.0
    assert 'is not the file that this race was written for' in capsys.readouterr().out
    assert sorted(p.name for p in clone.iterdir()) == ['train.py']


def test_a_peer_that_trains_nothing_is_not_timed(clone, rows_folder):
    (clone / 'train.py').write_text(STAND_IN.replace('w + 0.001', 'w'))
    with pytest.raises(SystemExit, match='nothing is timed'):
        race.main(['--peer', str(clone)])


def test_own_sizes_need_a_folder(clone, monkeypatch, capsys):
    monkeypatch.delenv('BENCH_OUT', raising=False)
    with pytest.raises(SystemExit) as e:
        race.read_command_line(['--peer', str(clone), '--visits', '2'])
    assert e.value.code == 2
    assert 'BENCH_OUT=FOLDER' in capsys.readouterr().err
    found = race.read_command_line(['--peer', str(clone)])
    assert (found.pairs, found.visits, found.rounds) == (24, (1, 3, 10), 2)
    found = race.read_command_line(['--peer', str(clone), '--full'])
    assert (found.pairs, found.visits) == (1000, (1,))
