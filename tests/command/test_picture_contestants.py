"""balanceddpo evaluate with folders that another program has drawn."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import balanceddpo as bd
from balanceddpo.core.stages import runs_root
from balanceddpo.evaluation.win_rates import score_table, win_rates
from short_commands import DRAW


@pytest.fixture
def drawn(world, tmp_path, run):
    "Two sets of images of ours, and a folder with copies of the second that knows nothing of us."
    words = ['--prompts', world / 'prompts.txt', *DRAW]
    run('sample', '--model', world / 'model', *words, '--out', tmp_path / 'one')
    run('sample', '--model', world / 'model', *words, '--seed', 5, '--out', tmp_path / 'two')
    export(tmp_path / 'two', tmp_path / 'theirs')
    return tmp_path


def export(store, folder):
    "The images of a store as another program might leave them: names, and a text beside each."
    folder.mkdir()
    index = pd.read_parquet(store / 'index.parquet')
    for n, row in enumerate(index.itertuples()):
        shutil.copy(store / row.file, folder / f'{n:05}.png')
        (folder / f'{n:05}.txt').write_text(row.prompt)


def contest(world, *more):
    return ['evaluate', *more, '--scorers', f'clip={world}/clip', '--device', 'cpu']


def rates(folder):
    return pd.read_csv(folder / 'comparisons.csv')


def test_a_folder_counts_like_the_images_it_was_copied_from(world, drawn, run):
    "But for the seeds, which must agree between sets of ours: two seeds cannot be compared."
    said = run(*contest(world, f'a={drawn}/one', f'b={drawn}/theirs', '--out', drawn / 'out'))
    assert f'b: prompts of {drawn}/theirs come from the .txt beside each picture' in said
    scores = pd.read_parquet(drawn / 'out/scores.parquet')
    theirs = scores[scores.model == 'b']
    assert set(theirs.seed) == {-1}
    told = json.loads((drawn / 'out/provenance.json').read_text())
    assert told['parameters']['images']['b, prompts']['drawn'] == 'elsewhere'
    assert told['seeds'] == [0]
    # the same scores as those of the store, counted by hand
    run(*contest(world, f'a={drawn}/two', f'b={drawn}/two', '--out', drawn / 'same'))
    own = pd.read_parquet(drawn / 'same/scores.parquet').query("model == 'a'")
    assert sorted(theirs['clip']) == sorted(own['clip'])
    ours = scores[scores.model == 'a'].groupby('prompt_id')['clip'].max()
    wins = (theirs.groupby('prompt_id')['clip'].max() > ours).mean()
    assert rates(drawn / 'out').win_rate.tolist() == [wins]


def test_a_folder_beside_a_model_that_draws(world, drawn, run):
    prompts = ['--prompts', world / 'prompts.txt', *DRAW]
    words = contest(world, f'a={drawn}/theirs', f'b={world}/model')
    run(*words, *prompts, '--out', drawn / 'out')
    run(*contest(world, f'a={drawn}/theirs', f'b={drawn}/one'), '--out', drawn / 'kept')
    same = ['win_rate', 'wins', 'ties', 'n']
    assert rates(drawn / 'out')[same].equals(rates(drawn / 'kept')[same])
    # fewer pictures are needed: the first by name
    words += ['--prompts', world / 'prompts.txt', *DRAW, '--images-per-prompt', 1]
    with pytest.warns(UserWarning, match='2 are more than the 1 of a prompt'):
        run(*words, '--out', drawn / 'fewer')
    assert len(pd.read_parquet(drawn / 'fewer/scores.parquet')) == 4


def test_too_few_pictures_are_refused_before_anything_is_drawn(world, drawn, run):
    shutil.rmtree(runs_root(), ignore_errors=True)
    words = contest(world, f'a={drawn}/theirs', f'b={world}/model', *DRAW)
    said = run(*words, '--prompts', world / 'prompts.txt', '--images-per-prompt', 3, code=2)
    assert "needs 3 pictures (images_per_prompt), and 2 have fewer than 3: 'a red cat'" in said
    (drawn / 'more.txt').write_text('a red cat\na dog\na fox\n')
    said = run(*words, '--prompts', drawn / 'more.txt', code=2)
    assert 'every prompt of more needs 2 pictures' in said
    assert "1 of 3 have none: 'a fox'" in said
    assert not (runs_root() / 'sample').exists()
    assert 'name the prompts' in run(*words, code=2)


def test_two_folders_are_compared_on_what_they_share(world, drawn, run):
    export(drawn / 'one', drawn / 'others')
    (drawn / 'others/00003.png').unlink()  # a dog has one picture there
    shutil.copy(drawn / 'others/00000.png', drawn / 'others/a.png')
    (drawn / 'others/a.txt').write_text('an owl')
    words = contest(world, f'a={drawn}/theirs', f'b={drawn}/others')
    with pytest.warns(UserWarning) as told:
        run(*words, '--out', drawn / 'out')
    lines = [str(w.message) for w in told if 'left out' in str(w.message)]
    assert len(lines) == 2
    assert "1 belong to no prompt of prompts: 'an owl'; 1 are more than the 1" in lines[1]
    scores = pd.read_parquet(drawn / 'out/scores.parquet')
    assert scores.groupby('model').size().tolist() == [2, 2]
    # and from Python
    with pytest.warns(UserWarning):
        found = bd.evaluate(
            scorers=[f'clip={world}/clip'],
            config=bd.SampleConfig(device='cpu'),
            a=str(drawn / 'theirs'),
            b=str(drawn / 'others'),
        )
    assert found.rates.win_rate.tolist() == rates(drawn / 'out').win_rate.tolist()
    assert run(*words, '--dry-run').count('come from the .txt beside each picture') == 2
    said = run(*words, '--protocol', 'paired', code=2)
    assert 'the seeds of a are not known' in said


def test_a_changed_folder_is_scored_anew(world, drawn, run):
    words = contest(world, f'a={drawn}/one', f'b={drawn}/theirs', '--out', drawn / 'out')
    run(*words)
    before = pd.read_parquet(drawn / 'out/scores.parquet')
    shutil.copy(drawn / 'theirs/00001.png', drawn / 'theirs/00000.png')
    run(*words)
    after = pd.read_parquet(drawn / 'out/scores.parquet')
    moved = ~np.isclose(before['clip'], after['clip'], rtol=1e-4)
    assert moved.tolist() == [False] * 4 + [True] + [False] * 3
    assert after['clip'][4] == after['clip'][5]


def test_seeds_that_are_known_are_still_compared():
    "What is not known is passed over on one side; what is known on both has to agree."
    elsewhere = dict(sampler={'drawn': 'elsewhere'}, seeds=[-1, -1])
    ours = dict(sampler={'steps': 5}, seeds=[1, 2])
    tables = [
        score_table(name, {'hps': [[1.0], [2.0]]}, ['p', 'q'], **how)
        for name, how in (('a', elsewhere), ('b', ours), ('c', {**ours, 'seeds': [1, 3]}))
    ]
    assert win_rates(tables[0], tables[1], ['hps']).ties.tolist() == [2]
    with pytest.raises(bd.InputError, match='the seeds of prompt q, image 0 are 2 and 3'):
        win_rates(tables[1], tables[2], ['hps'])
    with pytest.raises(bd.InputError, match='the seeds of a are not known'):
        win_rates(tables[0], tables[1], ['hps'], protocol='paired')
