"""What a command says while it runs: lines where stderr is a file, a bar where it is a terminal,
and the same results whatever is said."""

import os
import re
import subprocess
import sys

import pytest

from balanceddpo.cli import main
from balanceddpo.core.progress import is_log_line
from short_commands import encode_words, label_words, scorer_texts, train_words

COMMAND = [sys.executable, '-m', 'balanceddpo.cli']


def environ(place, **more):
    "The environment of a command whose stages say how far they are whenever they can."
    return os.environ | {'BALANCEDDPO_RUNS': str(place), 'BALANCEDDPO_LOG_SECONDS': '0', **more}


def labelling(world, out, *more):
    words = label_words(world, '--scorers', *scorer_texts(world, ('clip',)), '--out', out, *more)
    return [*COMMAND, *map(str, words)]


def said_by(words, place, **more):
    "The lines of stderr of a command that ends well."
    done = subprocess.run(words, env=environ(place, **more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_off_a_terminal_there_are_lines_with_a_rate_and_no_bar(world, tmp_path):
    log, words = tmp_path / 'log', labelling(world, tmp_path / 'labels.parquet')
    with log.open('w') as file:
        both = dict(stdout=file, stderr=subprocess.STDOUT)
        assert subprocess.run(words, env=environ(tmp_path / 'runs'), **both).returncode == 0
    text = log.read_text()
    lines = [line.split(' INFO ')[1] for line in text.splitlines() if is_log_line(line)]
    assert lines[0].startswith('scoring: begins, 8 pairs, ')
    rate = r'scoring: 8 of 8 pairs, [\d.e+]+ (pairs/s|s/pair), 0 seconds left, [\d.]+ GB of memory'
    assert any(re.fullmatch(rate, line) for line in lines)
    assert re.match(r'scoring: ended with 8 pairs after [\d.]+ seconds', lines[-1])
    assert '\r' not in text
    assert '|' not in text


@pytest.mark.skipif(sys.platform == 'win32', reason='there are no pseudoterminals')
def test_on_a_terminal_there_is_a_bar_and_no_line(world, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    words = labelling(world, tmp_path / 'labels.parquet')
    child = subprocess.Popen(
        words, env=environ(tmp_path / 'runs'), stderr=slave, stdout=subprocess.DEVNULL
    )
    os.close(slave)
    seen = b''
    try:
        while part := os.read(master, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert child.wait() == 0
    text = seen.decode()
    assert re.search(r'\rscoring: 100%\|\S+\| 8/8 ', text)
    assert not any(is_log_line(line) for line in text.splitlines())


def test_a_level_decides_what_is_said_and_nothing_else(world, tmp_path):
    files = {}
    for level in ('info', 'error', 'off'):
        out = tmp_path / level / 'labels.parquet'
        lines = said_by(labelling(world, out, '--log-level', level), tmp_path / level / 'runs')
        assert any(map(is_log_line, lines)) == (level == 'info')
        files[level] = out.read_bytes()
    assert files['info'] == files['error'] == files['off']


def test_encoding_training_and_drawing_say_how_far_they_are(
    world, tmp_path, run, monkeypatch, capfd
):
    monkeypatch.setenv('BALANCEDDPO_LOG_SECONDS', '0')
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    said = {}
    draw = f'sample --model {world}/model --prompt cat dog --steps 2 --resolution 32 --device cpu'
    for name, words in (
        ('label', label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet')),
        ('encode', encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded')),
        ('train', train_words(world, tmp_path, '--out', tmp_path / 'run', '--log-every', 1)),
        ('sample', [*draw.split(), '--images-per-prompt', 2, '--out', tmp_path / 'images']),
    ):
        assert main([*map(str, words)]) == 0
        said[name] = capfd.readouterr().err
    assert 'INFO encoding: 8 of 8 pairs, ' in said['encode']
    assert re.search(r'INFO training: 2 of 2 steps, .* loss [\d.]+, accuracy [\d.]+', said['train'])
    assert 'INFO images: 4 of 4 images, ' in said['sample']


@pytest.mark.parametrize(
    ('share', 'more', 'says'),
    [
        ('0/2', (), {'INFO scoring (1 of 2)'}),
        ('1/2', (), set()),
        ('1/2', ('--log-level', 'debug'), {'DEBUG scoring (2 of 2)'}),
    ],
)
def test_of_processes_that_share_a_stage_the_first_is_heard(world, tmp_path, share, more, says):
    words = labelling(world, tmp_path / 'labels.parquet', *more)
    lines = said_by(words, tmp_path / 'runs', BALANCEDDPO_SHARE=share)
    log = [line for line in lines if is_log_line(line)]
    assert {line.split(' ', 2)[2].split(':')[0] for line in log} == says


def test_an_unknown_level_is_refused(refused):
    assert '--log-level cannot be' in refused('methods --log-level loud')
