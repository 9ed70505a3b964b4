"""The model card: what taught the model, whose world it is of, and no path of this machine."""

import json

import yaml

from short_runs import N, go


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
