"""Ways to label that an installed package offers."""

import sys

import numpy as np
import pytest
from plugin_package import install

from balanceddpo.core.errors import InputError
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import LABELLERS, check_voters, label_pairs
from made_scores import make_scores, make_table

CODE = """
import numpy as np

def first(ballot, config):
    return [[0.75, 0.25]] * len(ballot.pair_ids)

def short(ballot, config):
    return [[1.0, 0.0]]

def lost(ballot, config):
    return np.full((len(ballot.pair_ids), 2), np.nan)

def words(ballot, config):
    return 'image 0'

def fails(ballot, config):
    raise KeyError('nothing')
"""
NAMES = ('first', 'short', 'lost', 'words', 'fails')


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setattr('balanceddpo.voting.labels.LABELLERS', dict(LABELLERS))
    install(tmp_path, monkeypatch, CODE, labels={name: name for name in NAMES})
    yield
    sys.modules.pop('my_plugins', None)


TABLE = make_table(make_scores(n=6, K=3, seed=1, missing=0))


def test_a_way_to_label_by_its_name():
    labels = label_pairs(TABLE, LabelConfig('first'))
    assert labels[['w0', 'w1']].to_numpy().tolist() == [[0.75, 0.25]] * 6
    assert (labels.s == 1).all()
    assert labels.w0.dtype == np.float32


@pytest.mark.parametrize(
    'name, says',
    [
        ('short', "the way to label 'short' gave the shape [1, 2]"),
        ('lost', 'not finite'),
        ('words', "the way to label 'words' gave str"),
        ('fails', "the way to label 'fails' of the package my-plugins 1.0 failed"),
    ],
)
def test_one_that_gives_no_weights_is_told(name, says):
    with pytest.raises(InputError) as told:
        label_pairs(TABLE, LabelConfig(name))
    assert says in str(told.value)
    assert '\n' not in str(told.value)


def test_an_unknown_way_is_refused_before_anything_is_scored():
    with pytest.raises(InputError, match="unknown way to label 'most'"):
        check_voters(LabelConfig('most'), ('hps',))
