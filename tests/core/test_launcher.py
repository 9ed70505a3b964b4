"""What a launcher may decide: nothing that changes a number."""

import re
from pathlib import Path

import accelerate
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.launcher import HAS_NO_SAY, MAY_DECIDE, check_launcher


@pytest.mark.parametrize('way', ['DEEPSPEED', 'FSDP', 'MEGATRON_LM', 'PARALLELISM_CONFIG', 'NEW'])
def test_ways_to_cut_a_model_are_refused_by_name(way):
    with pytest.raises(InputError, match=f'ACCELERATE_USE_{way} is set, and {way} is not'):
        check_launcher({f'ACCELERATE_USE_{way}': 'true'})
    check_launcher({f'ACCELERATE_USE_{way}': 'False'})


def test_the_environment_of_this_process_is_looked_at(monkeypatch):
    check_launcher()
    monkeypatch.setenv('ACCELERATE_SOMETHING_NEW', '1')
    with pytest.raises(InputError, match='ACCELERATE_SOMETHING_NEW is set'):
        check_launcher()


def test_every_variable_of_the_launcher_was_looked_at():
    "A newer accelerate hands on more: each has to be put into a list, or is refused."
    launch = Path(accelerate.__file__).parent / 'utils' / 'launch.py'
    names = set(re.findall(r'ACCELERATE_[A-Z0-9_]*[A-Z0-9]', launch.read_text()))
    assert len(names) > 20
    decided = {n for n in names if n in MAY_DECIDE or n.startswith(tuple(HAS_NO_SAY))}
    refused = {n for n in names - decided if n.startswith(('ACCELERATE_USE_', 'ACCELERATE_SAGE'))}
    assert names - decided - refused == set()
