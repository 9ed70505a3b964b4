"""Label settings: what contradicts itself is refused, and every method has a labeller."""

import subprocess
import sys
from typing import get_args

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.voting.config import MAJORITY, LabelConfig, LabelMethod
from balanceddpo.voting.labels import LABELLERS


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(InputError, match='method single needs a scorer'):
        LabelConfig('single')
    with pytest.raises(InputError, match='majority takes no scorer'):
        LabelConfig('majority', scorer='a')
    with pytest.raises(InputError, match='method smoothed needs a scorer'):
        LabelConfig('smoothed')
    with pytest.raises(InputError, match='limits'):
        LabelConfig(limits=(0.0, 1.0))


def test_every_method_but_given_has_a_labeller():
    assert set(get_args(LabelMethod)) == {*LABELLERS, 'given'}
    assert MAJORITY.method == 'majority'
    assert MAJORITY.ties == 'drop'


def test_the_settings_import_nothing_heavy():
    code = """
import sys
import balanceddpo.voting.config
assert not {'numpy', 'pandas', 'pyarrow', 'torch'} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
