"""What README and docs say: their commands, their Python and their links."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from balanceddpo.cli import VERBS, main
from balanceddpo.command.asking import parse
from balanceddpo.voting.labels import read_labels
from short_commands import make_tiny_world, scorer_texts

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# where else a command is shown; what a tutorial runs itself is another test's
OTHERS = [ROOT / 'docs/site/index.md', *sorted((ROOT / 'docs/tutorials').glob('*.ipynb'))]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A tiny pipeline, scorers, pairs and prompts."
    return make_tiny_world(tmp_path_factory.mktemp('world'))


def markdown_of(path):
    "The text of a page, or the prose of a notebook."
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        return text
    cells = json.loads(text)['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def python_blocks(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.S)


def test_every_command_on_the_pages_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('run.yaml').write_text('recipe: BalancedDPO\nmodel: icons\npairs: icons\n')
    text = '\n'.join(map(markdown_of, [*PAGES, *OTHERS])).replace('\\\n', ' ')
    (study,) = re.findall(r'```yaml\n(# study\.yaml.*?)```', text, re.S)
    Path('study.yaml').write_text(study)
    blocks = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.S))
    inline = re.findall(r'`(balanceddpo [^`]+)`', text)
    # what a launcher or a variable of the environment stands before
    before = r'^(?:\w+=\S+ |(?:torchrun|accelerate launch) .*-m (?=balanceddpo\.cli))'
    lines = [re.sub(before, '', line) for line in [*blocks.splitlines(), *inline]]
    lines = [line for line in lines if re.match(r'balanceddpo(?:\.cli)? ', line)]
    lines = [line for line in lines if 'NAME' not in line.split()]
    verbs = {line.split()[1] for line in lines}
    assert verbs >= {
        'align',
        'methods',
        'label',
        'encode',
        'train',
        'evaluate',
        'export',
        'reproduce',
        'icons',
    }
    assert sum('--config study.yaml' in line for line in lines) >= 3
    for line in lines:
        # as README's first line sets it
        line = line.replace('$SD15', 'stable-diffusion-v1-5/stable-diffusion-v1-5')
        verb, *words = shlex.split(re.split(r' 2?> ', line)[0], comments=True)[1:]
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


def test_a_callback_of_ones_own_is_told_of_each_validation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks('docs/watch_training.md')
    small = {
        "validation_prompts='icons:tuning', ": (
            "validation_prompts='icons:tuning', validation_limit=2, validation_steps=2, "
        ),
        "pairs='icons'": (
            "pairs=bd.PairSource('icons', limit=8), max_steps=2, batch_size=4, micro_batch_size=4"
        ),
    }
    run_python(code, small)
    told = re.findall(r"^(\d+) \{'hps': ", capsys.readouterr().out, re.M)
    assert told == ['1', '2']


def test_what_is_said_of_a_result_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / 'docs/use_the_result.md').read_text()
    forms, *_, votes = re.findall(r'```sh\n(.*?)```', page, re.S)
    short = '--limit 8 --max-steps 1 --batch-size 4 --micro-batch-size 4'
    lines = forms.replace('--pairs icons', f'--pairs icons {short}').splitlines()
    lines += votes.replace('--limit 64', '--limit 8').splitlines()
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    made = {'lora.safetensors', 'comfyui.safetensors', 'merged', 'half'}
    assert made | {'votes', 'votes.jsonl', 'pickapic_votes'} <= set(os.listdir('work'))
    (steps,) = python_blocks('docs/use_the_result.md')
    small = {
        'limit=64': 'limit=8',
        "mode='lora', pairs='icons')": (
            "mode='lora', pairs=pairs, max_steps=1, batch_size=4, micro_batch_size=4)"
        ),
    }
    run_python(steps, small)
    assert 'pairs written' in capsys.readouterr().out
    assert Path('merged/model_index.json').exists()


def test_photographs_become_a_lora_by_one_config_and_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / 'docs/your_data.md').read_text()
    run_python(*python_blocks('docs/your_data.md'), {})
    (config,) = re.findall(r'```yaml\n(.*?)```', page, re.S)
    small = {
        'stable-diffusion-v1-5/stable-diffusion-v1-5': 'icons',
        'bf16': 'fp32',
        'max_steps: 200': 'max_steps: 2\nbatch_size: 4\nmicro_batch_size: 4\nresolution: 32',
    }
    for old, new in small.items():
        assert old in config
        config = config.replace(old, new)
    Path('run.yaml').write_text(config)
    (command,) = re.findall(r'```sh\n(balanceddpo align .*--config.*)\n```', page)
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    keys = load_file('work/photographs/kohya.safetensors')
    assert {'.alpha', '.lora_down.weight', '.lora_up.weight'} == {
        key[key.index('.') :] for key in keys
    }
    assert any(key.startswith('lora_unet_') and v.any() for key, v in keys.items() if 'up' in key)
    labels, _ = read_labels(Path('work/photographs/labels.parquet'))
    assert len(labels) == 6
    # what inspect says of the same pairs, and a form that the model cannot have
    columns = ['--columns', 'caption=words', 'jpg_0=one', 'jpg_1=other', 'label_0=best']
    assert main(['inspect', 'photographs/pairs.csv', *columns]) == 0
    assert 'labels: 6 for image 0' in capsys.readouterr().out
    assert main([*shlex.split(command)[1:], '--mode', 'full', '--out', 'work/full']) == 2
    assert 'kohya is a form of LoRAs' in capsys.readouterr().err
    assert not Path('work/full').exists()


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_every_link_on_a_page_leads_somewhere(page):
    text = page.read_text()
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    links = [link for link in links if not link.startswith('http')]
    assert [link for link in links if not (page.parent / link.partition('#')[0]).exists()] == []
    headings = re.findall(r'^#+ (.+)$', text, re.M)
    headings = {re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings}
    assert [link for link in links if link.startswith('#') and link[1:] not in headings] == []
