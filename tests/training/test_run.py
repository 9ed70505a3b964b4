"""A run: devices, processes, models and pairs that cannot do what is asked, and rows that are cut
back."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType

from balanceddpo.command.options import option_comments
from balanceddpo.core.errors import InputError
from balanceddpo.training import run as training_run
from balanceddpo.training.checkpoints import checkpoints
from balanceddpo.training.config import TrainConfig
from balanceddpo.training.loop import train
from balanceddpo.training.run import check_made, compile_models, keep_rows, open_accelerator
from short_runs import assert_equal_runs, begin, go


def test_what_does_not_fit_is_refused(made, tmp_path):
    inputs = made()
    with pytest.raises(InputError, match='encoded at 32 pixels, the run wants 64'):
        go(inputs, tmp_path / 'a', resolution=64)
    with pytest.raises(InputError, match='nothing_like_it'):
        go(inputs, tmp_path / 'b', mode='lora', lora_targets=('nothing_like_it',))
    with pytest.raises(InputError, match='fp16 needs a GPU'):
        go(inputs, tmp_path / 'c', precision='fp16')
    with pytest.raises(InputError, match='unknown device'):
        go(inputs, tmp_path / 'd', device='gpu')
    inputs.labels = inputs.labels[inputs.labels.s == 0]
    with pytest.raises(InputError, match='10 of 12 encoded pairs have no label, 2 are undecided'):
        go(inputs, tmp_path / 'e')


@pytest.mark.parametrize('name', ['metrics.jsonl', 'skipped.jsonl'])
def test_torn_and_later_rows_go(tmp_path, name):
    (tmp_path / name).write_bytes(
        b'{"step": 1}\n{"step": 3}\nnot json\n[1]\n{"step": 2}\n{"ste\xff'
    )
    keep_rows(tmp_path / name, 2)
    assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'
    keep_rows(tmp_path / 'absent', 2)
    assert not (tmp_path / 'absent').exists()


def test_processes_must_not_share_a_batch_whose_pairs_are_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda self: 2))
    config = TrainConfig(
        model='none',
        method='kto',
        beta=None,
        batch_size=4,
        micro_batch_size=4,
        device='cpu',
        precision='fp32',
        tracker='none',
    )
    with pytest.raises(
        InputError, match='kto compares a pair with the others of its batch, which 2 processes'
    ):
        open_accelerator(config, tmp_path)
    given = replace(config, options=('kl=0',))
    assert open_accelerator(given, tmp_path).num_processes == 2


def test_another_gpu_than_the_first_is_not_silently_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(training_run, 'pick_device', torch.device)
    config = TrainConfig(model='none', device='cuda:1', tracker='none')
    with pytest.raises(InputError, match='CUDA_VISIBLE_DEVICES=1'):
        open_accelerator(config, tmp_path)


def test_a_launchers_settings_change_no_number(made, tmp_path, monkeypatch):
    "With accumulation over four, accelerate would divide each gradient by four."
    go(made(), tmp_path / 'plain', max_steps=2)
    launched = {
        'ACCELERATE_GRADIENT_ACCUMULATION_STEPS': '4',
        'ACCELERATE_MIXED_PRECISION': 'bf16',
        'ACCELERATE_DYNAMO_BACKEND': 'eager',
        'ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION': 'true',
        'ACCELERATE_GRADIENT_CLIPPING': '0.001',
        'ACCELERATE_USE_CPU': 'true',
        'ACCELERATE_DEBUG_MODE': 'true',
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    go(made(), tmp_path / 'launched', max_steps=2)
    assert_equal_runs(tmp_path / 'plain', tmp_path / 'launched')


def test_a_way_to_cut_the_model_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    config = TrainConfig(model='none', device='cpu', tracker='none')
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    with pytest.raises(InputError, match='ACCELERATE_USE_FSDP'):
        train(config, None, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_run_is_not_moved_to_another_device(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, 'pick_device', lambda _: torch.device('cuda'))
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    config = TrainConfig(model='none', device='cuda', tracker='none')
    with pytest.raises(InputError, match='put the run on cpu, its device is cuda: set device'):
        open_accelerator(config, tmp_path)


def test_what_accelerate_made_is_looked_at(tmp_path, monkeypatch):
    config = TrainConfig(model='none', device='cpu', tracker='none')
    made = open_accelerator(config, tmp_path)
    made.gradient_state.plugin_kwargs = {'num_steps': 4}
    with pytest.raises(InputError, match="'accumulates': 4"):
        check_made(made, config, torch.device('cpu'))


def test_a_tracker_that_is_not_installed_is_refused_before_training(tmp_path, monkeypatch):
    trackers = [LoggerType.TENSORBOARD]
    monkeypatch.setattr(training_run, 'get_available_trackers', lambda: trackers)
    config = TrainConfig(model='none', device='cpu', tracker='wandb')
    with pytest.raises(InputError, match='wandb is not installed: pip install wandb, or set'):
        train(config, None, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    config = replace(config, tracker='tensorboard')
    assert open_accelerator(config, tmp_path / 'out').log_with == trackers
    trackers.clear()
    told = r'tensorboard is not installed: pip install "balanceddpo\[tensorboard\]", or set it'
    with pytest.raises(InputError, match=told):
        open_accelerator(config, tmp_path / 'out')


def test_a_tracker_that_nobody_named_is_tensorboard_if_it_is_installed(tmp_path, monkeypatch):
    trackers = [LoggerType.WANDB, LoggerType.TENSORBOARD]
    monkeypatch.setattr(training_run, 'get_available_trackers', lambda: trackers)
    config = TrainConfig(model='none', device='cpu')
    assert training_run.tracker_of(config) == 'tensorboard'
    trackers.pop()
    assert training_run.tracker_of(config) is None
    assert training_run.tracker_of(replace(config, tracker='none')) is None
    assert training_run.tracker_of(replace(config, tracker='wandb')) == 'wandb'


def test_every_tracker_that_accelerate_knows_can_be_named():
    for name in LOGGER_TYPE_TO_CLASS:
        assert TrainConfig(model='none', tracker=name).tracker == name
    comment = option_comments(TrainConfig)['tracker']
    assert set(LOGGER_TYPE_TO_CLASS) - {'tensorboard'} <= set(re.findall(r'\w+', comment))
    with pytest.raises(InputError, match="tracker .* not 'tensorbord': did you mean tensorboard"):
        TrainConfig(model='none', tracker='tensorbord')


def test_blocks_can_be_compiled_only_where_there_are_some():
    with pytest.raises(
        InputError, match='Linear names no blocks that repeat: set compiled to whole'
    ):
        compile_models([torch.nn.Linear(1, 1)], 'blocks')


def test_a_model_that_could_not_be_saved_is_refused_before_training(made, tmp_path):
    inputs = made()
    base = shutil.copytree(inputs.base, tmp_path / 'base')
    shutil.rmtree(base / 'text_encoder')
    with pytest.raises(InputError, match="names the part 'text_encoder'"):
        go(inputs, tmp_path / 'run', model=str(base))
    assert not checkpoints(tmp_path / 'run' / 'checkpoints')


def test_training_asks_for_no_autoencoder(made, tmp_path):
    family = begin(made(), tmp_path).family
    with pytest.raises(InputError, match='the vae of .* was not loaded'):
        _ = family.vae
