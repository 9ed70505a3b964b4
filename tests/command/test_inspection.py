"balanceddpo inspect; and every layout of pairs from the command line."

import re
from pathlib import Path

import pandas as pd
import pytest

from balanceddpo.data.inspection import inspect_pairs
from balanceddpo.data.pairs import make_pair, write_pairs
from balanceddpo.data.sources import PairSource
from balanceddpo.page.pairs import write_pairs_page
from balanceddpo.voting.labels import read_labels
from made_pages import data_of
from made_pairs import encoded, noise, plain, some_pairs
from public_layouts import LAYOUTS, pairs_of
from short_commands import TRAIN


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_layout_is_inspected_labelled_and_learned_from(world, run, tmp_path, name):
    source, said = LAYOUTS[name][0](tmp_path / 'data')
    columns = ['--columns', *said['columns']] if said else []
    told = run('inspect', source, *columns, '--out', tmp_path / 'page.html')
    count = len(pairs_of(name))
    assert f'{count} pairs, of which {count} were looked at' in told
    assert len(data_of(tmp_path / 'page.html')['rows']['id']) == count
    # the command that it names
    assert f' --pairs {source}' in told.splitlines()[-1]
    assert ' '.join(columns) in told.splitlines()[-1]
    named = ['--pairs', source, *columns, '--device', 'cpu']
    run('label', *named, '--method', 'human', '--out', tmp_path / 'labels.parquet')
    labels, _ = read_labels(tmp_path / 'labels.parquet')
    assert sorted(labels.w0) == sorted(float(p.label_0 == 1) for p in pairs_of(name))
    model = ['--model', world / 'model', '--out', tmp_path / 'run']
    run('align', 'DiffusionDPO', *named, *model, *TRAIN, '--refresh-every', 0, '--max-steps', 1)
    assert (tmp_path / 'run' / 'model' / 'unet').is_dir()


def test_what_is_found_is_counted(tmp_path):
    rows = [
        *some_pairs(4, label=lambda i: [1.0, 0.0, 0.5, 0.7][i]),
        make_pair('same', (plain(1), plain(1)), 1.0),
        make_pair('bad', (b'no picture', plain(1)), 1.0),
        make_pair('wide', (noise(1), noise(2, 32))),
    ]
    path = str(write_pairs(rows, tmp_path / 'pairs.parquet'))
    found = inspect_pairs(PairSource(path, max_bad=1))
    assert (found.rows, found.report.rows, found.report.kept) == (7, 7, 5)
    assert found.labels == {
        'for image 0': 1,
        'for image 1': 1,
        'ties': 1,
        'divided, for image 0': 1,
        'without a label': 1,
    }
    assert found.sizes == {(2, 2): 8, (96, 96): 1, (32, 32): 1}
    lines = found.lines()
    assert 'pictures: 8 of 2x2, 1 of 96x96, 1 of 32x32' in lines
    assert any('both pictures are the same' in line for line in lines)
    assert any('jpg_0: 10 bytes that do not open' in line for line in lines)
    # of many rows some are looked at, from everywhere
    few = inspect_pairs(PairSource(path, max_bad=1), look=2, show=1)
    assert (few.report.rows, len(few.shown)) == (2, 1)
    assert [few.captions, few.rows] == [['caption 0', 'caption 3'], 7]


def test_the_page_shows_the_winner_and_runs_nothing_of_a_stranger(tmp_path):
    evil = '<script>alert(1)</script> & "quotes"'
    pairs = [make_pair(evil, (plain(1), plain(2)), 0.0, ('<b>', 'x'))]
    source = PairSource(str(write_pairs(pairs, tmp_path / '<i>.parquet')))
    path = write_pairs_page(inspect_pairs(source), tmp_path / 'page.html')
    page, data = path.read_text(), data_of(path)
    assert page.count('<script') == 2  # the data and our own
    assert '<b>' not in page
    assert '<i>' not in page
    assert 'alert(1)</script>' not in page
    assert data['rows']['prompt'] == [evil]
    assert (data['rows']['label'], data['rows']['sources']) == ([0.0], [['<b>', 'x']])
    assert 'http:' not in page
    assert 'https:' not in page


def test_a_large_picture_is_small_on_the_page(tmp_path):
    from PIL import Image

    big = encoded(Image.effect_noise((2000, 1000), 50).convert('RGB'))
    source = PairSource(str(write_pairs([make_pair('a', (big, plain(1)))], tmp_path / 'p.parquet')))
    page = write_pairs_page(inspect_pairs(source), tmp_path / 'page.html').read_text()
    assert len(page) < len(big) / 8


def test_overlooked_labels_are_told(run, tmp_path):
    for n in (0, 1):
        (tmp_path / f'{n}.png').write_bytes(plain(n))
    row = dict(prompt='a', image_0='0.png', image_1='1.png', preference=1)
    pd.DataFrame([row]).to_csv(tmp_path / 'pairs.csv', index=False)
    assert 'not read, though they may be labels: preference' in run(
        'inspect', tmp_path / 'pairs.csv'
    )


def test_a_dry_run_writes_nothing(run, tmp_path):
    told = run('inspect', 'icons', '--dry-run', '--out', tmp_path / 'page.html')
    assert 'look at 200 of 1 400 pairs' in told
    assert not (tmp_path / 'page.html').exists()


def test_too_many_bad_rows_stop_and_all_are_listed(run, tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    bad = [make_pair(f'bad {n}', (b'', plain(n))) for n in range(3)]
    path = write_pairs([*some_pairs(9), *bad], tmp_path / 'pairs.parquet')
    words = ['label', '--pairs', path, '--method', 'human', '--out', tmp_path / 'labels.parquet']
    told = run(*words, code=2)
    assert '3 of 12 rows are undecodable' in told
    listed = re.search(r'all of them: (\S+left_out.jsonl)', told)[1]
    assert Path(listed).read_text().count('"undecodable"') == 3
    # more may be allowed; what was made is found again
    told = run(*words, '--max-bad', 0.5)
    assert '9 pairs labelled' in told
    assert 'rows that were left out, and why' in told
    assert (tmp_path / 'labels.parquet.left_out.jsonl').read_text().count('undecodable') == 3


def test_votes_of_scorers_stand_beside_their_pairs(world, run, tmp_path):
    pairs = ['--pairs', f'{world}/pairs.parquet', '--device', 'cpu']
    scorers = [f'{k}={world}/{k}' for k in ('hps', 'clip')]
    labels = tmp_path / 'labels.parquet'
    run('label', *pairs, '--scorers', *scorers, '--out', labels)
    page = tmp_path / 'page.html'
    told = run('inspect', f'{world}/pairs.parquet', '--labels', labels, '--show', 3, '--out', page)
    assert str(page) in told
    data, (table, _) = data_of(page), read_labels(labels)
    assert data['scorers'] == ['hps', 'clip']
    assert len(data['rows']['id']) == 3  # of eight, spread over them
    votes = table.set_index('pair_id').loc[data['rows']['id']]
    for name in data['scorers']:
        scores = data['images']['scores'][name]
        margins = [a - b for a, b in zip(scores[::2], scores[1::2])]
        assert margins == votes[f'vote_{name}'].tolist()
    # labels of people alone have no votes, and others are of other pairs
    run('label', *pairs, '--method', 'human', '--out', tmp_path / 'human.parquet')
    words = ['inspect', f'{world}/pairs.parquet', '--out', page, '--labels']
    assert 'no votes of scorers' in run(*words, tmp_path / 'human.parquet', code=2)
    words[1] = write_pairs(some_pairs(2), tmp_path / 'other.parquet')
    assert 'the labels are of other pairs' in run(*words, labels, code=2)
