"What the tests of the scorers share."

import pytest

from tiny_scorers import write_tiny_scorers


@pytest.fixture(scope='session')
def models(tmp_path_factory):
    "A folder with hps (open_clip), clip, pickscore (transformers) and aesthetic, random weights."
    return write_tiny_scorers(tmp_path_factory.mktemp('models'))
