"""A Hub that does not answer: asked once, and told at once."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from balanceddpo.core.hub_access import is_repository_name


@contextmanager
def stand_in(answer=b''):
    "A server that counts who connects, and answers with these bytes; (address, the callers)."
    callers = []
    with socket.create_server(('127.0.0.1', 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # the server is closed
                    return
                with connection:
                    callers.append(connection.recv(4096).split(b'\r\n')[0])
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f'http://127.0.0.1:{server.getsockname()[1]}', callers
        server.shutdown(socket.SHUT_RDWR)


def run_with_hub(code, endpoint, tmp_path):
    "(exit code, stdout, lines of stderr) of a new process for which the Hub is at `endpoint`."
    env = {k: v for k, v in os.environ.items() if 'OFFLINE' not in k and 'proxy' not in k.lower()}
    env |= {'HF_ENDPOINT': endpoint, 'HF_HOME': str(tmp_path / 'hub'), 'COLUMNS': '80'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    return done.returncode, done.stdout, done.stderr.splitlines()


LABEL = """
import sys; from balanceddpo.cli import main
sys.exit(main('label --pairs icons --limit 4 --scorers hps clip --device cpu'.split()))
"""


def test_a_silent_hub_is_asked_once_and_told_in_one_line(tmp_path):
    with stand_in() as (endpoint, callers):
        code, _, said = run_with_hub(LABEL, endpoint, tmp_path)
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith('balanceddpo: xswu/HPSv2: HPS_v2_compressed.pt is not to be had')
    assert f'({endpoint} does not answer (' in said[0]
    assert len(callers) == 1, callers


def test_an_address_that_refuses_is_told_too(tmp_path):
    code, _, said = run_with_hub(LABEL, 'http://127.0.0.1:9', tmp_path)
    assert (code, len(said)) == (2, 1), said
    assert '(http://127.0.0.1:9 does not answer (' in said[0]


EVERYTHING = """
from pathlib import Path
from balanceddpo.core.errors import refusal
from balanceddpo.core.hub_access import why_no_hub
from balanceddpo.models.folders import local_folder
from balanceddpo.scoring.registry import load_scorer
folder = Path({folder!r})
folder.mkdir()
(folder / 'config.json').write_text('{{}}')
for spec in ('clip', 'aesthetic', f'pickscore={{folder}}', 'clip=owner/name'):
    print(refusal(load_scorer, spec, 'cpu'))
print(refusal(local_folder, 'owner/name'))
print(refusal(local_folder, 'icon'))
print(why_no_hub())
"""


def test_models_scorers_and_processors_share_the_one_answer(tmp_path):
    code = EVERYTHING.format(folder=str(tmp_path / 'model'))
    with stand_in() as (endpoint, callers):
        status, out, said = run_with_hub(code, endpoint, tmp_path)
    assert status == 0, said
    *refusals, no_model, why = out.splitlines()
    assert len(refusals) == 5
    assert all(f'{endpoint} does not answer' in line for line in refusals)
    assert 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K: preprocessor' in refusals[2] or (
        'laion/CLIP-ViT-H-14-laion2B-s32B-b79K: config.json' in refusals[2]
    )
    assert no_model.startswith("there is no model 'icon': did you mean icons")
    assert why.startswith(endpoint)
    assert len(callers) == 1, callers


def test_a_hub_that_answers_is_there_whatever_it_says(tmp_path):
    code = 'from balanceddpo.core.hub_access import why_no_hub as w; print(repr(w()), repr(w()))'
    answer = b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
    with stand_in(answer) as (endpoint, callers):
        status, out, said = run_with_hub(code, endpoint, tmp_path)
    assert (status, out) == (0, "'' ''\n"), said
    assert [line.split()[0] for line in callers] == [b'HEAD']


def test_a_dataset_of_the_hub_is_told_at_once_too(tmp_path):
    code = LABEL.replace('--pairs icons', '--pairs hub:owner/name').replace('hps clip', 'icons')
    with stand_in() as (endpoint, callers):
        status, _, said = run_with_hub(code, endpoint, tmp_path)
    assert (status, len(said)) == (2, 1), said
    assert f"hub:owner/name, split 'train': {endpoint} does not answer" in said[0]
    assert len(callers) == 1, callers


@pytest.mark.parametrize('text', ['./folder', '../x', 'a/.b', '/a/b', 'a', 'a/b/c', 'a b/c', ''])
def test_a_path_is_no_name_of_a_repository(text):
    assert not is_repository_name(text)
    assert is_repository_name('stable-diffusion-v1-5/stable-diffusion-v1-5')
