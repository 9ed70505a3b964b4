"""Texts that a text encoder does not read to the end: counted, named, told when they are used."""

import warnings

import pytest
import torch

from balanceddpo.core.stages import read_manifest
from balanceddpo.data.pairs import make_pair
from balanceddpo.models.config import EncodeConfig, SampleConfig
from balanceddpo.models.encoding import encode_pairs
from balanceddpo.models.families import load_family
from balanceddpo.models.sampling import sample
from made_pairs import plain
from tiny_models import tiny_folder

LONG = 'fox ' * 600


@pytest.mark.parametrize(
    'kind, encoders',
    [
        ('sd15', ['tokenizer']),
        ('sdxl', ['tokenizer', 'tokenizer_2']),
        ('sd3', ['tokenizer', 'tokenizer_2', 'tokenizer_3']),
        ('flux', ['tokenizer', 'tokenizer_2']),
    ],
)
def test_every_encoder_of_a_family_says_what_it_cuts(tmp_path, kind, encoders):
    "A word beyond the last that fits makes no difference, and is what is told."
    family = load_family(tiny_folder(tmp_path / kind, kind), 'fp32', 'cpu', components=('text',))
    assert list(family.longest_texts) == encoders
    assert family.cut_texts(['a fox', LONG, 'an owl', LONG]) == {n: [2, LONG] for n in encoders}
    for name, longest in family.longest_texts.items():
        tokenizer = family.part(name)
        fits = next(
            text
            for n in range(longest, 0, -1)
            if len(tokenizer(text := 'fox ' * n, verbose=False).input_ids) <= longest
        )
        assert name not in family.cut_texts([fits])
        assert name in family.cut_texts([fits + 'fox '])
    one, other = family.encode_prompts([LONG, LONG + 'owl'])['prompt_embeds']
    assert torch.equal(one, other)


def test_encoding_tells_and_keeps_it(tmp_path):
    family = load_family(tiny_folder(tmp_path / 'sd15'), 'fp32', 'cpu', components=('text', 'vae'))
    pairs = [make_pair(text, [plain(1), plain(2)]) for text in ('a fox', LONG)]
    config = EncodeConfig(str(tmp_path / 'sd15'), 32)
    with pytest.warns(UserWarning, match='tokenizer does not read 1 of the captions to the end'):
        encoded = encode_pairs(pairs, family, config, tmp_path / 'encoded', progress=False)
    assert read_manifest(encoded.folder)['cut_texts'] == {'tokenizer': [1, LONG]}
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        encode_pairs(pairs[:1], family, config, tmp_path / 'short', progress=False)


def test_drawing_tells_it(tmp_path):
    (tmp_path / 'prompts.txt').write_text(f'a fox\n{LONG}\n')
    config = SampleConfig(
        model=str(tiny_folder(tmp_path / 'sd15')),
        prompts=str(tmp_path / 'prompts.txt'),
        images_per_prompt=1,
        steps=1,
        device='cpu',
    )
    with pytest.warns(UserWarning, match='tokenizer does not read 1 of the prompts to the end'):
        sample(config, out=tmp_path / 'images', progress=False)
