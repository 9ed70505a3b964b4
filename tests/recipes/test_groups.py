"""Images that are there already are groups, and give the pairs that they give when drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import make_pair, write_pairs, written_ids
from balanceddpo.data.prompts import read_prompts
from balanceddpo.data.sources import PairSource
from balanceddpo.models.config import SampleConfig
from balanceddpo.pipeline.alignment import draw_groups, group_pairs, groups_in_pairs
from balanceddpo.scoring.registry import load_scorers
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.voting.group_rules import GROUP_RULES
from made_pairs import encoded, plain


def colour(name, channel):
    "A scorer: the mean of one colour of a picture."

    def score(images, _):
        return [float(np.asarray(i, float)[..., channel].mean()) for i in images]

    return FunctionScorer(name, name, score)


JUDGES = [colour('hps', 0), colour('clip', 1)]


def pairs_file(folder, *pairs):
    return PairSource(str(write_pairs([make_pair(*p) for p in pairs], folder / 'pairs.parquet')))


def scores_by_image(groups):
    "What each image of each group scored, in their order, without those that are not there."
    return [s[~np.isnan(s).any(axis=1)].tolist() for s in groups.scores]


def test_a_picture_in_several_pairs_of_a_prompt_counts_once(tmp_path):
    a, b, c, d = (plain(n) for n in (10, 20, 30, 40))
    source = pairs_file(tmp_path, ('x', (a, b)), ('y', (a, d)), ('x', (c, a)), ('x', (b, c)))
    groups = groups_in_pairs(source, JUDGES)
    assert scores_by_image(groups) == [[[10, 0], [20, 0], [30, 0]], [[10, 0], [40, 0]]]
    assert np.isnan(groups.scores[1, 2]).all()


@pytest.mark.parametrize('most, sizes', [(16, [7]), (4, [4, 3]), (3, [3, 2, 2]), (2, [2, 2, 2, 1])])
def test_many_pictures_make_groups_of_nearly_equal_size(tmp_path, most, sizes):
    pictures = [plain(n) for n in range(7)]
    source = pairs_file(tmp_path, *(('x', two) for two in zip(pictures, pictures[1:])))
    groups = groups_in_pairs(source, JUDGES, most)
    assert [len(found) for found in scores_by_image(groups)] == sizes
    assert len({*groups.prompt_ids}) == len(sizes)
    seen = [tuple(row) for found in scores_by_image(groups) for row in found]
    assert sorted(seen) == [(n, 0) for n in range(7)]


def test_a_pair_may_join_pictures_that_no_row_has_together(tmp_path):
    dark, middle, bright = (plain(n) for n in (10, 20, 30))
    source = pairs_file(tmp_path, ('x', (dark, middle)), ('x', (middle, bright)))
    groups = groups_in_pairs(source, JUDGES[:1])
    (rule,) = GROUP_RULES['borda'](groups.scorers)
    pairs, labels = group_pairs(groups, rule)
    (pair,) = pairs.read()
    assert (pair.caption, pair.images) == ('x', (bright, dark))
    assert labels[['pair_id', 'w0', 'w1']].values.tolist() == [[pair.pair_id, 1.0, 0.0]]


def test_transparency_is_laid_over_what_the_source_says(tmp_path):
    clear = [encoded(Image.new('RGBA', (4, 4), (n, 0, 0, 0))) for n in (90, 200)]
    source = replace(pairs_file(tmp_path, ('x', clear)), background='ignore')
    groups = groups_in_pairs(source, JUDGES[:1])
    assert scores_by_image(groups) == [[[90], [200]]]
    pairs, _ = group_pairs(groups, GROUP_RULES['borda'](groups.scorers)[0])
    assert pairs.background == 'ignore'


def test_pictures_that_have_changed_since_they_were_scored_are_told(tmp_path):
    source = pairs_file(tmp_path, ('x', (plain(1), plain(2))))
    groups = groups_in_pairs(source, JUDGES[:1])
    pairs_file(tmp_path, ('x', (plain(1), plain(3))))
    with pytest.raises(InputError, match='1 of the images .* not there any more'):
        group_pairs(groups, GROUP_RULES['borda'](groups.scorers)[0])


@pytest.fixture(scope='module')
def judges():
    return load_scorers(['icons:hps', 'icons:clip'], device='cpu')


def as_ranking(groups, folder):
    "The drawn images of groups as a ranking of files, in the order of their numbers."
    rows = []
    for prompt, k in groups.store.index[['prompt_id', 'image_index']].itertuples(index=False):
        name = f'{prompt}-{k}.png'
        (folder / name).write_bytes(groups.store.png(prompt, k))
        text = groups.store.index.query('prompt_id == @prompt').prompt.iloc[0]
        rows.append(json.dumps(dict(image=name, prompt=text, rank=int(k))))
    (folder / 'ranking.jsonl').write_text('\n'.join(rows))
    return PairSource(str(folder / 'ranking.jsonl'), rankings='ends')


@pytest.mark.parametrize('name', ['borda', 'frontiers', 'majority'])
def test_given_images_make_the_pairs_that_they_make_when_they_are_drawn(tmp_path, judges, name):
    config = SampleConfig(model='icons', images_per_prompt=4, steps=2, device='cpu')
    drawn = draw_groups(config, judges, read_prompts('icons:pickapic', limit=3))
    given = groups_in_pairs(as_ranking(drawn, tmp_path), judges)
    assert given.prompt_ids == drawn.prompt_ids
    (rule,) = GROUP_RULES[name](drawn.scorers)
    (one, labels), (other, same) = (group_pairs(g, rule, visits=3) for g in (drawn, given))
    assert labels.equals(same)
    assert list(one.read()) == list(other.read())
    assert [p.pair_id for p in one.read()] == written_ids(other.source) == list(labels.pair_id)
