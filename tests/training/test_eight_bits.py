"""AdamW with moments of 8 bits, by bitsandbytes."""

import sys

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.training.checkpoints import newest_checkpoint
from short_runs import begin, go

RUN = dict(mode='full', max_steps=3, learning_rate=1e-3)


def vector(tensors):
    return torch.cat([v.detach().flatten() for v in tensors])


def test_it_moves_the_weights_as_adamw_does_with_a_byte_for_each_moment(made, tmp_path):
    start = vector(begin(made(), tmp_path / 'start', **RUN).parameters)
    ends = []
    for name in ('adamw', 'adamw8bit'):
        go(made(), tmp_path / name, optimizer=name, **RUN)
        newest = newest_checkpoint(tmp_path / name / 'checkpoints')
        ends.append(vector(newest.load('policy').values()))
    exact, short = (end - start for end in ends)
    assert torch.cosine_similarity(exact, short, 0) > 0.98
    assert not torch.equal(exact, short)
    kept = newest.load('optimizer')['state'].values()
    moments = [state['__bnb_optimizer_quant_state__']['state1'] for state in kept]
    large = [m for m in moments if m.numel() >= 4096]
    assert large
    assert {m.dtype for m in large} == {torch.uint8}


def test_without_bitsandbytes_it_is_refused_at_once(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    with pytest.raises(InputError, match=r'needs bitsandbytes: pip install "balanceddpo\[8bit\]"'):
        go(made(), tmp_path / 'run', optimizer='adamw8bit', **RUN)
    assert not (tmp_path / 'run').exists()
