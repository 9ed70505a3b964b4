"""Scores of stored images: what is kept, what is scored again; their sums, differences and gains by
hand and against slow, plain implementations."""

import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.core.progress import log_to_stderr
from balanceddpo.core.seals import read_sealed, write_sealed
from balanceddpo.core.stages import runs_root
from balanceddpo.data.prompts import PromptSet
from balanceddpo.evaluation.scores import (
    Portions,
    are_scored,
    compare_scores,
    join_parts,
    mean_gains,
    parts_of,
    score_differences,
    score_images,
    score_part,
    score_summary,
    scores_file,
)
from balanceddpo.evaluation.win_rates import score_table
from balanceddpo.models.image_store import ImageStore, image_file
from balanceddpo.models.sampling import image_seed

# five prompts with three images each, by two models
X = np.array([[9, 1, 1], [4, 4, 4], [2, 6, 2], [1, 1, 1], [5, 3, 1]], float)
Y = np.array([[5, 5, 5], [4, 4, 4], [6, 2, 2], [3, 0, 0], [4, 3, 2]], float)


def table(model, hps=X, prompt_set='hpd'):
    return score_table(model, {'hps': hps, 'clip': -np.asarray(hps)}, prompt_set=prompt_set)


def test_score_differences_by_hand():
    found = score_differences(table('a'), table('b', Y), ['hps']).iloc[0]
    assert found['difference'] == pytest.approx((11 / 3 - 5) / 5)
    assert found['mean_a'] == pytest.approx(X.mean())
    assert found['n'] == 5
    assert found['low'] <= found['difference'] <= found['high'] <= 0
    best = score_differences(table('a'), table('b', Y), ['hps'], 'best').iloc[0]
    assert best['difference'] == pytest.approx((4 + 0 + 0 - 2 + 1) / 5)
    with pytest.raises(InputError):
        score_differences(table('a'), table('b', Y), ['hps'], 'paired')


def test_compare_scores_walks_sets_and_pairs():
    scores = pd.concat(
        [
            table(m, v, prompt_set=s)
            for s in ('hpd', 'pickapic')
            for m, v in (('a', X), ('b', Y), ('c', X + Y))
        ]
    )
    found, pairs = (
        compare_scores(scores, [('a', 'b'), ('c', 'b')], ['hps']),
        [('a', 'b'), ('c', 'b')] * 2,
    )
    assert list(zip(found['model_a'], found['model_b'])) == pairs
    assert found['prompt_set'].tolist() == ['hpd'] * 2 + ['pickapic'] * 2
    assert found.index.tolist() == [0, 1, 2, 3]
    assert found.loc[3, 'difference'] == pytest.approx(X.mean())  # X + Y minus Y
    assert len(compare_scores(scores, pairs, ())) == 0  # a world without checks


def test_score_summary_is_numpys():
    found = score_summary(pd.concat([table('a'), table('b', Y)]), ['hps', 'clip']).set_index(
        ['model', 'scorer']
    )
    assert found.loc[('a', 'hps'), ['n', 'mean', 'min', 'max', 'std']].tolist() == pytest.approx(
        [15, X.mean(), 1, 9, X.std(ddof=1)]
    )
    assert found.loc[('b', 'clip'), 'max'] == 0


# --- kept scores


@pytest.fixture
def store(tmp_path):
    "Three prompts with four plain images each; the grey level is the score."
    prompts, rows = PromptSet('greys', ('one', 'two', 'three')), []
    for p, (pid, prompt) in enumerate(zip(prompts.ids, prompts.prompts)):
        for i in range(4):
            path = tmp_path / 'images_of_m' / image_file(pid, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (4, 4), (10 * p + i,) * 3).save(path)
            rows.append(
                (
                    'm',
                    pid,
                    prompt,
                    i,
                    image_seed(pid, i),
                    image_file(pid, i),
                    hashlib.sha256(path.read_bytes()).hexdigest(),
                )
            )
    index = pd.DataFrame(
        rows, columns=['model', 'prompt_id', 'prompt', 'image_index', 'seed', 'file', 'sha256']
    )
    return ImageStore(
        tmp_path / 'images_of_m',
        {'model': {'unet': '1'}, 'prompts': prompts.key, 'steps': 9},
        index,
    )


class Grey:
    """A scorer that answers with the grey level, counts what it saw, and breaks down after `life`
    images."""

    def __init__(self, name='grey', key='k1', life=10**9, add=0.0):
        self.name, self.key, self.life, self.add, self.seen = name, key, life, add, 0

    def score(self, images, prompts):
        self.seen += len(prompts)
        if self.seen > self.life:
            raise KeyboardInterrupt
        return torch.tensor(
            [image.getpixel((0, 0))[0] + self.add for image in images], dtype=torch.float32
        )


GREYS = [10 * p + i for p in range(3) for i in range(4)]


def test_scores_are_kept_and_reused(store, tmp_path):
    out = tmp_path / 'scores/m.parquet'
    first = Grey()
    found = score_images(store, [first], out, model='m', prompt_set='greys')
    assert found['grey'].tolist() == GREYS
    assert found['grey'].dtype == 'float32'
    assert first.seen == 12
    assert found['seed'].tolist() == store.index['seed'].tolist()
    assert set(found['sampler']) == {'{"steps": 9}'}
    again = Grey()
    before = out.read_bytes()
    pd.testing.assert_frame_equal(
        score_images(store, [again], out, model='m', prompt_set='greys'), found
    )
    assert again.seen == 0
    assert out.read_bytes() == before


def test_a_store_in_another_order_gets_each_image_its_own_score(store, tmp_path):
    turned = replace(store, index=store.index.iloc[::-1])
    found = score_images(turned, [Grey()], tmp_path / 'm.parquet')
    assert found['grey'].tolist() == GREYS[::-1]


def test_only_images_that_are_scored_now_are_told_of(store, capfd):
    with log_to_stderr('info'):
        score_images(store, [Grey()], model='m')
        assert 'scores of m: begins, 12 images' in capfd.readouterr().err
        score_images(store, [Grey()], model='m')
        assert capfd.readouterr().err == ''
        fewer = replace(store, index=store.index.iloc[:11])
        score_images(fewer, [Grey('other')], model='m')
        capfd.readouterr()
        score_images(store, [Grey('other')], model='m')
        assert 'begins, 12 images, 11 of them done before' in capfd.readouterr().err


def test_parts_that_several_processes_score_become_the_file_of_one(store):
    score_images(store, [Grey()])
    alone = scores_file(store).read_bytes()
    scores_file(store).unlink()
    parts, scorer = parts_of(store, size=5), Grey()
    assert [(part.start, part.stop) for part in parts] == [(0, 5), (5, 10), (10, 15)]
    for part in reversed(parts):
        assert not are_scored(store, [scorer])
        score_part(store, [scorer], part)
        score_part(store, [scorer], part)  # it is there
        join_parts(store, [scorer], parts)
    assert are_scored(store, [scorer])
    assert scorer.seen == 12
    assert scores_file(store).read_bytes() == alone
    assert [*scores_file(store).parent.iterdir()] == [scores_file(store)]
    score_part(store, [scorer], parts[0])  # by a process that is late
    assert scorer.seen == 12


def test_parts_keep_what_other_scorers_have_said(store):
    score_images(store, [Grey('other', add=0.5)])
    scorers, parts = [Grey('other', add=0.5), Grey()], parts_of(store, size=7)
    for part in parts:
        score_part(store, scorers[1:], part)
    join_parts(store, scorers[1:], parts)
    found = score_images(store, scorers)
    assert found.grey.tolist() == GREYS
    assert found.other.tolist() == [g + 0.5 for g in GREYS]
    assert scorers[0].seen == 0


def test_a_damaged_part_is_scored_again(store):
    parts, scorer = parts_of(store, size=6), Grey()
    for part in parts:
        score_part(store, [scorer], part)
    first = min(scores_file(store).with_suffix('').iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b'x')
    with pytest.warns(UserWarning, match='scored again'):
        join_parts(store, [scorer], parts)
    assert not are_scored(store, [scorer])
    with pytest.warns(UserWarning, match='scored again'):
        score_part(store, [scorer], parts[0])
    join_parts(store, [scorer], parts)
    assert score_images(store, [scorer]).grey.tolist() == GREYS
    assert scorer.seen == 18


def test_another_scorer_computes_only_itself(store, tmp_path):
    out = tmp_path / 'm.parquet'
    score_images(store, [Grey()], out)
    old, new = Grey(), Grey('other', add=0.5)
    found = score_images(store, [old, new], out)
    assert (old.seen, new.seen) == (0, 12)
    assert (found['other'] - found['grey']).tolist() == [0.5] * 12
    # the older column survived
    last = Grey()
    assert score_images(store, [last], out)['grey'].tolist() == GREYS
    assert last.seen == 0


def test_a_scorer_with_other_weights_is_another_scorer(store, tmp_path):
    out = tmp_path / 'm.parquet'
    score_images(store, [Grey()], out)
    v2 = Grey(key='k2', add=100)
    found = score_images(store, [v2], out)
    assert v2.seen == 12
    assert found['grey'].tolist() == [100 + g for g in GREYS]
    assert '"grey": "k2"' in found['scorer_keys'][0]
    # and v1 is still there
    v1 = Grey()
    assert score_images(store, [v1], out)['grey'].tolist() == GREYS
    assert v1.seen == 0


# scored and written a few images at a time
FEW = Portions(batch_size=2, shard_size=4)


def test_interrupted_scoring_goes_on(store, tmp_path):
    whole, out = tmp_path / 'whole.parquet', tmp_path / 'm.parquet'
    score_images(store, [Grey()], whole, portions=FEW)
    with pytest.raises(KeyboardInterrupt):
        score_images(store, [Grey(life=9)], out, portions=FEW)
    rest = Grey()
    score_images(store, [rest], out, portions=FEW)
    assert rest.seen == 4
    assert out.read_bytes() == whole.read_bytes()


def test_a_redrawn_image_is_scored_again(store, tmp_path):
    out = tmp_path / 'm.parquet'
    score_images(store, [Grey()], out)
    path = store.folder / store.index['file'][6]
    Image.new('RGB', (4, 4), (200,) * 3).save(path)
    store.index.loc[6, 'sha256'] = hashlib.sha256(path.read_bytes()).hexdigest()
    again = Grey()
    found = score_images(store, [again], out)
    assert again.seen == 1
    assert found['grey'].tolist() == [200 if i == 6 else g for i, g in enumerate(GREYS)]


def test_scores_of_other_images_and_other_files_are_refused(store, tmp_path):
    out = tmp_path / 'm.parquet'
    score_images(store, [Grey()], out)
    with pytest.raises(InputError, match='steps is 9 there and 10 here'):
        score_images(replace(store, inputs=store.inputs | {'steps': 10}), [Grey()], out)
    write_sealed(out, pa.table({'grey': [1.0]}))
    with pytest.raises(InputError, match='no file of scores'):
        score_images(store, [Grey()], out)
    out.write_text('a note')
    with pytest.raises(InputError, match='has no seal'):
        score_images(store, [Grey()], out)
    assert out.read_text() == 'a note'


def test_damaged_scores_are_made_again(store, tmp_path):
    "One bit of a score: without its seal, another number that nobody would notice."
    out = tmp_path / 'm.parquet'
    score_images(store, [Grey()], out)
    whole = out.read_bytes()
    score = np.float32(GREYS[0]).tobytes()
    assert whole.count(score) >= 1
    out.write_bytes(whole.replace(score, np.float32(GREYS[0] + 1).tobytes()))
    again = Grey()
    with pytest.warns(UserWarning, match='damaged.*scored again'):
        found = score_images(store, [again], out)
    assert (again.seen, found['grey'].tolist()) == (len(GREYS), GREYS)
    assert out.read_bytes() == whole


def test_scores_of_an_older_version_are_made_again_where_the_place_is_ours(store):
    "They have no seal; a file that the user has named is not overwritten."
    score_images(store, [Grey()])
    (path,) = (runs_root() / 'scores').glob('*.parquet')
    whole = path.read_bytes()
    pq.write_table(read_sealed(path, ''), path)
    again = Grey()
    with pytest.warns(UserWarning, match='has no seal.*scored again'):
        score_images(store, [again])
    assert again.seen == len(GREYS)
    assert path.read_bytes() == whole


def test_a_score_that_is_no_number_is_refused_and_not_kept(store, tmp_path):
    class Broken(Grey):
        def score(self, images, prompts):
            return torch.where(super().score(images, prompts) == 21, torch.nan, 1.0)

    with pytest.raises(InputError) as e:
        score_images(store, [Broken()], tmp_path / 'm.parquet')
    assert store.index['file'][9] in str(e.value)
    assert "'three'" in str(e.value)
    assert not (tmp_path / 'm.parquet').exists()


def test_default_place_is_one_a_store(store, tmp_path, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    for s in (store, replace(store, inputs=store.inputs | {'steps': 10}), store):
        score_images(s, [Grey()])
    assert len(list((tmp_path / 'runs/scores').glob('*.parquet'))) == 2


def test_order_of_the_index_does_not_matter(store, tmp_path):
    score_images(store, [Grey()], tmp_path / 'm.parquet')
    turned = replace(store, index=store.index[::-1])  # not a RangeIndex either
    again = Grey()
    found = score_images(turned, [again], tmp_path / 'm.parquet')
    assert again.seen == 0
    assert found['grey'].tolist() == GREYS[::-1]


# --- gains


def test_gains_by_hand():
    """Two prompts of two images. HPS: prompt means 2, 4 against 1, 1, its base scores 0, 2, 1, 1
    with s.d. sqrt(2/3). CLIP: 0, 0 against 3, -1, its base scores 4, 2, -4, 2 with s.d.
    sqrt(12)."""
    a = score_table('a', {'hps': [[1.0, 3], [4, 4]], 'clip': [[0.0, 0], [0, 0]]}, prompt_set='s')
    base = score_table(
        'base', {'hps': [[0.0, 2], [1, 1]], 'clip': [[4.0, 2], [-4, 2]]}, prompt_set='s'
    )
    both = pd.concat([a, base])
    row, back = mean_gains(both, [('a', 'base'), ('base', 'a')], ['hps', 'clip']).to_dict('records')
    first, second = (1 / (2 / 3) ** 0.5 - 3 / 12**0.5) / 2, (3 / (2 / 3) ** 0.5 + 1 / 12**0.5) / 2
    assert row['gain'] == pytest.approx((first + second) / 2)
    assert back['gain'] == -row['gain']
    assert row['n'] == 2
    # a quarter of the resamples at either end
    assert (row['low'], row['high']) == pytest.approx((first, second))
    alone = mean_gains(both, [('a', 'base')], ['hps']).gain.item()
    other = mean_gains(both.assign(hps=7 * both.hps + 3), [('a', 'base')], ['hps']).gain.item()
    assert (
        alone == pytest.approx(2 / (2 / 3) ** 0.5) == pytest.approx(other)
    )  # no unit, no zero point
    with pytest.raises(InputError, match="no scores of 'c' to take the unit"):
        mean_gains(both, [('a', 'base')], ['hps'], unit='c')
    with pytest.raises(InputError, match="all scores of 'a' by 'clip' on 's' are equal"):
        mean_gains(both, [('a', 'base')], ['hps', 'clip'], unit='a')


def test_the_interval_of_a_gain_by_a_slow_implementation():
    "It draws prompts, each with all its scorers: a scorer that repeats another leaves it as it is."
    draw = np.random.default_rng(3)
    x, y = draw.normal(size=(2, 30, 2)) + [[[0.3]], [[0]]]
    both = pd.concat(
        [
            score_table('a', {'hps': x, 'again': 10 * x}),
            score_table('base', {'hps': y, 'again': 10 * y}),
        ]
    )
    one, two = (
        mean_gains(both, [('a', 'base')], names)[['gain', 'low', 'high']].to_numpy()[0]
        for names in (['hps'], ['hps', 'again'])
    )
    assert one == pytest.approx(two)
    each = (x.mean(1) - y.mean(1)) / y.astype('float32').std(ddof=1)
    means = np.sort([each[draw.integers(0, 30, 30)].mean() for _ in range(20_000)])
    assert one == pytest.approx([each.mean(), means[499], means[19_499]], abs=0.01)
