"""The registry of scorers: how one is written in a word, refused, found, and added."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.scoring import registry
from balanceddpo.scoring.registry import (
    ScorerSpec,
    load_scorer,
    load_scorers,
    parse_scorer,
    register_scorer,
)
from balanceddpo.scoring.scorers import score_items
from tiny_scorers import close, noise

# --- names


def test_specs():
    assert parse_scorer('hps') == ScorerSpec('hps', '', 'hps')
    assert parse_scorer('clip=openai/clip-vit-large-patch14@pad') == ScorerSpec(
        'clip', 'openai/clip-vit-large-patch14', 'clip', None, 'pad'
    )
    assert parse_scorer('pickscore=me/pick+laion/clip') == ScorerSpec(
        'pickscore', 'me/pick', 'pickscore', 'laion/clip'
    )
    assert parse_scorer('clip=hf-hub:laion/x+y/z').source == 'hf-hub:laion/x'
    assert parse_scorer('b:aesthetic=/x/sac+logos+ava1.pth') == ScorerSpec(
        'b', '/x/sac+logos+ava1.pth', 'aesthetic'
    )
    assert parse_scorer('hps=my@home/model.pt').source == 'my@home/model.pt'
    assert parse_scorer('hps=my@model.pt').source == 'my@model.pt'
    for wrong in ('', 'beauty', 'hps@v3', 'hps=', 'a:b:hps'):
        with pytest.raises(InputError):
            parse_scorer(wrong)


def test_a_path_with_plus_signs_is_found(tmp_path):
    (tmp_path / 'a+b').mkdir()
    assert parse_scorer(f'clip={tmp_path / "a+b"}').source == str(tmp_path / 'a+b')
    assert parse_scorer(f'clip={tmp_path / "a+b"}+c') == ScorerSpec(
        'clip', str(tmp_path / 'a+b'), 'clip', 'c'
    )


# --- places that are refused


@pytest.mark.parametrize('backbone', ['../../clip', '/etc', 3, None, 'link'])
def test_an_aesthetic_folder_cannot_lead_out(models, tmp_path, backbone):
    folder = Path(shutil.copytree(models / 'aesthetic', tmp_path / 'a' / 'aesthetic'))
    if backbone == 'link':
        (folder / 'link').symlink_to(models / 'clip')
    (folder / 'aesthetic.json').write_text(json.dumps({'backbone': backbone}))
    with pytest.raises(InputError, match='backbone must be a relative path'):
        load_scorer(f'aesthetic={folder}', device='cpu')


def test_without_the_hub_published_scorers_say_what_to_do():
    for name in registry.PAPER_SCORERS:
        with pytest.raises(InputError, match='give the path of a downloaded copy') as error:
            load_scorer(name, device='cpu')
        assert '\n' not in str(error.value)
    with pytest.raises(InputError, match='no such file or folder'):
        load_scorer('clip=./nowhere', device='cpu')


# --- scorers of one's own


def register_own():
    "A function, a class, and two functions that give a wrong shape and no opinion; the first."

    @register_scorer('wide')
    def wide(images, prompts):
        return [im.width / im.height for im in images]

    @register_scorer('gain')
    class Gain:
        def __init__(self, source, device, dtype):
            self.gain = float(source or 1)

        def score(self, images, prompts):
            return [self.gain * len(p) for p in prompts]

    @register_scorer('bad')
    def bad(images, prompts):
        return [[1.0, 2.0]] * len(images)

    @register_scorer('unsure')
    def unsure(images, prompts):
        return [float('nan')] * len(images)

    return wide


def test_own_scorers(monkeypatch):
    monkeypatch.setattr(registry, '_REGISTERED', {})
    wide = register_own()
    images = [noise((20, 10)), noise((10, 20))]
    loaded = load_scorers(['wide', 'gain', 'double:gain=2', 'unsure'])
    assert [s.name for s in loaded] == ['wide', 'gain', 'double', 'unsure']
    assert len({s.key for s in loaded}) == 4
    table = score_items(loaded, [(i, im, 'abc') for i, im in enumerate(images)])
    close(table['wide'], torch.tensor([2.0, 0.5]))
    close(table['double'], torch.tensor([6.0, 6.0]))
    assert (table['unsure'] != table['unsure']).all()
    assert all(v.dtype == 'float32' for v in table.values())
    with pytest.raises(InputError, match='give one number an image'):
        load_scorer('bad').score(images, ['', ''])
    for name in ('hps', '9', 'a b'):
        with pytest.raises(InputError):
            register_scorer(name)
    key = load_scorer('wide').key
    register_scorer('wide', version='2')(wide)
    assert load_scorer('wide').key != key
    with pytest.raises(InputError, match="called 'wide'"):
        load_scorers(['wide', 'wide'])


def test_a_class_of_ones_own_file_has_a_new_key_when_its_code_changes(tmp_path, monkeypatch):
    """As `--register FILE` loads it: the class belongs to no module, so Python does not find its
    text."""
    import linecache
    import runpy

    monkeypatch.setattr(registry, '_REGISTERED', {})
    file, keys = tmp_path / 'mine.py', []
    for gain, times in ((1, 1), (1, 1), (2, 1), (2, 3)):
        file.write_text(f"""from balanceddpo.scoring.registry import register_scorer
@register_scorer('mine')
class Mine:
    times = {times}
    def __init__(self, source, device, dtype): pass
    def score(self, images, prompts): return [{gain}. for _ in images]
""")
        linecache.clearcache()
        runpy.run_path(str(file))
        keys.append(load_scorer('mine').key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
