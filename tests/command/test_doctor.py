"""`balanceddpo doctor`: each illness is found, and its remedy can be typed."""

import json
import shutil
import socket
import sys
from collections import namedtuple
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from threading import Thread

import pytest
import torch
from huggingface_hub import constants

from balanceddpo.cli import main
from balanceddpo.command import doctor
from balanceddpo.core import devices

Usage = namedtuple('Usage', 'total used free')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "Products for no longer than one takes."
    monkeypatch.setitem(doctor.SIDE, 'cpu', 64)


def found(look, *arguments):
    "State, words and remedy of all that a look finds, by name."
    return {f.name: (f.state, f.says, f.remedy) for f in look(*arguments)}


def test_on_this_machine_nothing_is_broken(capfd):
    assert main(['doctor', '--offline']) == 0
    lines = capfd.readouterr().out.splitlines()
    names = {line.split()[1]: line.split()[0] for line in lines}
    assert [*names][:2] == ['Python', 'packages']
    assert {'torch', 'device', 'disk', 'results', '[repro]', 'hps', 'model', 'Hub'} <= set(names)
    assert set(names.values()) <= {'ok', 'note'}
    assert (names['torch'], names['[repro]'], names['Hub']) == ('ok', 'ok', 'note')


def test_for_programs_it_is_a_list(capfd):
    assert main(['doctor', '--offline', '--json']) == 0
    kept = json.loads(capfd.readouterr().out)
    assert all(set(row) == {'name', 'state', 'says', 'remedy'} for row in kept)
    (torch_row,) = [row for row in kept if row['name'] == 'torch']
    assert torch_row['says'].startswith(torch.__version__)


def test_a_dry_run_looks_at_nothing(monkeypatch, capfd):
    monkeypatch.setattr(doctor, 'about_disk', lambda: pytest.fail('it looked'))
    assert main(['doctor', '--dry-run']) == 0
    assert 'dry run: nothing was done' in capfd.readouterr().out


def test_without_torch_the_rest_is_left_out_and_the_code_is_1(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert main(['doctor', '--offline']) == 1
    said = capfd.readouterr()
    assert 'pip install "torch>=2.10" torchvision' in said.out
    assert 'speed' not in said.out
    assert 'disk' in said.out
    assert said.err == 'balanceddpo: broken: torch\n'


def test_a_package_that_is_missing_or_too_old_has_its_line(monkeypatch):
    there = {'torch': '2.9.1', 'numpy': '2.4.0'}

    def version(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    needs = ['torch>=2.10', 'numpy>=2', 'peft>=0.17', 'ray>=2.50; extra == "ray"']
    monkeypatch.setattr(metadata, 'requires', lambda name: needs)
    monkeypatch.setattr(metadata, 'version', version)
    assert found(doctor.about_packages) == {
        'packages': (
            'broken',
            'torch is 2.9.1, peft is missing',
            'pip install "torch>=2.10" "peft>=0.17"',
        )
    }
    there |= {'torch': '2.13.0+cpu', 'peft': '0.17'}
    assert found(doctor.about_packages)['packages'][0] == 'ok'


@pytest.mark.parametrize('extra', devices.EXTRAS)
def test_an_extra_that_is_not_installed_has_its_line(extra, monkeypatch):
    first = devices.EXTRAS[extra][0]
    monkeypatch.setitem(sys.modules, first, None)
    state, says, remedy = found(doctor.about_extras)[f'[{extra}]']
    assert (state, remedy) == ('note', f'pip install "balanceddpo[{extra}]"')
    assert says.startswith(f'without {first}')


def test_an_old_python_is_told(monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 10, 4, 'final', 0))
    told = ('broken', '3.10.4', 'install Python 3.11 or newer')
    assert found(doctor.about_python) == {'Python': told}


@pytest.mark.parametrize(
    ('free', 'state'), [(0.5e9, 'broken'), (20e9, 'note'), (200e9, 'ok')], ids=str
)
def test_a_full_disk_is_told(free, state, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: asked.append(p) or Usage(1e12, 0, free))
    assert found(doctor.about_disk)['disk'][0] == state
    assert asked == [tmp_path]  # `runs` in it is not there yet


def test_results_that_cannot_be_written_are_told(monkeypatch, tmp_path):
    assert found(doctor.about_runs)['results'][0] == 'ok'
    assert not [*tmp_path.iterdir()]  # and nothing was made
    (tmp_path / 'runs').write_text('no folder')
    state, says, remedy = found(doctor.about_runs)['results']
    assert state == 'broken'
    assert 'cannot be written' in says
    assert 'BALANCEDDPO_RUNS' in remedy


def test_a_numeric_path_that_does_not_exist_is_told(monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', 'fast')
    assert found(doctor.looked, 'balanceddpo', doctor.about_package)['balanceddpo'] == (
        'broken',
        "BALANCEDDPO_NUMERICS is 'fast': use auto, plain, onednn",
        'unset BALANCEDDPO_NUMERICS',
    )


def pretend_gpu(monkeypatch, driver, built, capability=None, kernels=()):
    "A machine with a driver or none, a build of torch, and a GPU that it can use or none."
    there = capability is not None
    monkeypatch.setattr(shutil, 'which', lambda name: '/bin/nvidia-smi' if driver else None)
    monkeypatch.setattr(torch.version, 'cuda', built)
    monkeypatch.setattr(devices, 'pick_device', lambda: torch.device('cuda' if there else 'cpu'))
    for name, value in {
        'device_count': lambda: int(there),
        'mem_get_info': lambda index: (60_000_000_000, 80_000_000_000),
        'get_device_name': lambda index: 'Big GPU',
        'get_device_capability': lambda index: capability,
        'get_arch_list': lambda: list(kernels),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize(
    ('machine', 'state', 'remedy'),
    [
        ((False, None), 'ok', ''),
        ((True, None), 'note', 'install a build of torch for CUDA'),
        ((True, '13.0'), 'note', 'update the driver, or install an older build'),
        ((True, '13.0', (9, 0), ['sm_90']), 'ok', ''),
    ],
)
def test_a_torch_that_does_not_fit_the_driver_is_told(machine, state, remedy, monkeypatch):
    pretend_gpu(monkeypatch, *machine)
    seen, _, told = found(doctor.about_devices)['device']
    assert (seen, told) == (state, remedy)


def test_a_gpu_tells_its_memory_and_whether_torch_has_kernels_for_it(monkeypatch):
    pretend_gpu(monkeypatch, True, '13.0', (9, 0), ['sm_80', 'sm_90'])
    told = ('ok', 'Big GPU, 60 GB of 80 GB free', '')
    assert found(doctor.about_devices)['GPU 0'] == told
    pretend_gpu(monkeypatch, True, '13.0', (12, 0), ['sm_80', 'sm_90'])
    state, says, _ = found(doctor.about_devices)['GPU 0']
    assert state == 'broken'
    assert 'no kernels for its capability 12.0' in says


def test_the_rate_counts_two_operations_a_multiplication(monkeypatch):
    "With a clock that moves a millisecond at each look, n products take about n milliseconds."
    ticks = iter(range(10**6))
    monkeypatch.setattr(doctor.time, 'perf_counter', lambda: next(ticks) / 1000)
    rate = doctor.product_rate(torch.device('cpu'), torch.float32, 0.1)
    assert rate == pytest.approx(2 * 64**3 / 1e-3 / 1e9, rel=0.02)


def test_what_is_in_the_cache_is_found_there(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    before = found(doctor.about_scorers)
    assert {state for state, _, _ in before.values()} == {'note'}
    assert before['hps'][1:] == (
        'xswu/HPSv2 not in the cache of the Hub',
        'downloaded at its first use, or name a copy, --scorers hps=PATH',
    )
    place = tmp_path / 'models--xswu--HPSv2'
    (place / 'refs').mkdir(parents=True)
    (place / 'refs/main').write_text('abc')
    (place / 'snapshots/abc').mkdir(parents=True)
    (place / 'snapshots/abc/HPS_v2_compressed.pt').write_bytes(b'weights')
    after = found(doctor.about_scorers)
    assert after['hps'][0] == 'ok'
    assert {k: v for k, v in after.items() if k != 'hps'} == {
        k: v for k, v in before.items() if k != 'hps'
    }


def test_the_base_models_are_those_of_the_table_of_methods():
    models = doctor.base_models()
    assert 'stable-diffusion-v1-5/stable-diffusion-v1-5' in models
    assert 'stabilityai/stable-diffusion-xl-base-1.0' in models
    assert len(models) == len(set(models))


@contextmanager
def hub(answer):
    "A server that answers each request with a code."

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(('127.0.0.1', 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


def ask(monkeypatch, place):
    "What is found of a Hub at a place."
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', place)
    return found(doctor.about_hub, False)['Hub']


def test_a_hub_that_answers(monkeypatch):
    with hub(200) as place:
        assert ask(monkeypatch, place) == ('ok', f'{place} answers', '')
    with hub(503) as place:
        assert ask(monkeypatch, place)[:2] == ('note', f'{place} answers with an error (503)')


def test_a_hub_that_refuses_or_is_silent_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(doctor, 'PATIENCE', 0.2)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        place = f'http://127.0.0.1:{silent.getsockname()[1]}'
        state, says, remedy = ask(monkeypatch, place)
        assert (state, remedy[:16]) == ('note', 'set HF_HUB_OFFLI')
    state, says, _ = ask(monkeypatch, place)  # now nobody listens
    assert state == 'note'
    assert says.startswith(f'{place} cannot be reached (')
    assert '\n' not in says


def test_a_hub_that_is_not_to_be_asked_is_not(monkeypatch):
    monkeypatch.setattr(constants, 'ENDPOINT', None)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    assert '(--offline)' in found(doctor.about_hub, True)['Hub'][1]
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert '(HF_HUB_OFFLINE is set)' in found(doctor.about_hub, False)['Hub'][1]


def test_a_look_that_fails_is_a_finding(monkeypatch, capfd):
    def fail():
        raise RuntimeError('the library\nis ill')
        yield

    monkeypatch.setattr(doctor, 'about_torchvision', fail)
    assert main(['doctor', '--offline']) == 1
    said = capfd.readouterr()
    assert 'broken  torchvision    RuntimeError: the library is ill' in said.out
    assert 'Hub' in said.out  # it went on
    assert said.err == 'balanceddpo: broken: torchvision\n'


@pytest.mark.parametrize(
    ('module', 'declared', 'state'), [(None, [], 'broken'), (torch, [1], 'note'), (torch, [], 'ok')]
)
def test_a_torchvision_of_another_build_is_told(module, declared, state, monkeypatch):
    monkeypatch.setattr(devices, 'ensure_torchvision', lambda: module)
    monkeypatch.setattr(devices, '_DECLARED', declared)
    seen, _, remedy = found(doctor.about_torchvision)['torchvision']
    assert seen == state
    assert ('mend_torchvision' in remedy) == (state == 'note')
