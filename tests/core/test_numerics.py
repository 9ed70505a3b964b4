"""The numeric path: equal results by every way to multiply, named in every key, and switched off by
one word."""

import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from balanceddpo.core import numerics
from balanceddpo.core.errors import InputError
from balanceddpo.core.files import write_json
from balanceddpo.core.numerics import at_full_speed, measured_path, numeric_path
from balanceddpo.data.pairs import decode
from balanceddpo.data.prompts import PromptSet
from balanceddpo.models import encoding, sampling
from balanceddpo.models.config import EncodeConfig, SampleConfig
from balanceddpo.models.families import load_family
from balanceddpo.paper import experiments, scales
from balanceddpo.scoring.registry import load_scorers
from balanceddpo.scoring.scorers import score_items
from balanceddpo.training import loop as training
from balanceddpo.training.resume import run_inputs
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.config import LabelConfig
from tiny_models import KINDS, tiny_folder

LN2 = torch.tensor(math.log(2)).item()
PATHS = {'plain': 'torch', 'onednn': 'onednn'}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', request.param)
    return PATHS[request.param]


def by_both(monkeypatch, compute):
    "What `compute` gives by torch's own way and by oneDNN."
    found = []
    for asked in PATHS:
        monkeypatch.setenv('BALANCEDDPO_NUMERICS', asked)
        found.append(compute())
    return found


def convolutions(module):
    return sum(type(m) is numerics.convolution_linear() for m in module.modules())


SMALL = replace(
    scales.SMOKE,
    n_pairs=16,
    train=(
        ('max_steps', 4),
        ('batch_size', 8),
        ('micro_batch_size', 8),
        ('warmup_steps', 0),
        ('refresh_every', 2),
    ),
)


# --- equality


def three_losses(folder):
    labels = LabelConfig('majority')
    table = experiments.labels_of(SMALL, labels)
    settings = experiments.training_settings(SMALL, 'Majority, no refresh')
    pairs = LabelledPairs(experiments.encoded_pairs(SMALL), table, labels)
    run = training.start(settings, pairs, folder)
    losses = []
    for _ in range(3):
        losses.append(training.update(run)['loss'])
        run.step += 1
    return convolutions(run.policy), losses


def test_losses_of_three_steps_agree(monkeypatch, tmp_path):
    experiments.pair_scores(SMALL)
    (none, plain), (many, fast) = by_both(monkeypatch, lambda: three_losses(tmp_path))
    assert none == 0
    assert many > 50
    assert plain[0] == fast[0] == LN2
    assert abs(plain[2] - LN2) > 1e-3  # the third loss has moved, so it can tell
    assert plain != fast  # another way was taken, and it rounds otherwise
    assert plain == pytest.approx(
        fast, abs=1e-4
    )  # beta 2000 times the rounding of the errors, 1e-8


def test_images_agree(monkeypatch):
    config = SampleConfig(
        images_per_prompt=4, steps=4, guidance=3.0, scheduler='dpm++', device='cpu'
    )
    prompts = PromptSet(['a red apple', 'a fox'], ['0' * 16, '1' * 16], 'two')

    def draw():
        family, pipeline = sampling.load_generator(config)
        planned = sampling.plan_shards(prompts, config)[0]
        wanted = {(n, i) for n in range(2) for i in range(4)}
        drawn = [
            image
            for *_, image in sampling.generate(family, pipeline, prompts, config, planned, wanted)
        ]
        return convolutions(family.model), torch.stack([as_bytes(image) for image in drawn])

    (none, plain), (many, fast) = by_both(monkeypatch, draw)
    assert none == 0
    assert many > 50
    assert (plain - fast).abs().max() <= 1  # of 255: a value beside a half may round to either side


def as_bytes(image):
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


def test_scores_agree(monkeypatch):
    pairs = list(experiments.pair_stream(SMALL))
    items = [
        (i, decode(image), p.caption) for p in pairs for i, image in zip(p.image_ids, p.images)
    ]

    def score():
        scorers = load_scorers(SMALL.scorers, device='cpu')
        counted = sum(convolutions(m) for m in networks(scorers))
        return counted, {k: torch.tensor(v) for k, v in score_items(scorers, items, 32).items()}

    (none, plain), (many, fast) = by_both(monkeypatch, score)
    assert none == 0
    assert many > 0
    for name, scores in plain.items():
        assert torch.allclose(scores, fast[name], rtol=1e-5, atol=1e-5), name


def networks(scorers):
    "The modules behind the scorers' encoders, found in what their functions close over."
    found = {}
    for encoder in {id(s.encoder): s.encoder for s in scorers}.values():
        encode = encoder.encode_images
        owners = [
            getattr(encode, '__self__', None),
            *(c.cell_contents for c in encode.__closure__ or ()),
        ]
        found |= {id(m): m for m in owners if isinstance(m, torch.nn.Module)}
    return found.values()


def test_latents_and_embeddings_agree(monkeypatch):
    pairs = list(experiments.pair_stream(SMALL))
    images = torch.stack([as_pixels(decode(i)) for p in pairs for i in p.images])

    def encode():
        family = load_family('icons', device='cpu', components=('text', 'vae'))
        text = family.encode_prompts([p.caption for p in pairs])['prompt_embeds']
        return convolutions(family.part('text_encoder')), family.encode_images(images), text

    (none, moments, text), (many, fast_moments, fast_text) = by_both(monkeypatch, encode)
    assert none == 0
    assert many > 0
    assert not torch.equal(text, fast_text)
    assert torch.allclose(moments, fast_moments, rtol=1e-5, atol=1e-5)
    assert torch.allclose(text, fast_text, rtol=1e-5, atol=1e-5)


def as_pixels(image):
    return as_bytes(image).to(torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)


def test_kept_memory_changes_no_bit():
    code = """
import torch
from balanceddpo.core import numerics
from balanceddpo.models.families import load_family
numerics.fast_layout = lambda images: images  # the arithmetic is to stay as it is
family = load_family('icons', device='cpu', components=('vae',))
numerics.keep_memory.cache_clear()
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (16, 3, 256, 256), dtype=torch.uint8, generator=generator)
import os
os.environ['BALANCEDDPO_NUMERICS'] = 'plain'
assert not numerics.keep_memory()
before = family.encode_images(images)
del os.environ['BALANCEDDPO_NUMERICS']
numerics.keep_memory.cache_clear()
print(numerics.keep_memory(), torch.equal(before, family.encode_images(images)))
"""
    env = {**os.environ, 'BALANCEDDPO_NUMERICS': 'plain'}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, equal = done.stdout.split()
    assert equal == 'True'
    assert kept == str(numerics.platform.libc_ver()[0] == 'glibc')


# --- policy and reference, to the bit


@pytest.mark.parametrize('kind', KINDS)
def test_loaded_weights_lie_at_multiples_of_64_bytes(tmp_path, kind):
    family = load_family(tiny_folder(tmp_path / kind, kind), device='cpu')
    modules = [p for p in family.parts.values() if isinstance(p, torch.nn.Module)]
    assert {p.data_ptr() % 64 for m in modules for p in m.parameters()} == {0}


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_the_loss_after_a_refresh_is_exactly_ln_2(path, tmp_path, mode):
    labels = LabelConfig('majority')
    table, encoded = experiments.labels_of(SMALL, labels), experiments.encoded_pairs(SMALL)
    settings = experiments.training_settings(
        SMALL, 'BalancedDPO', mode=mode, refresh_every=1, max_steps=2
    )
    pairs = LabelledPairs(encoded, table, labels)
    training.train(settings, pairs, tmp_path / 'run', progress=False)
    log = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['loss'] for line in log] == [LN2, LN2]


def test_a_copy_of_a_loaded_network_gives_the_same_bits(path):
    family = load_family('icons', device='cpu')
    noisy, t = torch.randn(8, *family.latent_shape()), torch.arange(8) * 100
    text = family.encode_prompts(['a fox'] * 8)
    copied = deepcopy(family.model)
    with torch.inference_mode():
        ours = family.predict(family.model, noisy, t, text, 64)
        assert torch.equal(ours, family.predict(copied, noisy, t, text, 64))


# --- the choice, and its name


def test_the_path_is_part_of_every_key(monkeypatch, tmp_path):
    labels = LabelConfig('majority')
    table, encoded = experiments.labels_of(SMALL, labels), experiments.encoded_pairs(SMALL)
    family = load_family('icons', device='cpu', components=('text', 'vae'))
    prompts = PromptSet(['a fox'], ['1' * 16], 'one')
    settings = experiments.training_settings(SMALL, 'BalancedDPO')
    pairs = LabelledPairs(encoded, table, labels)

    def inputs():
        return {
            'train': run_inputs(settings, pairs, family.folder)['numerics'],
            'sample': sampling.sample_inputs(SampleConfig(device='cpu'), prompts)['numerics'],
            'encode': encoding.encode_inputs(family, EncodeConfig(model='icons'))['numerics'],
        }

    assert by_both(monkeypatch, inputs) == [
        dict.fromkeys(('train', 'sample', 'encode'), p) for p in PATHS.values()
    ]
    plain, fast = by_both(
        monkeypatch, lambda: [s.key for s in load_scorers(SMALL.scorers, device='cpu')]
    )
    assert set(plain).isdisjoint(fast)


def test_a_trained_model_and_its_checkpoint_name_the_path(path, tmp_path):
    labels = LabelConfig('majority')
    table, encoded = experiments.labels_of(SMALL, labels), experiments.encoded_pairs(SMALL)
    settings = experiments.training_settings(
        SMALL, 'Majority, no refresh', max_steps=1, checkpoint_every=1
    )
    pairs = LabelledPairs(encoded, table, labels)
    out = training.train(settings, pairs, tmp_path / 'run', progress=False)
    assert json.loads((out / 'training.json').read_text())['numerics'] == path
    (manifest,) = (tmp_path / 'run' / 'checkpoints').glob('step-*/manifest.json')
    assert json.loads(manifest.read_text())['numerics'] == path


def test_the_rates_are_measured_once_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('BALANCEDDPO_NUMERICS', raising=False)
    rates, asked = {'blas': 98.0, 'onednn': 226.0}, []
    monkeypatch.setattr(numerics, 'product_rates', lambda: asked.append(1) or rates)
    for _ in range(2):
        measured_path.cache_clear()
        assert numeric_path() == 'onednn'
    assert len(asked) == 1
    rates['blas'] = 200.0
    numerics.cache_file().write_text('{"rates": ')  # cut short by a full disk
    measured_path.cache_clear()
    assert numeric_path() == 'torch'
    assert len(asked) == 2
    write_json(numerics.cache_file(), {'rates': {'blas': 1.0}})  # not what we write
    measured_path.cache_clear()
    assert numeric_path() == 'torch'
    assert len(asked) == 3
    measured_path.cache_clear()


def test_a_home_that_cannot_be_written_to_is_no_error(monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    monkeypatch.setattr(numerics, 'product_rates', lambda: {'blas': 1.0, 'onednn': 2.0})
    measured_path.cache_clear()
    assert measured_path() == 'onednn'
    measured_path.cache_clear()


def test_an_unknown_choice_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_NUMERICS', 'mkl')
    with pytest.raises(InputError, match=r"BALANCEDDPO_NUMERICS is 'mkl': use auto, plain, onednn"):
        at_full_speed(torch.nn.Linear(2, 2))


@pytest.mark.parametrize('words', [['--numerics', 'plain', 'icons'], ['icons', '--numerics=plain']])
def test_the_command_line_has_one_option_for_it(words, monkeypatch, capsys):
    from balanceddpo.cli import main

    monkeypatch.setenv('BALANCEDDPO_NUMERICS', 'auto')
    assert main([*words, '--dry-run']) == 0
    assert os.environ['BALANCEDDPO_NUMERICS'] == 'plain'
    assert main(['icons', '--numerics', 'quick']) == 2
    assert main(['icons', '--numerics']) == 2
    assert 'use auto, plain, onednn' in capsys.readouterr().err
