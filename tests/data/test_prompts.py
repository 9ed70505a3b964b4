"""Edge cases of `balanceddpo.data.prompts`: hostile prompts, and every format of a prompt file."""

import json
import os
import re

import pytest

import balanceddpo.data.prompts
from balanceddpo.core.errors import refusal
from balanceddpo.data.pairs import make_pair, write_pairs
from balanceddpo.data.prompts import PromptSet, prompt_id, prompts_of, read_prompts
from balanceddpo.models.sampling import image_seed


def refused(*args, **kwargs):
    "What `read_prompts` refuses its arguments with: one line, and not a long one."
    message = refusal(read_prompts, *args, **kwargs)
    assert '\n' not in message
    assert len(message) < 600
    return message


HOSTILE = [
    '<img src=x onerror=alert(1)>',
    '../../etc/passwd',
    '/absolute',
    'nul\0byte',
    'x' * 400,
    '"quoted" and, with comma',
    'línea\u2028two',
    '🦊',
    "'; DROP TABLE prompts; --",
    'CON',
]


def test_hostile_prompts_are_safe_as_ids(tmp_path):
    (tmp_path / 'hostile.json').write_text(json.dumps(HOSTILE))
    prompts = read_prompts(tmp_path / 'hostile.json')
    assert prompts.prompts == tuple(HOSTILE)
    assert len(set(prompts.ids)) == len(HOSTILE)
    assert all(re.fullmatch('[0-9a-f]{16}', i) for i in prompts.ids)
    assert prompts.ids[0] == prompt_id(HOSTILE[0])
    for i in prompts.ids:
        (tmp_path / f'{i}.png').touch()
    assert len(os.listdir(tmp_path)) == len(HOSTILE) + 1


PARTI = (
    'Prompt\tCategory\tChallenge\tNote\r\nbond\tAbstract\tBasic\tBiology-inspired concepts\r\n"G I'
    ' G G L E" painted in thick colorful lettering\tIllustrations\tWriting & Symbols\t\r\nA sign'
    ' that says "Hello, ""friend"\tArtifacts\tWriting & Symbols\t\r\nbond \tAbstract\tBasic\t\r\n'
)


def test_partiprompts_own_file_keeps_its_quotation_marks(tmp_path):
    (tmp_path / 'PartiPrompts.tsv').write_bytes(PARTI.encode())
    parti = read_prompts(tmp_path / 'PartiPrompts.tsv')
    assert parti.prompts == (
        'bond',
        '"G I G G L E" painted in thick colorful lettering',
        'A sign that says "Hello, ""friend"',
    )
    assert (parti.name, parti.repeated, parti.empty) == ('PartiPrompts', 1, 0)
    assert read_prompts(tmp_path / 'PartiPrompts.tsv', column='Category').prompts == (
        'Abstract',
        'Illustrations',
        'Artifacts',
    )
    message = refused(tmp_path / 'PartiPrompts.tsv', column='text')
    assert "'text'" in message
    assert 'PartiPrompts.tsv' in message
    assert 'Prompt, Category, Challenge, Note' in message


def test_csv_txt_json_and_parquet(tmp_path):
    (tmp_path / 'a.csv').write_bytes(
        '\ufeffid,caption\r\n1,"a fox, and ""a hen"""\r\n2,"two\nlines"\r\n3,\r\n4\r\n'.encode()
    )
    a = read_prompts(tmp_path / 'a.csv')
    assert a.prompts == ('a fox, and "a hen"', 'two\nlines')
    assert a.empty == 2
    (tmp_path / 'a.txt').write_bytes('\ufeffa fox\r\n\r\n  a hen \na fox\na\u2028b\n'.encode())
    a = read_prompts(tmp_path / 'a.txt', limit=2)
    assert a.prompts == ('a fox', 'a hen')
    assert (a.empty, a.repeated) == (1, 1)  # a file's last line ends, too
    assert read_prompts(tmp_path / 'a.txt').prompts[-1] == 'a\u2028b'
    hpd = tmp_path / 'hpd'
    hpd.mkdir()
    (hpd / 'photo.json').write_text('["a dog", "a sky"]')
    (hpd / 'anime.json').write_text('["a witch", "a dog"]')
    assert read_prompts(hpd).prompts == ('a witch', 'a dog', 'a sky')
    assert read_prompts(hpd / 'photo.json', name='HPD photo').name == 'HPD photo'
    (tmp_path / 'b.json').write_text('[{"prompt": "a dog", "rank": [0, 1]}, {"prompt": "a cat"}]')
    assert read_prompts(tmp_path / 'b.json').prompts == ('a dog', 'a cat')
    (tmp_path / 'c.json').write_text('{"anime": ["a"], "photo": [{"prompt": "b"}]}')
    assert read_prompts(tmp_path / 'c.json').prompts == ('a', 'b')
    pairs = [make_pair(f'caption {i}', (b'one', b'two')) for i in range(3)]
    write_pairs(pairs, tmp_path / 'unique.parquet')
    assert read_prompts(tmp_path / 'unique.parquet').prompts == (
        'caption 0',
        'caption 1',
        'caption 2',
    )


@pytest.mark.parametrize(
    'name, data',
    [
        ('x.json', b'{"a": 1}'),
        ('x.json', b'"a"'),
        ('x.json', b'[1]'),
        ('x.json', b'[{"text_en": "a"}]'),
        ('x.json', b'["\\ud83d"]'),
        ('x.json', b'["a"'),
        ('x.json', b'[' * 100_000),
        ('x.json', b'[]'),
        ('x.jsonl', b'[1]'),
        ('x.jsonl', b'\xff'),
        ('x.jsonl', b'\n'),
        ('x.txt', b'\xff\xfe\x00'),
        ('x.txt', b' \n\n'),
        ('x.csv', b'a,b\n1,2\n'),
        ('x.csv', b''),
        ('x.pdf', b'a'),
        ('x.parquet', b'a'),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert name in refused(tmp_path / name)


def test_prompt_sources_that_are_not_there(tmp_path):
    refused(tmp_path / 'nothing.txt')
    refused(tmp_path)
    (tmp_path / 'x.txt').write_text('secret')
    here = os.path.dirname(balanceddpo.data.prompts.__file__)
    refused(f'icons:{os.path.relpath(tmp_path / "x", here)}')
    assert 'use hpd, partiprompts, pickapic, tuning' in refused('icons:nothing')
    assert 'did you mean hpd?' in refused('icons:hdp')
    assert 'a prompt itself goes to --prompt' in refused('a cat')


GENEVAL = """{"tag": "counting", "include": [{"class": "fork", "count": 4}], "prompt": "four forks"}

{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"}
"a plain string"
{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"}
"""


def test_json_lines_are_genevals_or_strings(tmp_path):
    path = tmp_path / 'evaluation_metadata.jsonl'
    path.write_text(GENEVAL)
    prompts = read_prompts(path)
    assert prompts.prompts == ('four forks', 'a bench', 'a plain string')
    assert (prompts.repeated, prompts.empty) == (1, 0)
    path.write_text('{"caption": "a \\u2028 b"}\n{"text": 1}')
    assert 'prompt 1 must be text, found int' in refused(path)
    path.write_text('{"caption": "a"}\n{"words": "b"}')
    assert "line 2: no column 'Prompt'; found words" in refused(path)
    path.write_text('{"caption": "a"}\n{"caption": ')
    assert 'evaluation_metadata.jsonl: line 2 is not JSON' in refused(path)


def test_a_kept_repeat_is_a_prompt_of_its_own(tmp_path):
    path = tmp_path / 'lines.txt'
    path.write_text('a cat\na dog\na cat\n\na cat\n')
    kept, once = read_prompts(path, keep_repeats=True), read_prompts(path)
    assert kept.prompts == ('a cat', 'a dog', 'a cat', 'a cat')
    assert (kept.repeated, kept.empty, once.repeated) == (0, 1, 2)
    assert kept.ids[:2] == once.ids == (prompt_id('a cat'), prompt_id('a dog'))
    assert len(set(kept.ids)) == 4
    assert kept.head(3).ids == kept.ids[:3]  # a limit changes nothing before it
    assert kept.key != once.key
    seeds = {image_seed(i, k) for i in kept.ids for k in range(3)}
    assert len(seeds) == 12  # as many pictures as three a line


def test_prompts_that_are_given_as_texts():
    given = prompts_of([' a cat ', '', 'a cat', 'a dog'], 'mine')
    assert given == PromptSet('mine', ('a cat', 'a dog'), empty=1, repeated=1)
    assert refusal(prompts_of, ['', ' '], 'mine') == 'the list of texts holds no prompts'


def test_key_is_of_the_prompts_and_their_order():
    a = PromptSet('a', ('x', 'y'))
    assert a.key == PromptSet('b', ('x', 'y'), empty=3).key
    assert len({a.key, PromptSet('a', ('y', 'x')).key, a.head(1).key}) == 3
    assert len(a) == 2
    assert a.head(None) == a
    assert a.head(9).prompts == a.prompts
