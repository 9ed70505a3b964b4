"""Prompts in the text of PNGs and in the names of files: what is read, and what is not trusted."""

import io
import json

import pytest
from PIL import Image, PngImagePlugin

from balanceddpo.data.kept_prompts import (
    LONGEST,
    opens,
    prompt_in_name,
    prompt_in_png,
    prompt_of_a1111,
    prompt_of_comfyui,
)


def png(compressed=False, **texts):
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text, zip=compressed)
    Image.new('RGB', (8, 8), 'red').save(out, 'PNG', pnginfo=info)
    return out.getvalue()


def node(kind, **inputs):
    return {'class_type': kind, 'inputs': inputs}


SETTINGS = 'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512'


@pytest.mark.parametrize(
    'text, prompt',
    [
        (f'a cat\n{SETTINGS}', 'a cat'),
        (f'a cat\nNegative prompt: dog,\nfrog\n{SETTINGS}', 'a cat'),
        (f'a  cat,\n on a mat\nNegative prompt: dog\n{SETTINGS}', 'a cat, on a mat'),
        (f'a cat <lora:fur:0.8>, (red:1.2)\n{SETTINGS}', 'a cat , (red:1.2)'),
        ('a cat', 'a cat'),
        ('Steps: how many are there\n' + SETTINGS, 'Steps: how many are there'),
        (SETTINGS, None),
        ('', None),
        ('a' * (LONGEST + 1), None),
    ],
)
def test_a1111(text, prompt):
    assert prompt_of_a1111(text) == prompt


def simple(text='a cat'):
    return {
        '3': node('KSampler', seed=1, positive=['6', 0], negative=['7', 0], model=['4', 0]),
        '4': node('CheckpointLoaderSimple', ckpt_name='x.safetensors'),
        '6': node('CLIPTextEncode', text=text, clip=['4', 1]),
        '7': node('CLIPTextEncode', text='ugly', clip=['4', 1]),
    }


CONTROLLED = simple() | {
    '3': node('KSampler', positive=['9', 0], negative=['9', 1]),
    '9': node('ControlNetApplyAdvanced', positive=['6', 0], negative=['7', 0], strength=1.0),
}
GUIDED = {
    '1': node('SamplerCustomAdvanced', guider=['2', 0], noise=['8', 0]),
    '2': node('BasicGuider', conditioning=['3', 0], model=['5', 0]),
    '3': node('FluxGuidance', conditioning=['4', 0], guidance=3.5),
    '4': node('CLIPTextEncodeFlux', clip_l='a cat', t5xxl='a cat', guidance=3.5),
}
TWICE = simple() | {'8': node('KSampler', positive=['6', 0], negative=['7', 0])}
XL = simple() | {'6': node('CLIPTextEncodeSDXL', text_g='a cat', text_l='a cat', width=1024)}
LINKED = simple(['9', 0]) | {'9': node('PrimitiveString', value='a cat')}
TWO = simple() | {
    '8': node('KSampler', positive=['9', 0], negative=['7', 0]),
    '9': node('CLIPTextEncode', text='a dog'),
}
CIRCLE = simple(['6', 0])


@pytest.mark.parametrize('graph', [simple(), CONTROLLED, GUIDED, TWICE, XL, LINKED])
def test_comfyui(graph):
    assert prompt_of_comfyui(json.dumps(graph)) == 'a cat'


@pytest.mark.parametrize(
    'text',
    [
        json.dumps(TWO),
        json.dumps(CIRCLE),
        json.dumps(simple('a' * (LONGEST + 1))),
        json.dumps(simple(7)),
        json.dumps({'3': node('KSampler', positive=['nowhere', 0])}),
        json.dumps({'3': node('KSampler', positive=[[], 0])}),
        json.dumps({'3': {'inputs': []}}),
        '[1, 2]',
        '{"1": 2}',
        '{"1": ' * 50_000,
        '[' * 50_000,
        '9' * 10_000,
        'not JSON',
        '',
    ],
)
def test_a_graph_that_leads_to_no_one_text_has_no_prompt(text):
    assert prompt_of_comfyui(text) is None


def test_only_the_text_of_a_png_is_read():
    assert prompt_in_png(png(parameters=f'a cat\n{SETTINGS}')) == 'a cat'
    assert prompt_in_png(png(True, prompt=json.dumps(simple()))) == 'a cat'
    assert prompt_in_png(png(parameters=SETTINGS, prompt=json.dumps(simple()))) == 'a cat'
    assert prompt_in_png(png(Comment='a cat')) is None
    assert prompt_in_png(b'\x89PNG\r\n') is None
    assert opens(png())
    assert not opens(png()[:20])


def test_a_text_that_unpacks_to_megabytes_is_not_read():
    "Pillow refuses it: the picture does not even open."
    bomb = png(True, parameters='a' * 20_000_000)
    assert len(bomb) < 100_000
    assert prompt_in_png(bomb) is None


@pytest.mark.parametrize(
    'name, prompt',
    [
        ('a_red_cat.png', 'a red cat'),
        ('a_red_cat_12.webp', 'a red cat'),
        ('a red cat (3).jpg', 'a red cat'),
        ('2_cats,_one_dog-0001.png', '2 cats, one dog'),
        ('deep/er/a_cat.png', 'a cat'),
        ("a_fox's_well-known_den.png", "a fox's well-known den"),
        ('ein_grüner_Frosch.png', 'ein grüner Frosch'),
        ('cat.png', None),
        ('IMG_4711.jpg', None),
        ('00012-3984751.png', None),
        ('ComfyUI_00001_.png', None),
        ('a_cat_x7f3.png', None),
        ('d41d8cd98f00b204.png', None),
        ('.png', None),
    ],
)
def test_names(name, prompt):
    assert prompt_in_name(name) == prompt
