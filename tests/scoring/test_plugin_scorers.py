"""Scorers that an installed package offers, and those of one's own that do not give numbers."""

import sys

import pytest
from plugin_package import install

from balanceddpo.core.errors import InputError
from balanceddpo.scoring import registry
from balanceddpo.scoring.registry import load_scorer, parse_scorer, register_scorer
from tiny_scorers import noise

IMAGES, TEXTS = [noise((20, 10)), noise((10, 20))], ['a', 'abc']


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, '_REGISTERED', {})
    yield
    sys.modules.pop('my_plugins', None)


def offer(tmp_path, monkeypatch, code, **more):
    return install(tmp_path, monkeypatch, code, scorers={'mine': 'mine'}, **more)


def test_a_function_is_a_scorer_by_its_name(tmp_path, monkeypatch):
    code = 'def mine(images, prompts):\n    return [im.width for im in images]\n'
    module = offer(tmp_path, monkeypatch, code)
    assert parse_scorer('wide:mine').name == 'wide'
    assert load_scorer('mine').score(IMAGES, TEXTS).tolist() == [20, 10]
    assert load_scorer('mine').package == 'my-plugins 1.0'
    key = load_scorer('mine').key
    # another version of the package may give other scores by the same code
    monkeypatch.setattr(registry, '_REGISTERED', {})
    del sys.modules[module]
    monkeypatch.setattr(sys, 'path', sys.path[1:])
    offer(tmp_path / 'newer', monkeypatch, code, version='1.1')
    assert load_scorer('mine').key != key


def test_a_class_gets_its_source(tmp_path, monkeypatch):
    code = (
        'class mine:\n'
        '    unit = 100.0\n'
        '    def __init__(self, source, device, dtype):\n'
        '        self.gain = float(source)\n'
        '    def score(self, images, prompts):\n'
        '        return [self.gain * len(p) for p in prompts]\n'
    )
    offer(tmp_path, monkeypatch, code)
    scorer = load_scorer('mine=2')
    assert scorer.score(IMAGES, TEXTS).tolist() == [2, 6]
    assert scorer.unit == 100
    with pytest.raises(InputError, match='the scorer mine.* failed .*could not convert'):
        load_scorer('mine=much')


def test_a_module_may_register_its_scorer_itself(tmp_path, monkeypatch):
    code = (
        'from balanceddpo.scoring.registry import register_scorer\n'
        "@register_scorer('mine', version='of mine')\n"
        'def mine(images, prompts):\n    return [1.0] * len(images)\n'
    )
    offer(tmp_path, monkeypatch, code)
    scorer = load_scorer('mine')
    assert scorer.score(IMAGES, TEXTS).tolist() == [1, 1]
    assert scorer.package == 'my-plugins 1.0'


def test_what_is_registered_goes_before_what_is_installed(tmp_path, monkeypatch):
    module = offer(tmp_path, monkeypatch, '1 / 0')
    register_scorer('mine')(lambda images, prompts: [5.0] * len(images))
    assert load_scorer('mine').score(IMAGES, TEXTS).tolist() == [5, 5]
    assert module not in sys.modules


def test_an_unknown_name_lists_what_is_installed(tmp_path, monkeypatch):
    offer(tmp_path, monkeypatch, '1 / 0')
    with pytest.raises(InputError, match="unknown scorer 'yours': use .*aesthetic, mine"):
        parse_scorer('yours')


FAILS = {
    "['good'] * len(images)": 'gave a list of str for 2 images: give one number an image',
    '[1.0, None]': 'gave a list of NoneType and float for 2 images',
    'None': 'gave NoneType for 2 images',
    "'good'": 'gave str for 2 images',
    '[1.0]': 'gave the shape [1] for 2 images',
    '[[1.0, 2.0]] * 2': 'gave the shape [2, 2] for 2 images',
    '1 / 0': 'line 2): ZeroDivisionError: division by zero',
    'exit(3)': 'line 2): it ends the program (sys.exit, code 3), and has to return',
}


@pytest.mark.parametrize('gives, says', FAILS.items(), ids=lambda text: text[:20])
def test_a_scorer_that_gives_no_numbers_is_told_with_its_package(
    tmp_path, monkeypatch, gives, says
):
    offer(tmp_path, monkeypatch, f'def mine(images, prompts):\n    return {gives}\n')
    with pytest.raises(InputError) as told:
        load_scorer('mine').score(IMAGES, TEXTS)
    line = str(told.value)
    assert 'mine (of the package my-plugins 1.0) ' in line
    assert says in line
    assert '\n' not in line


def test_what_is_no_scorer_is_refused(tmp_path, monkeypatch):
    offer(tmp_path, monkeypatch, 'mine = 3\n')
    with pytest.raises(InputError, match="the scorer 'mine' of the package my-plugins 1.0 is int"):
        load_scorer('mine')
