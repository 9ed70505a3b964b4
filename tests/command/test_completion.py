"""balanceddpo completion: what bash offers for the words of a command."""

import shutil
import subprocess
import sys

import pytest

from balanceddpo.cli import ORDER
from balanceddpo.command.completion import completion_script


@pytest.fixture(scope='module')
def offered(tmp_path_factory):
    "What bash offers for the last word of a line, by the function that it registers."
    script = tmp_path_factory.mktemp('bash') / 'balanceddpo.bash'
    script.write_text(completion_script('bash'))

    def offer(*words):
        code = """
source "$1"; shift
read -r _ _ function _ < <(complete -p balanceddpo)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""
        done = subprocess.run(
            ['bash', '-c', code, 'bash', script, 'balanceddpo', *words],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ''
        return done.stdout.split()

    return offer


def test_verbs_are_completed(offered):
    assert set(ORDER) <= set(offered(''))
    assert offered('al') == ['align']
    assert set(offered('e')) == {'encode', 'evaluate', 'export'}


def test_the_options_of_the_verb_are_completed(offered):
    refresh = {f'--refresh-{what}' for what in ('every', 'alpha', 'drift')}
    assert set(offered('align', 'BalancedDPO', '--refresh')) == refresh
    assert offered('label', '--refresh') == []  # which is not an option of label
    assert '--no-resume' in offered('align', '--no-')
    assert offered('sample', '--print-c') == ['--print-config']
    assert offered('label', '--pairs', 'x', '--dtype', 'b') == ['bf16']
    assert offered('label', '--method', 's') == [
        'single',
        'sum_scores',
        'sum_logits',
        'sum_losses',
        'smoothed',
    ]


def test_a_path_is_completed_from_files(offered, tmp_path):
    (tmp_path / 'run.yaml').touch()
    assert offered('align', '--config', f'{tmp_path}/ru') == [f'{tmp_path}/run.yaml']


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_each_shell_has_a_script_that_needs_nothing_of_ours(shell):
    script = completion_script(shell)
    assert '--refresh-every' in script
    assert 'import balanceddpo' not in script
    if which := shutil.which(shell):
        assert subprocess.run([which, '-n'], input=script, text=True).returncode == 0


def test_it_is_printed_without_a_numeric_library():
    code = """
import sys; from balanceddpo.cli import main
assert main(['completion', 'bash']) == 0
assert not {m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'pandas', 'diffusers'}
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'complete -F' in done.stdout
