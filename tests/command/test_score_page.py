"""docs/score_anything.md, followed from top to bottom with less to draw."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

PAGE = (Path(__file__).resolve().parents[2] / 'docs/score_anything.md').read_text(encoding='utf-8')
SMALL = {'--limit': '2', '--steps': '2', '--images-per-prompt': '1'}


def smaller(words):
    "A command with less to draw."
    return [SMALL.get(before, word) for before, word in zip(['', *words], words)]


def test_the_page_can_be_followed(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    said = []
    for language, text in re.findall(r'```(sh|python)\n(.*?)```', PAGE, re.S):
        if language == 'python':
            exec(text, {})
            continue
        for line in text.splitlines():
            said.append(run(*smaller(shlex.split(line))[1:]))
    assert 'prompts: the index of balanceddpo sample' in said[1]
    assert 'their prompts: the one that is given for all' in said[2]
    assert 'theirs: prompts of work/theirs come from the .txt beside each picture' in said[3]
    scores = pd.read_csv(tmp_path / 'work/scores.csv')
    kinds = ['hps', 'clip', 'pickscore', 'aesthetic']
    assert list(scores) == ['file', 'prompt', *kinds, 'pickscore_unit']
    # the pictures that were copied have the scores of those that they are copies of
    compared = pd.read_parquet(tmp_path / 'work/results/scores.parquet')
    theirs = compared[compared.model == 'theirs']
    for kind in kinds:
        assert sorted(theirs[kind]) == pytest.approx(sorted(scores[kind]), abs=1e-5)
