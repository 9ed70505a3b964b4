"GenEval's prompts, read as a stranger's file."

import json

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.data.prompts import read_prompts
from balanceddpo.evaluation.geneval_prompts import Clause, TaskPrompt, read_geneval, task_prompt
from balanceddpo.evaluation.tasks import prompt_file

LINES = [
    {
        'tag': 'single_object',
        'include': [{'class': 'cup', 'count': 1}],
        'prompt': 'a photo of a cup',
    },
    {
        'tag': 'counting',
        'include': [{'class': 'cup', 'count': 2}],
        'exclude': [{'class': 'cup', 'count': 3}],
        'prompt': 'a photo of two cups',
    },
    {
        'tag': 'position',
        'include': [
            {'class': 'cup', 'count': 1},
            {'class': 'dog', 'count': 1, 'position': ['above', 0]},
        ],
        'prompt': 'a photo of a dog above a cup',
    },
    {
        'tag': 'color_attr',
        'include': [
            {'class': 'cup', 'count': 1, 'color': 'red'},
            {'class': 'dog', 'count': 1, 'color': 'blue'},
        ],
        'prompt': 'a photo of a red cup and a blue dog',
    },
]
PROMPTS = [task_prompt(line) for line in LINES]


def jsonl(path, *lines):
    path.write_text(
        ''.join((line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines)
    )
    return path


def test_metadata_are_read_and_told_again(tmp_path):
    file = jsonl(
        tmp_path / 'm.jsonl',
        '\ufeff' + json.dumps(LINES[0]),
        *LINES[1:3],
        '',
        {**LINES[3], 'more': 1},
    )
    assert read_geneval(file) == PROMPTS
    assert [p.metadata for p in PROMPTS] == LINES
    assert PROMPTS[2].include[1] == Clause('dog', 1, None, ('above', 0))
    assert PROMPTS[1].exclude == (Clause('cup', 3),)


def changed(line, at=('include', 0), **more):
    line = json.loads(json.dumps(line))
    part = line[at[0]][at[1]] if at else line
    for k, v in more.items():
        part.pop(k) if v is ... else part.update({k: v})
    return line


def top(**more):
    return changed(LINES[0], None, **more)


def cup(**more):
    return changed(LINES[0], **more)


def dog(position):
    return changed(LINES[2], ('include', 1), position=position)


@pytest.mark.parametrize(
    'line, said',
    [
        ('{"tag": ', 'not JSON in UTF-8'),
        ('["a"]', 'object is wanted, found list'),
        ('NaN', 'object is wanted'),
        ('[' * 100_000, 'not JSON'),
        ('{"tag": 1' + '0' * 5000 + '}', 'not JSON'),
        (LINES[1], r'was there already \(line 1\)'),
        (top(tag='colour'), 'tag must be one of'),
        (top(tag=...), 'found None'),
        (top(tag=['colors']), 'found list'),
        (top(tag='x' * 10_000), 'found'),
        (top(include=[]), 'include must be a list of clauses, found list'),
        (top(include=...), 'include'),
        (top(exclude={}), 'exclude must'),
        (top(include=['cup']), 'a clause must be an object'),
        (top(prompt=...), 'prompt must be text'),
        (top(prompt=' a cup'), 'blank ends'),
        (top(prompt='\ud800'), 'not valid text'),
        (top(prompt=''), 'prompt must be text'),
        (cup(count=0), 'count must be a whole number from 1 to 17, found 0'),
        (cup(count=True), 'found True'),
        (cup(count=1.0), r'found 1\.0'),
        (cup(count='1'), "found '1'"),
        (cup(count=18), 'found 18'),
        (cup(count=...), 'found None'),
        (cup(**{'class': 3}), 'class must be text'),
        (cup(**{'class': ...}), 'class must be text'),
        (cup(colour='red'), "unknown field 'colour'"),
        (cup(color='mauve'), 'color must be one of'),
        (cup(color=['red']), 'found list'),
        (changed(LINES[1], ('exclude', 0), color='red'), "unknown field 'color'"),
        (dog(['near', 0]), 'position must be a list'),
        (dog('above'), 'position must be a list'),
        (dog(['above', 1]), 'refers to clause 1'),
        (dog(['above', -1]), 'refers to clause -1'),
        (dog(['above', False]), 'refers to clause False'),
        (changed(LINES[2], ('include', 0), position=['above', 0]), 'and 0 come before it'),
    ],
)
def test_a_bad_line_is_refused_in_one_line_by_its_number(tmp_path, line, said):
    file = jsonl(tmp_path / 'm.jsonl', LINES[1], line)
    with pytest.raises(InputError, match=said) as caught:
        read_geneval(file)
    assert str(caught.value).startswith(f'{file}: line 2')
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(file)) + 250


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match='cannot read'):
        read_geneval(tmp_path / 'absent.jsonl')
    with pytest.raises(InputError, match='cannot read'):
        read_geneval(tmp_path)
    for content, said in (
        (b'\n\n', 'holds no prompts'),
        (json.dumps(LINES[0]).encode() + b'\n{"tag": "\xff"}\n', 'line 2 is not JSON in UTF-8'),
    ):
        (tmp_path / 'm').write_bytes(content)
        pytest.raises(InputError, read_geneval, tmp_path / 'm').match(said)


def test_the_prompts_to_draw_are_the_prompts_to_check(tmp_path):
    odd = [
        TaskPrompt('colors', text, (Clause('cup', 1),))
        for text in ('a cup', 'a\u2028cup', 'a\ncup', '\ufeffa cup', 'una taza, por favor: "ñ"')
    ]
    read = read_prompts(prompt_file(odd, tmp_path / 'p.json'))
    assert read.prompts == tuple(p.prompt for p in odd)
    assert read.ids == tuple(p.id for p in odd)
    # under runs_root(), by content
    assert prompt_file(odd) == prompt_file(list(odd)) != prompt_file(odd[:2])
