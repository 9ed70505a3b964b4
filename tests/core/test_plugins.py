"""Entry points of installed packages: found without an import, loaded by name, told in one line."""

import subprocess
import sys

import pytest
from plugin_package import install

from balanceddpo.core.errors import InputError
from balanceddpo.core.plugins import blamed_on, load_named, names_offered


def test_a_package_is_imported_when_one_of_its_names_is_asked_for(tmp_path, monkeypatch):
    code = 'def lines(path):\n    return 3\n'
    module = install(tmp_path, monkeypatch, code, readers={'lines': 'lines'})
    assert names_offered('readers') == ['lines']
    assert load_named('readers', 'pages') is None
    assert load_named('losses', 'lines') is None
    assert module not in sys.modules
    assert load_named('readers', 'lines')('') == 3
    monkeypatch.delitem(sys.modules, module)


def test_importing_the_package_does_not_look_for_plug_ins(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, '1 / 0', scorers={'broken': 'x'})
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        'import balanceddpo.cli, balanceddpo.voting.config\n'
        "assert 'my_plugins' not in sys.modules and 'importlib.metadata' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    'code, says',
    [
        ('import no_such_module', "line 1): ModuleNotFoundError: No module named 'no_such_module'"),
        ('\n1 / 0', 'line 2): ZeroDivisionError: division by zero'),
        ('import sys\nsys.exit(0)', 'line 2): it ends the program (sys.exit, code 0)'),
        ('x = 1', "AttributeError: module 'my_plugins' has no attribute 'lines'"),
        ('def (', 'SyntaxError'),
    ],
)
def test_a_package_that_fails_is_told_with_its_name(tmp_path, monkeypatch, code, says):
    module = install(tmp_path, monkeypatch, code, readers={'lines': 'lines'})
    with pytest.raises(InputError) as told:
        load_named('readers', 'lines')
    sys.modules.pop(module, None)
    line = str(told.value)
    assert line.startswith("the reader 'lines' of the package my-plugins 1.0 failed")
    assert says in line
    assert '\n' not in line


def test_a_name_of_two_packages_is_refused(tmp_path, monkeypatch):
    for name in ('ours', 'theirs'):
        install(tmp_path / name, monkeypatch, 'x = 1', name=name, losses={'both': 'x'})
    with pytest.raises(InputError, match="'both' is offered by ours 1.0 and theirs 1.0"):
        load_named('losses', 'both')


def test_what_is_nobodys_fault_stays_what_it_is():
    class OutOfMemoryError(RuntimeError):
        pass

    for error in (MemoryError(), OutOfMemoryError(), OSError(28, 'full'), KeyboardInterrupt()):
        with pytest.raises(type(error)), blamed_on('mine'):
            raise error
    with pytest.raises(InputError, match='^no such weights$'), blamed_on('mine'):
        raise InputError('no such weights')
