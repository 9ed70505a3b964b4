"""Settings for every test: no network, few threads, and the torchvision repair before anything
imports a model library."""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('MPLBACKEND', 'agg')
# the models of the tests are tiny, and two threads that wait for each other on a busy machine crawl
os.environ.setdefault('OMP_NUM_THREADS', '1')

import importlib
import importlib.util
import sys
import types

import pytest
import torch

from balanceddpo.core.devices import ensure_torchvision

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
# before the test modules are collected: they may import diffusers at their top
ensure_torchvision()


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path, monkeypatch):
    "A test that forgets to name a folder writes into its own, never into the repository's runs."
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))


@pytest.fixture
def hub(monkeypatch):
    "A Hub of this machine, which `huggingface_hub` takes for the Hub in this test."
    from local_hub import local_hub, use_hub

    with local_hub() as hub:
        use_hub(hub, monkeypatch)
        yield hub


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    "kind -> a tiny pipeline folder, its encoded pairs and their labels; made once."
    from short_runs import inputs_maker

    return inputs_maker(tmp_path_factory.mktemp('inputs'))


@pytest.fixture(scope='session')
def hpsv2_img_score(tmp_path_factory):
    """The original `hpsv2.img_score` module, made importable; fill its `model_dict` and call its
    `score(image, prompt, cp=...)`.

    Three things stand between the published wheel and an import. Its tokenizer's vocabulary file
    was left out (open_clip ships the same file). It imports `clint` for the progress bar of a
    download, and `turtle`, which it never uses and which needs Tk. None of them touches a score."""
    if importlib.util.find_spec('hpsv2') is None:
        pytest.fail(
            'hpsv2 is missing: `make test` installs it by `pip install --no-deps hpsv2==1.2.0`'
        )
    import gzip
    from pathlib import Path

    import open_clip

    vocabulary = Path(open_clip.__file__).parent / 'bpe_simple_vocab_16e6.txt.gz'
    absent = {'turtle': {'forward': None}, 'clint': {}, 'clint.textui': {'progress': None}}
    real = gzip.open

    def with_vocabulary(path, *args, **kwargs):
        found = vocabulary if Path(str(path)).name == vocabulary.name else path
        return real(found, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name, content in absent.items():
            patch.setitem(sys.modules, name, types.SimpleNamespace(**content))
        patch.setattr(gzip, 'open', with_vocabulary)
        # without it a folder is made in the home
        patch.setenv('HPS_ROOT', str(tmp_path_factory.mktemp('hpsv2')))
        return importlib.import_module('hpsv2.img_score')
