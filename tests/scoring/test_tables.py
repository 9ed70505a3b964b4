"""Tables of scores: the same bytes for every number of workers and after every kind of
interruption; never mixed, never stale."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.core.shares import Share
from balanceddpo.data import pairs as pairs_module
from balanceddpo.data.pairs import PairReport, make_pair, write_pairs
from balanceddpo.data.rows import PairRows
from balanceddpo.data.sources import PairSource
from balanceddpo.scoring.registry import load_scorers
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.scoring.tables import Shards, read_scores, score_pairs, score_shard


def png(*colour):
    out = io.BytesIO()
    Image.new('RGB', (4, 4), colour).save(out, 'PNG')
    return out.getvalue()


def make_pairs(n):
    return [
        make_pair(
            f'prompt {i % 7}',
            (png(i % 256, 3, 9), png(9, 3, i % 256)),
            (1.0, 0.0, 0.5, None)[i % 4],
        )
        for i in range(n)
    ]


def red(images, prompts):
    return [im.getpixel((0, 0))[0] / 255 + len(p) for im, p in zip(images, prompts)]


RED = [FunctionScorer('red', 'key of red', red)]
TEN = Shards(10)
PAIRS = make_pairs(101)


def source_of(pairs, path):
    return PairSource(str(write_pairs(pairs, path)))


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob('*.parquet'))}


@pytest.mark.parametrize('n', [97, 99, 100, 101])
@pytest.mark.parametrize('workers', [1, 2, 3, 4])
def test_any_number_of_workers_makes_the_same_table(tmp_path, n, workers):
    one, many = tmp_path / 'one', tmp_path / 'many'
    score_pairs(PAIRS[:n], RED, one, TEN, progress=False)
    for worker in reversed(range(workers)):
        score_pairs(iter(PAIRS[:n]), RED, many, Shards(10, Share(worker, workers)), progress=False)
    assert files(one) == files(many)
    assert (one / 'manifest.json').read_bytes() == (many / 'manifest.json').read_bytes()
    table = read_scores(many)
    assert table.pair_id.tolist() == [p.pair_id for p in PAIRS[:n] for _ in (0, 1)]
    assert table.slot.tolist() == [0, 1] * n
    assert table.red.tolist() == [
        np.float32((c / 255) + len(p.caption)) for i, p in enumerate(PAIRS[:n]) for c in (i, 9)
    ]
    assert table.label_0.isna().sum() == 2 * sum(p.label_0 is None for p in PAIRS[:n])


def test_shards_of_real_encoders_are_the_same_bytes_after_a_restart(models, tmp_path):
    """Batches and memories end with a shard, so a number does not depend on what was scored before
    it."""
    specs = [f'{kind}={models / kind}' for kind in ('clip', 'hps')]
    once, twice = tmp_path / 'once', tmp_path / 'twice'
    for n, out in ((23, once), (9, twice), (23, twice)):
        scorers = load_scorers(specs, device='cpu')
        score_pairs(PAIRS[:n], scorers, out, Shards(8), progress=False)
    assert files(once) == files(twice)
    assert read_scores(once)[['clip', 'hps']].nunique().min() > 40


SLOW = """
import sys, time; sys.path.insert(0, {tests!r})
import test_tables as t
def slow(images, prompts):
    time.sleep(.05 * len(images))
    return t.red(images, prompts)
red = t.FunctionScorer('red', 'key of red', slow)
t.score_pairs(t.PAIRS, [red], {out!r}, t.TEN, progress=False, batch_size=4)
"""


def test_killed_and_started_again(tmp_path):
    out, whole = tmp_path / 'out', tmp_path / 'whole'
    process = subprocess.Popen(
        [sys.executable, '-c', SLOW.format(tests=os.path.dirname(__file__), out=str(out))]
    )
    until = time.monotonic() + 120
    while (
        len(files(out) if out.exists() else ()) < 2
        and time.monotonic() < until
        and process.poll() is None
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = files(out)
    assert 2 <= len(kept) < 11
    assert not (out / 'manifest.json').exists()
    with pytest.raises(InputError, match='no finished scores'):
        read_scores(out)
    score_pairs(PAIRS, RED, out, TEN, progress=False)
    score_pairs(PAIRS, RED, whole, TEN, progress=False)
    assert files(out) == files(whole)
    assert kept.items() <= files(out).items()
    assert [p.name for p in out.iterdir() if 'tmp' in p.name] == []


@pytest.mark.parametrize(
    'damage',
    [
        lambda p: p.write_bytes(p.read_bytes()[: len(p.read_bytes()) // 2]),
        lambda p: p.write_bytes(b''),
        lambda p: p.unlink(),
        lambda p: p.write_bytes(
            bytes(b ^ 1 if i == 60 else b for i, b in enumerate(p.read_bytes()))
        ),
    ],
    ids=['cut', 'empty', 'missing', 'bit'],
)
def test_a_damaged_shard_is_made_again_and_only_that(tmp_path, damage):
    score_pairs(PAIRS[:35], RED, tmp_path / 't', TEN, progress=False)
    good = files(tmp_path / 't')
    damage(tmp_path / 't' / 'scores-00002.parquet')
    with pytest.raises(InputError):
        read_scores(tmp_path / 't')
    seen = []

    def red_and_seen(images, prompts):
        seen.extend(prompts)
        return red(images, prompts)

    score_pairs(
        PAIRS[:35],
        [FunctionScorer('red', 'key of red', red_and_seen)],
        tmp_path / 't',
        TEN,
        progress=False,
    )
    assert files(tmp_path / 't') == good
    assert len(seen) == 20
    read_scores(tmp_path / 't')


def test_a_flipped_bit_in_a_finished_table_under_a_key_is_mended(tmp_path):
    source = source_of(PAIRS[:25], tmp_path / 'pairs.parquet')
    out = score_pairs(source, RED, tmp_path / 't', TEN, progress=False)
    good = files(out)
    path = out / 'scores-00001.parquet'
    path.write_bytes(bytes(b ^ 1 if i == 60 else b for i, b in enumerate(path.read_bytes())))
    with pytest.raises(InputError):
        read_scores(out)
    # one of the 25 has the same picture twice
    assert len(read_scores(score_pairs(source, RED, out, TEN, progress=False))) == 48
    assert files(out) == good


def test_other_scorers_weights_or_pairs_are_refused(tmp_path):
    out = score_pairs(PAIRS[:25], RED, tmp_path / 't', TEN, progress=False)
    for scorers, options, says in (
        ([FunctionScorer('red', 'other weights', red)], {}, 'scorers.red'),
        ([FunctionScorer('blue', 'key of red', red)], {}, 'columns'),
        (RED, {'shards': Shards(5)}, 'shard_size'),
    ):
        with pytest.raises(InputError, match=says):
            score_pairs(PAIRS[:25], scorers, out, **{'shards': TEN, 'progress': False, **options})
    for pairs in (PAIRS[1:26], PAIRS[:15], PAIRS[:20], PAIRS[:9], []):
        with pytest.raises(InputError, match='other pairs|more pairs than these'):
            score_pairs(pairs, RED, out, TEN, progress=False)
    with pytest.raises(InputError, match='process must be'):
        score_pairs(PAIRS, RED, tmp_path / 'w', Shards(share=Share(2, 2)))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('not yours')
    with pytest.raises(InputError, match='not ours'):
        score_pairs(PAIRS, RED, tmp_path / 'mine', TEN, progress=False)


def test_a_grown_set_keeps_what_is_there(tmp_path):
    score_pairs(PAIRS[:25], RED, tmp_path / 't', TEN, progress=False)
    first = files(tmp_path / 't')
    score_pairs(PAIRS[:45], RED, tmp_path / 't', TEN, progress=False)
    assert len(read_scores(tmp_path / 't')) == 90
    assert [n for n, b in files(tmp_path / 't').items() if first.get(n) == b] == [
        'scores-00000.parquet',
        'scores-00001.parquet',
    ]


def test_a_finished_table_under_a_key_is_not_read_again(tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError('the pairs were read')

    five, six = (source_of(PAIRS[:n], tmp_path / f'{n}.parquet') for n in (5, 6))
    out = score_pairs(five, RED, tmp_path / 't', progress=False)
    with pytest.raises(InputError, match='pairs'):
        score_pairs(six, RED, tmp_path / 't', progress=False)
    monkeypatch.setattr(PairRows, 'take', never)
    assert score_pairs(five, RED, tmp_path / 't', progress=False) == out


def test_a_finished_shard_is_not_read_again(tmp_path, monkeypatch):
    source, wanted, real = source_of(PAIRS[:35], tmp_path / 'p.parquet'), [], PairRows.take
    out = score_pairs(source, RED, tmp_path / 't', TEN, progress=False)
    (out / 'manifest.json').unlink()  # it was stopped at the end
    (out / 'scores-00002.parquet').unlink()
    monkeypatch.setattr(
        PairRows, 'take', lambda rows, numbers: wanted.extend(numbers) or real(rows, numbers)
    )
    score_pairs(source, RED, out, TEN, progress=False)
    assert wanted == [*range(20, 30)]


@pytest.mark.parametrize('worker', [0, 1])
def test_a_process_reads_and_decodes_its_own_rows_alone(tmp_path, monkeypatch, worker):
    source, wanted, decoded = source_of(PAIRS[:35], tmp_path / 'p.parquet'), [], []
    take, decode = PairRows.take, pairs_module.decode
    monkeypatch.setattr(
        PairRows, 'take', lambda rows, numbers: wanted.extend(numbers) or take(rows, numbers)
    )
    monkeypatch.setattr(
        pairs_module, 'decode', lambda data, *a: decoded.append(data) or decode(data, *a)
    )
    score_pairs(source, RED, tmp_path / 't', Shards(10, Share(worker, 2)), progress=False)
    own = [n for n in range(35) if n // 10 % 2 == worker]
    assert wanted == own
    assert sorted(decoded) == sorted(data for n in own for data in PAIRS[n].images)


def test_odd_rows_are_counted_and_a_second_rating_has_an_id_of_its_own(tmp_path):
    damaged = make_pair('cut', (png(1, 2, 3)[:-30], png(3, 2, 1)), 1.0)
    same = make_pair('same', (png(5, 5, 5), png(5, 5, 5)), 1.0)
    # odd rows and further ratings among enough others to be allowed
    rows = [*PAIRS[1:9], damaged, same, PAIRS[1], *PAIRS[10:100], *PAIRS[50:60]]
    rows += make_pairs(256)[101:]
    source = source_of(rows, tmp_path / 'p.parquet')
    table = read_scores(out := score_pairs(source, RED, tmp_path / 't', TEN, progress=False))
    report = json.loads((out / 'manifest.json').read_text())['report']
    streamed = PairReport()
    ids = [p.pair_id for p in source.read(streamed)]
    assert table.pair_id[::2].tolist() == ids
    assert f'{PAIRS[1].pair_id}.1' in ids
    assert report == asdict(streamed)
    assert (report['identical'], report['undecodable'], report['repeated']) == (1, 1, 11)


def test_too_many_odd_rows_are_refused(tmp_path):
    damaged = make_pair('cut', (png(1, 2, 3)[:-30], png(3, 2, 1)), 1.0)
    source = source_of([*PAIRS[:50], damaged], tmp_path / 'p.parquet')
    with pytest.raises(InputError, match='1 of 51 rows are undecodable'):
        score_pairs(source, RED, tmp_path / 't', TEN, progress=False)


def test_one_shard_at_a_time_is_in_memory(tmp_path):
    "The stream is never ahead of the scoring by more than a shard."
    drawn, scored, most = 0, 0, 0

    def stream():
        nonlocal drawn, most
        for pair in PAIRS[:60]:
            drawn += 1
            most = max(most, drawn - scored // 2)
            yield pair

    def count(images, prompts):
        nonlocal scored
        scored += len(images)
        return [0.0] * len(images)

    score_pairs(stream(), [FunctionScorer('n', 'k', count)], tmp_path / 't', TEN, progress=False)
    assert drawn == 60
    assert most <= 10


def test_a_scorer_without_an_opinion_leaves_nan(tmp_path):
    unsure = FunctionScorer(
        'unsure', 'k', lambda images, prompts: [float('nan'), float('inf')] * (len(images) // 2)
    )
    table = read_scores(score_pairs(PAIRS[:3], [*RED, unsure], tmp_path / 't', progress=False))
    assert table.unsure[::2].isna().all()
    assert (table.unsure[1::2] == float('inf')).all()
    assert table.red.notna().all()
    assert table.dtypes[['red', 'unsure']].tolist() == [np.float32] * 2


def test_two_at_once_are_told(tmp_path):
    def second(images, prompts):
        with pytest.raises(InputError, match='in use by process'):
            score_pairs(PAIRS[:5], RED, tmp_path / 't', progress=False)
        return red(images, prompts)

    score_pairs(
        PAIRS[:5], [FunctionScorer('red', 'key of red', second)], tmp_path / 't', progress=False
    )


def test_a_table_of_ones_own(tmp_path):
    frame = score_shard(PAIRS[:3], RED).to_pandas()
    frame.to_parquet(tmp_path / 'own.parquet')
    pd.testing.assert_frame_equal(read_scores(tmp_path / 'own.parquet'), frame)


def test_a_table_says_in_which_unit_its_scores_are(tmp_path):
    pick = FunctionScorer('pick', 'key of pick', red)
    pick.unit = 98.5
    table = read_scores(score_pairs(PAIRS[:3], [*RED, pick], tmp_path / 's', progress=False))
    assert table.attrs['units'] == {'red': 1.0, 'pick': 98.5}
    pick.unit = 100.0  # the same numbers in another unit are another table
    with pytest.raises(InputError, match='units'):
        score_pairs(PAIRS[:3], [*RED, pick], tmp_path / 's', progress=False)
