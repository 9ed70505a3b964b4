"""What README and docs say: their commands, their Python and their links."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from balanceddpo.cli import VERBS
from balanceddpo.command.options import parse
from short_commands import make_tiny_world, scorer_texts

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A tiny pipeline, scorers, pairs and prompts."
    return make_tiny_world(tmp_path_factory.mktemp('world'))


def python_blocks(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.S)


def test_every_command_on_the_pages_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('run.yaml').write_text('recipe: BalancedDPO\nmodel: icons\npairs: icons\n')
    text = '\n'.join(page.read_text() for page in PAGES)
    blocks = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.S))
    inline = re.findall(r'`(balanceddpo [^`]+)`', text)
    lines = [line for line in [*blocks.splitlines(), *inline] if line.startswith('balanceddpo ')]
    lines = [line for line in lines if 'NAME' not in line.split()]
    verbs = {line.split()[1] for line in lines}
    assert verbs >= {
        'align',
        'methods',
        'label',
        'encode',
        'train',
        'evaluate',
        'reproduce',
        'icons',
    }
    for line in lines:
        # as README's first line sets it
        line = line.replace('$SD15', 'stable-diffusion-v1-5/stable-diffusion-v1-5')
        verb, *words = shlex.split(line.partition(' > ')[0])[1:]
        parse(VERBS[verb], words)


def run_python(code, changes):
    "Run a page's lines with some of their words replaced; what they define."
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    scope = {}
    exec(code, scope)
    return scope


def test_the_steps_in_python_run(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (steps,) = python_blocks('docs/real_weights.md')
    small = {
        "'stable-diffusion-v1-5/stable-diffusion-v1-5', 'prompts.txt'": (
            f"'{world}/model', '{world}/prompts.txt'"
        ),
        "'pairs.parquet'": f"'{world}/pairs.parquet'",
        'load_scorers()': f'load_scorers({scorer_texts(world)})',
        "mirrored=True, dtype='bf16'": 'mirrored=True, resolution=32',
        "mode='lora')": (
            "mode='lora', resolution=32, max_steps=1, batch_size=2, precision='fp32',"
            " tracker='none')"
        ),
        "SampleConfig(dtype='bf16')": ('SampleConfig(steps=1, images_per_prompt=1, resolution=32)'),
    }
    run_python(steps, small)
    assert 'win_rate' in capsys.readouterr().out


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages, scorer = python_blocks('README.md')
    small = {
        "pairs='icons')": (
            "pairs=bd.PairSource('icons', limit=8), max_steps=1, batch_size=4, micro_batch_size=4)"
        ),
        'steps=15': 'steps=2, limit=2, images_per_prompt=1',
    }
    run_python(stages, small)
    assert 'win_rate' in capsys.readouterr().out
    sharpness = run_python(scorer, {})['sharpness']
    flat = Image.new('RGB', (8, 8))
    striped = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4))).convert('RGB')
    assert sharpness([flat, striped], ['', '']) == [0, 255]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_every_link_on_a_page_leads_somewhere(page):
    text = page.read_text()
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    links = [link for link in links if not link.startswith('http')]
    assert [link for link in links if not (page.parent / link.partition('#')[0]).exists()] == []
    headings = re.findall(r'^#+ (.+)$', text, re.M)
    headings = {re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings}
    assert [link for link in links if link.startswith('#') and link[1:] not in headings] == []
