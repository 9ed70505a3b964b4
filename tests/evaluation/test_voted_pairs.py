"""Votes become pairs: the images that were voted on, and the share of votes."""

from dataclasses import replace
from hashlib import sha256

import pytest

from balanceddpo.data.pairs import make_pair
from balanceddpo.data.prompted_pictures import PictureSource
from balanceddpo.evaluation.human_votes import joined_choices
from balanceddpo.evaluation.result_images import ResultImages, image_list, write_image_list
from balanceddpo.evaluation.vote_files import read_votes
from balanceddpo.evaluation.voted_pairs import check_voted, relabelled_pairs, voted_pairs
from balanceddpo.models.picture_store import Pictures, all_pictures
from made_pairs import plain, refused, some_pairs
from made_votes import side, vote, write_votes

NAMES = ('a_red_kite', 'a_red_fox')


@pytest.fixture
def images(tmp_path):
    "The images of two models on two prompts, as an evaluation lists them."
    drawn = []
    for k, model in enumerate(('base', 'ours')):
        (tmp_path / model).mkdir()
        for n, name in enumerate(NAMES):
            (tmp_path / model / f'{name}.png').write_bytes(plain(10 * k + n + 1))
        drawn.append((model, 'hpd', all_pictures(Pictures(PictureSource.of(tmp_path / model)))))
    write_image_list(image_list(drawn, tmp_path / 'results'), tmp_path / 'results')
    return ResultImages.open(tmp_path / 'results')


def sides_of(images, prompt):
    "(prompt id, side of base, side of ours) of a prompt."
    rows = images.rows[images.rows.prompt == prompt].set_index('model')
    sides = [side(model, 0, rows.sha256[model]) for model in ('base', 'ours')]
    return rows.prompt_id['base'], *sides


@pytest.fixture
def joined(images, tmp_path):
    "Anna is for ours on both prompts; Ben is for base on the kite and cannot tell the foxes."
    files = []
    for voter, choices in (('anna', ('right', 'right')), ('ben', ('left', 'alike'))):
        rows = []
        for prompt, choice in zip(('a red kite', 'a red fox'), choices):
            prompt_id, base, ours = sides_of(images, prompt)
            rows.append(vote(prompt_id, base, ours, choice, prompt=prompt))
        files.append(write_votes(tmp_path / f'{voter}.json', rows))
    return joined_choices(read_votes(files))


def test_the_pairs_have_the_images_and_the_share_of_votes(joined, images, tmp_path):
    check_voted(joined, images)
    kite, fox = voted_pairs(joined, images)
    assert (kite.caption, kite.label_0, kite.models) == ('a red kite', 0.5, ('ours', 'base'))
    assert (fox.caption, fox.label_0) == ('a red fox', 0.75)
    for pair, name in ((kite, NAMES[0]), (fox, NAMES[1])):
        files = [(tmp_path / model / f'{name}.png').read_bytes() for model in ('ours', 'base')]
        assert list(pair.images) == files


@pytest.mark.parametrize(
    'changes, says',
    [
        ({'model_a': 'our'}, "has no model 'our': did you mean ours"),
        ({'image_a': 1}, "has no image 1 of 'ours'"),
        ({'prompt_set': 'parti'}, "of 'parti': name the results that were voted on"),
        ({'sha256_b': '0' * 64}, "image 0 of 'base' for prompt"),
        ({'prompt': 'another'}, 'is not the one that was voted on'),
    ],
)
def test_votes_on_other_images_are_refused(joined, images, changes, says):
    for check in (check_voted, lambda *words: list(voted_pairs(*words))):
        assert says in refused(check, joined.assign(**changes), images)


def test_an_image_that_has_changed_since_is_refused(joined, images, tmp_path):
    (tmp_path / 'ours' / 'a_red_fox.png').write_bytes(plain(99))
    found = voted_pairs(joined, images)
    assert next(found).caption == 'a red kite'
    assert 'is not the image that was scored' in refused(list, found)


def of_pairs(pairs, choices, tmp_path):
    rows = []
    for pair, choice in zip(pairs, choices):
        sides = [side(k, sha256=sha256(pair.images[k]).hexdigest()) for k in (1, 0)]
        rows.append(vote(pair.pair_id, *sides, choice, pair_id=pair.pair_id, prompt=pair.caption))
    return joined_choices(read_votes([write_votes(tmp_path / 'anna.json', rows)]))


def test_votes_on_pairs_are_their_labels(tmp_path):
    pairs = list(some_pairs(4))
    joined = of_pairs(pairs[1:], ['right', 'left', 'alike'], tmp_path)
    found = list(relabelled_pairs(joined, pairs))
    assert [pair.label_0 for pair in found] == [1, 0, 0.5]
    assert found == [replace(p, label_0=q.label_0) for p, q in zip(pairs[1:], found)]


def test_other_pairs_than_those_voted_on_are_refused(tmp_path):
    pairs = list(some_pairs(3))
    joined = of_pairs(pairs, ['left'] * 3, tmp_path)
    said = refused(list, relabelled_pairs(joined, pairs[:2]))
    assert (
        f'1 of 3 pairs that were voted on are not among these, the first is {pairs[2].pair_id}'
        in said
    )
    swapped = make_pair(pairs[0].caption, (plain(77), plain(78)))
    other = [replace(swapped, pair_id=pairs[0].pair_id), *pairs[1:]]
    assert 'has other images than were voted on' in refused(list, relabelled_pairs(joined, other))


def test_the_choice_by_reliability_is_the_label_too(joined, images):
    chances = joined.assign(share=[0.9, 0.2])
    assert [p.label_0 for p in voted_pairs(chances, images)] == [0.9, 0.2]
