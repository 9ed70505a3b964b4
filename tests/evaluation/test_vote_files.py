"""Files of votes: what they say, and what of them is refused."""

import json

import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation import vote_files
from balanceddpo.evaluation.vote_files import read_votes
from made_pairs import refused
from made_votes import SHA, side, vote, votes_for, write_votes

PROMPTS = ('kite', 'fox', 'dog')


@pytest.fixture
def write(tmp_path):
    "Write a file of votes by the name of the voter."
    return lambda name, votes, **changes: write_votes(tmp_path / f'{name}.json', votes, **changes)


def test_who_was_on_the_left_does_not_matter(write):
    anna = write(
        'anna', [vote('kite', 'ours', 'base', 'left'), vote('fox', 'ours', 'base', 'alike')]
    )
    ben = write('ben', [vote('kite', 'base', 'ours', 'right'), vote('dog', 'base', 'ours', 'left')])
    votes = read_votes([anna, ben])
    assert votes.voter.tolist() == ['anna', 'anna', 'ben', 'ben']
    assert votes.prompt_id.tolist() == ['kite', 'fox', 'kite', 'dog']
    assert votes.vote.tolist() == [1, 0, 1, -1]
    assert votes.a_was_left.tolist() == [True, True, False, False]
    assert votes.pair[0] == votes.pair[2]
    assert votes.pair.nunique() == 3
    assert set(zip(votes.model_a, votes.model_b)) == {('ours', 'base')}
    assert votes['at'].iloc[0] == pd.Timestamp('2026-11-28 12:00', tz='UTC')
    assert votes.attrs['models'] == ['base', 'ours']
    assert votes.seconds.tolist() == [2.5] * 4


def test_another_order_of_the_models_is_the_same_vote(write):
    anna = write('anna', votes_for([1, -1, 0], PROMPTS))
    there = [vote('kite', 'ours', 'base', 'left'), vote('fox', 'ours', 'base', 'right')]
    ben = write('ben', there, models=['ours', 'base'])
    votes = read_votes([anna, ben])
    assert votes.vote.tolist() == [1, -1, 0, 1, -1]
    assert votes.pair[:2].tolist() == votes.pair[3:].tolist()
    assert votes.model_a.unique().tolist() == ['ours']
    assert votes.a_was_left.tolist()[3:] == [True, True]


def test_one_person_may_vote_on_several_pairs_of_models(write, tmp_path):
    first = write('anna', votes_for([1, 1, 1], PROMPTS))
    other = votes_for([0, -1, 1], PROMPTS, models=('base', 'third'))
    second = write_votes(tmp_path / 'b.json', other, 'anna', ('base', 'third'))
    votes = read_votes([first, second])
    assert set(zip(votes.model_a, votes.model_b)) == {('ours', 'base'), ('third', 'base')}
    assert votes.pair.nunique() == 6
    said = refused(read_votes, [first, write_votes(tmp_path / 'c.json', other[:1], 'anna'), second])
    assert 'the page has no model' in said


def test_votes_on_pairs_are_for_image_0_or_1(write):
    rows = [
        vote('p0', side(0), side(1), 'left', pair_id='p0'),
        vote('p1', side(1, sha256='cd' * 32), side(0), 'left', pair_id='p1'),
        vote('p2', side(1), side(0), 'alike', pair_id='p2'),
    ]
    votes = read_votes([write('anna', rows, models=['image 0', 'image 1'])])
    assert votes.attrs['of_pairs']
    assert votes.pair.tolist() == ['p0', 'p1', 'p2']
    assert votes.vote.tolist() == [1, -1, 0]
    assert votes.sha256_a.tolist() == [SHA] * 3
    assert votes.sha256_b.tolist() == [SHA, 'cd' * 32, SHA]


def test_a_whole_number_may_name_a_prompt(write):
    assert read_votes([write('anna', [vote(3, 'base', 'ours', 'left')])]).prompt_id.tolist() == [
        '3'
    ]


LONG = 'x' * 201
DEEP = []
for _ in range(900):
    DEEP = [DEEP]
WRONG_HEADS = [
    ({'format': 'votes'}, 'is no file of votes'),
    ({'version': 2}, 'votes of version 2 are not known'),
    ({'version': '1'}, "votes of version '1' are not known"),
    (
        {'page': None},
        'page must be 1 to 200 printable characters, not None',
    ),
    ({'voter': ''}, 'voter must be 1 to 200 printable'),
    ({'voter': LONG}, 'voter must be 1 to 200 printable'),
    ({'voter': 'an\x1b[2Jna'}, 'voter must be 1 to 200 printable'),
    ({'voter': ['anna']}, 'voter must be'),
    ({'voter': '=HYPERLINK("a")'}, 'the first none of =+-@'),
    ({'seed': -1}, 'seed must be a whole number'),
    ({'seed': 1.5}, 'seed must be a whole number'),
    ({'seed': True}, 'seed must be a whole number'),
    ({'models': 'base'}, 'models must be a list'),
    ({'models': []}, 'models must be a list'),
    ({'models': ['base', 'base']}, 'models must be a list of 1 to 1000 different'),
    ({'models': ['base', 7]}, 'models must be a list'),
    ({'votes': {}}, 'votes must be a list'),
    ({'votes': []}, "holds no votes: has 'anna' voted"),
    ({'votes': ['left']}, 'vote 1 is no object'),
]


@pytest.mark.parametrize('changes, says', WRONG_HEADS)
def test_a_file_that_is_none_is_one_line(write, changes, says):
    changes = {'votes': votes_for([1], PROMPTS)} | changes
    assert says in refused(read_votes, [write('anna', **changes)])


WRONG_VOTES = [
    ({'prompt_set': 7}, 'prompt_set must be'),
    ({'prompt_id': ''}, 'prompt_id must be a name or a whole number'),
    ({'prompt_id': 1.5}, 'prompt_id must be'),
    ({'prompt': 'x' * 20_001}, 'prompt must be a text of at most 20000 characters'),
    ({'prompt': None}, 'prompt must be a text'),
    ({'prompt': '\ud800'}, 'not valid text'),
    ({'choice': 'both'}, "choice must be left, right or alike, not 'both'"),
    ({'choice': ['left']}, 'choice must be left, right or alike'),
    ({'seconds': -1}, 'seconds must be seconds, a number from 0'),
    ({'seconds': '2'}, 'seconds must be'),
    ({'seconds': 1e99}, 'seconds must be'),
    ({'seconds': 10**4000}, 'seconds must be'),
    ({'seconds': DEEP}, 'seconds must be'),
    ({'at': 'yesterday'}, 'at must be a time'),
    ({'at': '2026-11-28'}, 'at must be a time'),
    ({'at': 5}, 'at must be a time'),
    ({'left': 'ours'}, 'left must be an object'),
    ({'left': side('other')}, "the page has no model 'other'"),
    ({'left': side('base')}, "both images are of 'base'"),
    ({'left': side('ours') | {'sha256': 'AB' * 32}}, 'left: sha256 must be 64 hex characters'),
    ({'left': side('ours') | {'sha256': 'ab' * 32 + '\n'}}, 'sha256 must be 64 hex'),
    ({'right': side('base') | {'image_index': -1}}, 'right: image_index must be a whole number'),
    ({'right': side('base') | {'image_index': True}}, 'image_index must be a whole number'),
    ({'right': {'model': 'base'}}, "right has no 'image_index'"),
    ({'pair_id': 7}, 'pair_id must be'),
    ({'pair_id': 'p'}, "left has no 'image'"),
    ({'pair_id': 'p', 'left': side(2), 'right': side(1)}, 'image must be 0 or 1'),
    ({'pair_id': 'p', 'left': side(1), 'right': side(1)}, 'both images are image 1'),
]


@pytest.mark.parametrize('changes, says', WRONG_VOTES)
def test_a_vote_that_is_none_is_one_line_with_its_number(write, changes, says):
    rows = [vote('fox', 'base', 'ours', 'left'), vote('kite', 'ours', 'base', 'left') | changes]
    said = refused(read_votes, [write('anna', rows)])
    assert says in said
    assert 'anna.json, vote 2' in said


@pytest.mark.parametrize('name', vote('kite', 'ours', 'base', 'left'))
def test_nothing_may_be_left_out(write, name):
    row = vote('kite', 'ours', 'base', 'left')
    del row[name]
    assert f'vote 1 has no {name!r}' in refused(read_votes, [write('anna', [row])])


@pytest.mark.parametrize(
    'text, says',
    [
        ('', 'not JSON'),
        ('votes', 'not JSON'),
        ('[]', 'is no file of votes'),
        ('7', 'is no file of votes'),
        ('{"format": NaN}', 'NaN is no number'),
        ('[' * 100_000, 'nested too deeply'),
        ('{"a":' * 100_000, 'nested too deeply'),
        ('1' * 5000, 'not JSON'),
    ],
)
def test_what_is_no_json_of_ours(tmp_path, text, says):
    (tmp_path / 'votes.json').write_text(text)
    assert says in refused(read_votes, [tmp_path / 'votes.json'])


def test_what_cannot_be_read(tmp_path, monkeypatch, write):
    assert 'No such file' in refused(read_votes, [tmp_path / 'none.json'])
    assert 'Is a directory' in refused(read_votes, [tmp_path])
    (tmp_path / 'latin.json').write_bytes('{"format": "été"}'.encode('latin-1'))
    assert 'not JSON' in refused(read_votes, [tmp_path / 'latin.json'])
    assert 'name the files' in refused(read_votes, [])
    large = write('anna', votes_for([1], PROMPTS))
    monkeypatch.setattr(vote_files, 'MOST_BYTES', 100)
    assert 'no file of votes is' in refused(read_votes, [large])


def test_files_that_do_not_go_together(write, tmp_path):
    anna = write('anna', votes_for([1, 0, 1], PROMPTS))
    ben = votes_for([1, 0, 1], PROMPTS)
    said = refused(read_votes, [anna, write('ben', ben, page='another')])
    assert f'{tmp_path}/ben.json is of another page than {anna}' in said
    assert "are both of 'anna'" in refused(read_votes, [anna, write('copy', ben, voter='anna')])
    assert "are both of 'anna'" in refused(read_votes, [anna, anna])
    of_pair = vote('p', side(0), side(1), 'left', pair_id='p')
    assert 'on models and on pairs' in refused(read_votes, [anna, write('carl', [of_pair])])
    assert 'on models and on pairs' in refused(read_votes, [write('dora', [*ben, of_pair])])
    other = [vote('kite', side('base', sha256='cd' * 32), 'ours', 'left')]
    assert "other images in the file of 'anna'" in refused(read_votes, [anna, write('eva', other)])
    other = [vote('kite', 'base', 'ours', 'left', prompt='a green kite')]
    assert "other prompts in the file of 'anna'" in refused(read_votes, [anna, write('flo', other)])


def test_a_row_voted_twice_is_refused_whichever_way_round(write):
    rows = [vote('kite', 'base', 'ours', 'left'), vote('kite', 'ours', 'base', 'left')]
    said = refused(read_votes, [write('anna', rows)])
    assert 'anna.json, vote 2: prompt kite is voted on twice' in said
    rows[1] = vote('kite', side('ours', 1), side('base', 1), 'left')  # other images of the prompt
    assert len(read_votes([write('anna', rows)])) == 2


def test_what_else_a_file_holds_is_passed_over(write):
    rows = [vote('kite', 'base', 'ours', 'left', __class__='os.system', more=[1])]
    path = write('anna', rows, comment='<script>')
    assert json.loads(path.read_text())['comment']
    votes = read_votes([path])
    assert not {'more', 'comment', '__class__'} & set(votes)


def test_the_error_is_an_input_error(write):
    with pytest.raises(InputError):
        read_votes([write('anna', [])])
