"""On a base install, what an extra would bring is told in one line with the command that installs
it."""

import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType

from balanceddpo.command import studies
from balanceddpo.core import devices
from balanceddpo.core.errors import InputError
from balanceddpo.icon_world.checks import edge_scores, structure_scores
from balanceddpo.training import run as training_run
from short_commands import train_words

LABEL = 'label --pairs hub:owner/name --method human --out labels.parquet'
CASES = [
    ('repro', ['reproduce', 'table1', '--scale', 'smoke', '--dry-run'], 'reproduce'),
    ('repro', ['reproduce', 'all', '--from-scores'], 'reproduce'),
    ('hub', LABEL.split(), 'hub:owner/name'),
    ('hub', 'encode --pairs hub:owner/name --model icons --out e'.split(), 'hub:owner/name'),
]
EACH = [(m, e, words, what) for e, words, what in CASES for m in devices.EXTRAS[e]]


@pytest.mark.parametrize(('module', 'extra', 'words', 'what'), EACH)
def test_a_module_of_an_extra_is_told(module, extra, words, what, monkeypatch, tmp_path, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    told = f'balanceddpo: {what} needs {module}: pip install "balanceddpo[{extra}]"'
    assert run(*words, code=2) == told
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and p.name != '.lock']


@pytest.mark.parametrize('module', ['matplotlib', 'seaborn'])
def test_a_grid_needs_the_libraries_of_figures(module, monkeypatch, tmp_path, run):
    monkeypatch.setitem(sys.modules, module, None)
    told = f'balanceddpo: --grid needs {module}: pip install "balanceddpo[repro]"'
    assert run('icons', '--grid', tmp_path / 'grid', code=2) == told


def test_without_the_libraries_of_figures_the_rest_of_icons_is_there(monkeypatch, capsys):
    for module in devices.EXTRAS['repro']:
        monkeypatch.setitem(sys.modules, module, None)
    studies.icons(studies.IconsOptions())
    assert 'scorers' in capsys.readouterr().out


@pytest.mark.parametrize('check', [structure_scores, edge_scores])
def test_a_check_by_scikit_image(check, monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage', None)
    with pytest.raises(InputError, match=r'needs skimage: pip install "balanceddpo\[repro\]"'):
        check([], [])


def test_a_tracker_that_is_not_installed(encoded, world, run, monkeypatch):
    monkeypatch.setattr(training_run, 'get_available_trackers', list)
    words = train_words(world, encoded, '--out', encoded / 'model')
    words[words.index('--tracker') + 1] = 'tensorboard'
    told = 'pip install "balanceddpo[tensorboard]", or set it to none'
    assert told in run(*words, code=2)
    words[words.index('--tracker') + 1] = 'mlflow'
    assert 'mlflow is not installed: pip install mlflow, or' in run(*words, code=2)
    words[words.index('--tracker') + 1] = 'tensorbord'
    known = ', '.join(sorted(LOGGER_TYPE_TO_CLASS))
    told = f"not 'tensorbord': did you mean tensorboard? There are auto, none, {known}"
    assert told in run(*words, code=2)
    assert {t.value for t in LoggerType} - {'all'} == set(LOGGER_TYPE_TO_CLASS)


def test_the_optimizer_of_8_bits(encoded, world, run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    words = train_words(world, encoded, '--out', encoded / 'model', '--optimizer', 'adamw8bit')
    told = 'optimizer adamw8bit needs bitsandbytes: pip install "balanceddpo[8bit]"'
    assert run(*words, code=2) == f'balanceddpo: {told}'


def test_a_module_that_a_finder_refuses_or_that_was_made_by_hand(monkeypatch):
    class Refuses:
        def find_spec(self, name, path=None, target=None):
            if name == 'submitit':
                raise ModuleNotFoundError(name)

    monkeypatch.delitem(sys.modules, 'submitit', raising=False)
    monkeypatch.setattr(sys, 'meta_path', [Refuses(), *sys.meta_path])
    assert not devices.is_installed('submitit')
    monkeypatch.setitem(sys.modules, 'by_hand', type(sys)('by_hand'))
    assert devices.is_installed('by_hand')
    assert not devices.is_installed('no_such_module')
