"""The model card: what taught the model, whose world it is of, no path of this machine, and what
strangers have written only as text."""

import json
import re
import shutil

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from balanceddpo.core.commands import running
from balanceddpo.core.errors import InputError
from balanceddpo.training.card import (
    RATES,
    card_data,
    card_of_copy,
    card_with,
    code_block,
    licence_of,
    samples_section,
)
from balanceddpo.training.config import TrainConfig
from made_pairs import refused
from short_runs import N, begin, go


def test_the_card_says_what_taught_the_model(made, tmp_path):
    inputs = made()
    data = 'my pairs\n---\nlicense: mit\n```'
    out = go(inputs, tmp_path / 'run', max_steps=1, mode='lora', refresh_every=100, data=data)
    text = (out / 'README.md').read_text()
    _, front, body = text.split('---\n', 2)
    assert yaml.safe_load(front).keys() == {'library_name', 'pipeline_tag', 'tags'}
    assert 'lora' in yaml.safe_load(front)['tags']
    assert 'hps, clip, pickscore, aesthetic' in body
    assert '12 encoded' in body
    assert '2 undecided' in body
    assert 'refreshed every 100 steps' in body
    assert '\n---' not in body
    assert 'my pairs' in body
    assert 'icon world' not in body
    # no path of this machine
    assert str(tmp_path) not in text
    assert str(inputs.base.parent) not in text
    facts = json.loads((out / 'training.json').read_text())
    assert facts['step'] == 1
    assert facts['config']['beta'] == 500
    assert facts['versions']['torch']
    assert facts['pairs']['trained on'] == N


def test_the_card_of_an_icon_model_says_so(made, tmp_path):
    text = (go(made(), tmp_path / 'run', max_steps=1, data='icons') / 'README.md').read_text()
    assert '**icon world**' in text
    assert '**simulated annotators**' in text


HOSTILE = (
    'cats <img src=x onerror=alert(1)> **bold** [a](javascript:b) | `c` \n'
    '---\nlicense: mit\n```\n# x'
)


def without_code(text):
    "The Markdown of a card without its blocks of code."
    return re.sub(r'(?s)\n(`{3,}).*?\n\1', '', text)


def test_what_strangers_have_written_is_text_and_nothing_else(made, tmp_path):
    from balanceddpo.training.card import model_card

    inputs = made()
    run = begin(inputs, tmp_path / 'run', data=HOSTILE)
    run.labels = run.labels.rename(columns={'vote_hps': 'vote_<script>hps</script>_*x*'})
    text = model_card(run)
    card = ModelCard(text)
    assert card.data.license is None
    body = without_code(card.text)
    assert '<' not in body
    assert '&lt;img src=x' in body
    # every mark of Markdown in it is escaped, so that it is shown
    assert r'\*\*bold\*\* \[a\](javascript:b) \| \`c\` --- license: mit \`\`\` \# x' in body
    assert r'&lt;script&gt;hps&lt;/script&gt;\_\*x\*' in body
    headings = [line for line in body.splitlines() if line.startswith('#')]
    assert headings[1:] == ['## What taught it', '## Use', '## Settings']
    # the settings are whole, and their block ends where they do
    blocks = re.findall(r'(?s)\n(`{3,})json\n(.*?)\n\1(?!`)', card.text)
    assert json.loads(blocks[0][1])['training']['data'] == HOSTILE


def test_a_block_of_code_ends_where_its_text_does():
    block = code_block('a\n```\nb', 'sh')
    assert block.splitlines() == ['````sh', 'a', '```', 'b', '````']


@pytest.mark.parametrize(
    'head, told',
    [
        ('license: openrail', {'license': 'openrail'}),
        (
            'license: other\nlicense_name: stabilityai-ai-community\nlicense_link: LICENSE.md',
            {
                'license': 'other',
                'license_name': 'stabilityai-ai-community',
                'license_link': 'LICENSE.md',
            },
        ),
        ('license: [a, b]', {}),
        ('license: "<script>"', {}),
        ('license: !!python/object/apply:os.system ["touch here"]', {}),
        ('- a list', {}),
        ('license: {', {}),
    ],
)
def test_the_licence_of_the_base_is_taken_over_if_it_can_be_read(tmp_path, head, told):
    (tmp_path / 'README.md').write_text(f'---\n{head}\n---\n# A model\n')
    assert licence_of(tmp_path) == told
    assert not list(tmp_path.glob('here*'))
    data = card_data(TrainConfig('owner/name'), tmp_path).to_dict()
    if 'license_link' in told:  # a file beside the base
        told['license_link'] = 'https://huggingface.co/owner/name/blob/main/LICENSE.md'
    assert {k: v for k, v in data.items() if k.startswith('license')} == told


def test_a_folder_without_a_card_tells_no_licence(tmp_path):
    assert licence_of(tmp_path) == {}
    (tmp_path / 'README.md').write_text('# no head\n\nlicense: mit\n')
    assert licence_of(tmp_path) == {}


def test_only_a_base_and_a_data_set_that_others_have_are_named():
    full = card_data(TrainConfig('owner/name', data='hub:someone/pairs'))
    assert (full.base_model, full.base_model_relation) == ('owner/name', 'finetune')
    assert full.datasets == ['someone/pairs']
    packaged = card_data(TrainConfig('icons', mode='lora', data='my pairs, hub:x/y'))
    assert packaged.base_model is packaged.datasets is None


def test_the_card_tells_the_command_and_the_licence(made, tmp_path):
    inputs = made()
    base = shutil.copytree(inputs.base, tmp_path / 'base')
    (base / 'README.md').write_text('---\nlicense: openrail\n---\n')
    words = ['train', '--model', str(base), '--labels', str(inputs.file), '--max-steps', '1']
    with running(words):
        out = go(inputs, tmp_path / 'run', max_steps=1, mode='lora', model=str(base))
    card = ModelCard((out / 'README.md').read_text())
    assert card.data.license == 'openrail'
    told = f'balanceddpo train --model base --labels {inputs.file.name} --max-steps 1'
    assert f'## The command\n\n```sh\n{told}\n```' in card.text
    assert str(tmp_path) not in card.content


def rates(**changes):
    row = ('ours', 'base', 'my | prompts', 'hps', 200, 0.61234, 0.541, 0.678)
    return pd.DataFrame([dict(zip(RATES, row)) | changes])


def test_win_rates_are_results_of_the_hub_and_a_table(made, tmp_path):
    text = (go(made(), tmp_path / 'run', max_steps=1) / 'README.md').read_text()
    table = pd.concat([rates(), rates(scorer='clip', win_rate=float('nan'))])
    card = ModelCard(card_with(text, 'mine', table, [samples_section(['<b>'], ['samples/0.png'])]))
    (result,) = card.data.eval_results
    assert card.data.model_name == 'mine'
    assert (result.metric_type, result.metric_value) == ('win_rate', 0.6123)
    assert result.metric_name == 'win rate of ours over base by hps'
    assert result.dataset_name == 'my | prompts'
    assert result.metric_args == {'low': 0.541, 'high': 0.678, 'n': 200}
    assert r'| ours | base | my \| prompts | hps | 200 | 61.2 [54.1, 67.8] |' in card.text
    assert '![&lt;b&gt;](samples/0.png)' in card.text
    sections = re.findall(r'(?m)^## (.*)', card.text)
    assert sections == ['What taught it', 'Results', 'Samples', 'Use', 'Settings']
    # what was there is there still
    assert set(ModelCard(text).data.tags) == set(card.data.tags)


def test_a_table_of_something_else_is_refused():
    says = refused(card_with, '', 'mine', rates().drop(columns='scorer'))
    assert "no column 'scorer'" in says
    assert 'no numbers' in refused(card_with, '', 'mine', rates(n='many'))


def test_a_copy_in_another_form_says_how_it_is_loaded(made, tmp_path):
    text = (go(made(), tmp_path / 'run', max_steps=1, mode='lora') / 'README.md').read_text()
    card = ModelCard(card_of_copy(text, 'It is merged.', 'pipeline = load()'))
    assert 'lora' not in card.data.tags
    assert 'load_lora_weights' not in card.text
    assert 'It is merged.\n\n```python\npipeline = load()\n```\n\n## Settings' in card.text


def test_a_card_of_somebody_else_is_kept_as_far_as_it_can_be():
    plain = card_of_copy('# Theirs\n\nwith no head\n', 'x', 'y')
    assert ModelCard(plain).text.startswith('# Theirs')
    tagged = card_of_copy('---\ntags: theirs\n---\n', 'x', 'y')
    assert ModelCard(tagged).data.tags == ['theirs']


def test_a_head_that_is_no_yaml_is_refused():
    with pytest.raises(InputError, match='no YAML'):
        card_with('---\na: {\n---\n', 'mine')
