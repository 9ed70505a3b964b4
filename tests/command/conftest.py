"""What the tests of the command line share: a tiny world, and ways to run a command or have it
refused."""

import pytest

from balanceddpo.cli import main
from balanceddpo.core.progress import is_log_line
from short_commands import encode_words, label_words, make_tiny_world


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    "A tiny pipeline, scorers, pairs and prompts; made once."
    return make_tiny_world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def run(capfd):
    def run(*words, code=0):
        "Run the command in this process; returns what it printed."
        found = main(list(map(str, words)))
        said = capfd.readouterr()
        assert found == code, said.err
        if not code:
            return said.out
        lines = [s for s in said.err.splitlines() if s.strip() and not is_log_line(s)]
        assert len(lines) == 1, said.err
        assert lines[0].startswith('balanceddpo: '), said.err
        return lines[0]

    return run


@pytest.fixture
def refused(world, run):
    "What the command says of words that it refuses, in one line and with code 2; {w} is the world."
    return lambda words: run(*words.format(w=world).split(), code=2).lower()


@pytest.fixture
def encoded(world, tmp_path, run, monkeypatch):
    "A folder with labels and encoded pairs; from then on no model can be loaded."
    run(*label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet'))
    run(*encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded'))
    from balanceddpo.models import families
    from balanceddpo.scoring import encoders

    for module, name in (
        (families, 'load_part'),
        (encoders, 'transformers_encoder'),
        (encoders, 'open_clip_encoder'),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('a model was loaded'))
    return tmp_path
