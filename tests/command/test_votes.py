"""balanceddpo votes: from the images of an evaluation to people's win rates, and to labels."""

import json
import re
import shlex
import shutil
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest

from balanceddpo.cli import VERBS
from balanceddpo.command.asking import parse
from balanceddpo.data.sources import read_pairs
from balanceddpo.evaluation.result_images import ResultImages
from balanceddpo.voting.labels import read_labels
from made_votes import side, vote, write_votes
from short_commands import DRAW


@pytest.fixture
def results(world, tmp_path, run):
    "The folder of an evaluation of two sets of images, which another program has drawn."
    for n, name in enumerate(('base', 'ours')):
        words = ['--prompts', world / 'prompts.txt', *DRAW, '--seed', n]
        run('sample', '--model', world / 'model', *words, '--out', tmp_path / f'drawn{n}')
        store = pd.read_parquet(tmp_path / f'drawn{n}/index.parquet')
        (tmp_path / name).mkdir()
        for k, row in enumerate(store.itertuples()):
            shutil.copy(tmp_path / f'drawn{n}' / row.file, tmp_path / name / f'{k}.png')
            (tmp_path / name / f'{k}.txt').write_text(row.prompt)
    words = [*(f'{name}={tmp_path / name}' for name in ('base', 'ours')), '--device', 'cpu']
    run('evaluate', *words, '--scorers', f'clip={world}/clip', '--out', tmp_path / 'results')
    return tmp_path / 'results'


def cast(results, voter, choices, **changes):
    "A file beside the results: `choices` maps a prompt to left (ours), right (base) or alike."
    rows = ResultImages.open(results).rows.query('image_index == 0').set_index(['prompt', 'model'])
    votes = []
    for prompt, choice in choices.items():
        ours, base = (side(m, 0, rows.sha256[prompt, m]) for m in ('ours', 'base'))
        names = dict(prompt_set='prompts', prompt=prompt)
        votes.append(vote(rows.prompt_id[prompt, 'ours'], ours, base, choice, **names))
    return write_votes(results / f'{voter}.json', votes, **changes)


@pytest.fixture
def files(results):
    "Three people: 1 and 0 and ½ for ours on the cat; 1, 1 and 1 on the dog."
    choices = {'anna': 'left', 'ben': 'right', 'carl': 'alike'}
    return [cast(results, who, {'a red cat': c, 'a dog': 'left'}) for who, c in choices.items()]


def next_of(said):
    "(verb, options, settings) of the command in the last line."
    verb, *words = shlex.split(said.splitlines()[-1].removeprefix('next: balanceddpo '))
    return verb, *parse(VERBS[verb], words)


def test_three_people_to_win_rates_and_agreement(files, results, tmp_path, run):
    said = run('votes', *files, '--out', tmp_path / 'out')
    rates = pd.read_csv(tmp_path / 'out/human_win_rates.csv').iloc[0]
    assert (rates.model_a, rates.model_b, rates.prompt_set) == ('ours', 'base', 'prompts')
    assert rates.win_rate == (0.5 + 1) / 2
    assert (rates.people, rates.votes, rates.n) == (3, 6, 2)
    assert '| ours vs base | prompts |      3 |     6 |       2 | 75.0 [' in said
    # the scorer on the very images: of the two pairs one is decided, for ours
    scores = pd.read_parquet(results / 'scores.parquet').query('image_index == 0')
    dog = ResultImages.open(results).rows.query("prompt == 'a dog'").prompt_id.iloc[0]
    by_model = scores[scores.prompt_id == dog].set_index('model')['clip']
    with_scorer = pd.read_csv(tmp_path / 'out/agreement_with_scorers.csv').iloc[0]
    assert (with_scorer.b, with_scorer.n) == ('clip', 1)
    assert with_scorer.agreement == float(by_model['ours'] > by_model['base'])
    people = pd.read_csv(tmp_path / 'out/people.csv')
    assert people.voter.tolist() == ['anna', 'ben', 'carl']
    assert people.reliability.notna().all()
    choices = pd.read_csv(tmp_path / 'out/choices.csv')
    assert choices.choice.tolist() == [0, 1]
    assert choices.share.tolist() == [0.5, 1]
    of_people = pd.read_csv(tmp_path / 'out/agreement_of_people.csv')
    assert of_people[['n', 'agreement']].to_numpy().tolist() == [[2, 0.5], [1, 1], [1, 1]]
    told = json.loads((tmp_path / 'out/provenance.json').read_text())
    assert set(told['inputs']) == {f'{who}.json' for who in ('anna', 'ben', 'carl')}
    assert (tmp_path / 'out/votes.md').read_text().strip() in said
    verb, options, _ = next_of(said)
    assert (verb, options.results) == ('votes', results.absolute())
    assert options.files == tuple(map(str, files))
    assert options.write_pairs.suffix == '.parquet'


def test_votes_become_pairs_that_label_and_inspect_take(files, tmp_path, run):
    out = tmp_path / 'voted.parquet'
    said = run('votes', *files, '--write-pairs', out, '--out', tmp_path / 'out')
    pairs = list(read_pairs(out))
    assert [(p.caption, p.label_0, p.models) for p in pairs] == [
        ('a red cat', 0.5, ('ours', 'base')),
        ('a dog', 1.0, ('ours', 'base')),
    ]
    verb, options, config = next_of(said)
    assert (verb, options.pairs, config.method) == ('label', str(out), 'human')
    run(verb, '--pairs', out, '--method', 'human', '--out', tmp_path / 'labels.parquet')
    labels, _ = read_labels(tmp_path / 'labels.parquet')
    assert labels.human.tolist() == [0, 1]  # the votes again
    assert labels[['w0', 'w1']].to_numpy().tolist() == [[0, 0], [1, 0]]
    assert '2 rows, 2 pairs' in run('inspect', out, '--out', tmp_path / 'page.html')
    assert f'{out} is there already' in run('votes', *files, '--write-pairs', out, code=2)


def test_a_model_is_trained_on_what_people_have_chosen(files, world, tmp_path, run):
    out = tmp_path / 'voted.parquet'
    run('votes', *files[:1], '--write-pairs', out, '--out', tmp_path / 'out')
    words = ['--pairs', out, '--model', world / 'model', '--resolution', 32, '--max-steps', 1]
    words += ['--batch-size', 2, '--micro-batch-size', 2, '--device', 'cpu', '--tracker', 'none']
    run('align', 'DiffusionDPO', *words, '--out', tmp_path / 'run')
    labels, _ = read_labels(tmp_path / 'run/labels.parquet')
    assert labels.human.tolist() == [1, 1]
    assert (tmp_path / 'run/model/model_index.json').is_file()


def test_votes_on_pairs_label_those_pairs(world, tmp_path, run):
    pairs, rows = list(read_pairs(world / 'pairs.parquet'))[:3], []
    for pair, choice in zip(pairs, ('left', 'right', 'alike')):
        sides = [side(k, sha256=sha256(pair.images[k]).hexdigest()) for k in (0, 1)]
        rows.append(vote(pair.pair_id, *sides, choice, pair_id=pair.pair_id, prompt=pair.caption))
    path = write_votes(tmp_path / 'anna.json', rows, models=('image 0', 'image 1'))
    said = run('votes', path, '--out', tmp_path / 'out')
    assert 'win rate' not in said
    assert not (tmp_path / 'out/human_win_rates.csv').exists()
    assert next_of(said)[1].pairs == 'PAIRS'
    assert 'name the pairs that were voted on' in run(
        'votes', path, '--write-pairs', tmp_path / 'a.parquet', code=2
    )
    out = tmp_path / 'b.parquet'
    run('votes', path, '--pairs', world / 'pairs.parquet', '--write-pairs', out)
    assert [(p.pair_id, p.label_0) for p in read_pairs(out)] == [
        (p.pair_id, label) for p, label in zip(pairs, (1, 0, 0.5))
    ]


def test_the_python_on_the_page_runs(files, tmp_path, monkeypatch, capfd):
    page = Path(__file__).resolve().parents[2] / 'docs/votes.md'
    (code,) = re.findall(r'```python\n(.*?)```', page.read_text(), re.S)
    (tmp_path / 'work').mkdir()
    for file in files[:2]:
        shutil.copy(file, tmp_path / 'work' / f'votes-{file.name}')
    monkeypatch.chdir(tmp_path)
    exec(code, scope := {})
    assert scope['human_win_rates'](scope['votes']).win_rate.tolist() == [(0.5 + 1) / 2]
    assert 'a red cat' in capfd.readouterr().out


def test_a_dry_run_writes_nothing(files, tmp_path, run):
    before = {p for p in tmp_path.rglob('*')}
    said = run('votes', *files, '--write-pairs', tmp_path / 'x.parquet', '--dry-run')
    assert 'count 6 votes of 3 people on 2 pairs' in said
    assert f'write pairs to {tmp_path}/x.parquet' in said
    assert {p for p in tmp_path.rglob('*')} == before


def test_what_is_refused_is_one_line(files, results, world, tmp_path, run):
    (tmp_path / 'elsewhere').mkdir()
    alone = tmp_path / 'elsewhere/anna.json'
    alone.write_bytes(files[0].read_bytes())
    for words, says in (
        ([], 'name the files of votes'),
        ([tmp_path / 'none.json'], 'No such file'),
        ([files[0], files[0]], "are both of 'anna'"),
        ([results / 'scores.parquet'], 'is no file of votes'),
        ([*files[:2], '--join', 'reliability'], 'from three on'),
        ([*files, '--results', tmp_path], 'has no images.parquet'),
        ([*files, '--pairs', world / 'pairs.parquet'], 'on models'),
        ([*files, '--write-pairs', tmp_path / 'x.jsonl'], 'is written to a .parquet'),
        ([alone, '--write-pairs', tmp_path / 'x.parquet'], '--results FOLDER'),
    ):
        assert says in run('votes', *words, code=2)
    assert 'no scores to compare with' in run('votes', alone, '--out', tmp_path / 'out')
    changed = cast(results, 'dora', {'a dog': 'left'})
    changed.write_text(changed.read_text().replace('"sha256": "', '"sha256": "0')[:-1])
    assert 'dora.json' in run('votes', changed, code=2)


def test_another_evaluation_than_the_one_voted_on_is_refused(files, results, run):
    images = pd.read_parquet(results / 'images.parquet')
    images.assign(sha256='0' * 64).to_parquet(results / 'images.parquet')
    assert 'is not the one that was voted on' in run('votes', *files, code=2)
    images.assign(model=images.model + '2').to_parquet(results / 'images.parquet')
    assert "has no model 'ours'" in run('votes', *files, code=2)
