"""Dry runs count what a run would do, load no model and write nothing."""

import re

import pytest
from safetensors.torch import load_file

from balanceddpo.command.plans import SD15
from short_commands import DRAW, encode_words, file_times, label_words, scorer_texts, train_words

UNITS = {'bytes': 1, 'kB': 1e3, 'MB': 1e6}


def dry_label_and_encode(world, place, run):
    said = run(*label_words(world, '--scorers', *scorer_texts(world), '--limit', 6, '--dry-run'))
    assert 'read 6 pairs' in said
    assert 'score 12 images' in said
    assert 'at most 48 image passes and 24 text passes' in said
    said = run(*encode_words(world, '--dry-run'))
    shards = sorted((place / 'encoded').glob('*.safetensors'))
    moments = sum(v.nbytes for v in load_file(shards[1]).values())
    assert '16 passes through the autoencoder' in said
    assert f'{moments / 1e3:.3g} kB of latents' in said


def dry_train(world, place, run):
    words = train_words(world, place, '--max-steps', 10, '--dry-run')
    said = run(*words)
    unet = load_file(world / 'model/unet/diffusion_pytorch_model.safetensors')
    weights = sum(v.numel() for v in unet.values())
    assert '8 pairs trained on' in said
    assert '10 steps of 4 pairs: 40 visits, 5 epochs' in said
    assert '80 passes forward and backward' in said
    assert '10 refreshes' in said
    assert f'all {weights:,} parameters'.replace(',', ' ') in said
    assert '80 passes forward through the reference' in said
    assert 'inversion' not in said
    said = run(*words, '--method', 'mapo', '--refresh-every', 0)
    assert '0 passes forward through the reference' in said
    assert '0 refreshes' in said
    # 80 images, 2.99 of the five grid points and t, each twice
    assert 'about 638 passes forward for the inversion' in run(*words, '--method', 'smpo')
    said = run(*words, '--refresh-every', 0, '--refresh-drift', 0.1)
    assert '0 refreshes of the reference, and one whenever the policy is too far from it' in said


def dry_sample_and_evaluate(world, run):
    prompts = ['--prompts', world / 'prompts.txt']
    said = run('sample', '--model', world / 'model', *prompts, *DRAW, '--dry-run')
    assert 'draw 4 images (2 prompts of prompts x 2)' in said
    assert 'about 16 passes' in said
    assert f'at most {4 * 32 * 32 * 3 / 1e3:.3g} kB' in said
    models = [f'a={world}/model', f'b={world}/model', 'c=owner/name']
    prompts.append(f'again={world}/prompts.txt')
    said = run('evaluate', *models, *prompts, *DRAW, '--dry-run')
    assert said.count('draw 4 images') == 6
    assert '3 comparisons on 2 prompt sets by 4 scorers' in said
    assert 'owner/name is not on this machine' in said


def test_dry_runs_count_and_write_nothing(world, encoded, run):
    before = file_times(encoded)
    dry_label_and_encode(world, encoded, run)
    dry_train(world, encoded, run)
    dry_sample_and_evaluate(world, run)
    assert file_times(encoded) == before


def test_before_pairs_are_labelled_and_encoded_a_dry_run_says_what_is_missing(
    world, tmp_path, run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = run(*train_words(world, tmp_path, '--max-steps', 10, '--dry-run'))
    assert f'{tmp_path}/labels.parquet is not there yet: balanceddpo label makes it' in said
    assert f'{tmp_path}/encoded is not there yet: balanceddpo encode makes it' in said
    assert '10 steps of 4 pairs: 40 visits\n' in said
    assert 'of memory in the middle of a step' in said
    assert list(tmp_path.iterdir()) == []
    assert 'no such file' in run(*train_words(world, tmp_path), code=2)


@pytest.mark.parametrize('more', [(), ('--mode', 'lora', '--gradient-checkpointing')])
def test_the_memory_of_a_step_is_counted_part_by_part(world, encoded, run, more):
    said = run(*train_words(world, encoded, *more, '--dry-run'))
    (line,) = [line for line in said.splitlines() if 'in the middle of a step' in line]
    numbers = [float(n) * UNITS[u] for n, u in re.findall(r'([\d.]+) (kB|MB|bytes)', line)]
    total, *parts = numbers
    assert total == pytest.approx(sum(parts), rel=0.02)
    unet = load_file(world / 'model/unet/diffusion_pytorch_model.safetensors')
    n = sum(v.numel() for v in unet.values())
    if not more:  # policy and reference, gradients, two moments
        assert parts[:3] == pytest.approx([8 * n, 4 * n, 8 * n], rel=0.01)
    else:  # the adapter twice, once of the reference
        assert parts[0] == pytest.approx(4 * n + 2 * parts[1], rel=0.01)


def test_of_a_published_model_the_memory_is_told_before_it_is_here(run, tmp_path):
    words = f'train --model {SD15} --labels {tmp_path}/l --encoded {tmp_path}/e --mode lora'
    said = run(*words.split(), '--micro-batch-size', 1, '--precision', 'bf16', '--dry-run')
    assert f'{SD15} is not on this machine' in said
    assert 'the denoiser has 859 520 964 parameters' in said
    # the network in bf16, and a rank of 16 for policy and reference in fp32
    assert 'weights 1.74 GB' in said


def test_no_more_pairs_are_kept_at_once_than_a_step_has(run, tmp_path, monkeypatch):
    words = f'train --model {SD15} --labels {tmp_path}/l --encoded {tmp_path}/e --mode lora'
    words = [*words.split(), '--batch-size', 4, '--micro-batch-size', 16, '--dry-run']
    assert 'what 4 pairs keep for the backward pass' in run(*words)
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '0')
    assert 'what 2 pairs keep for the backward pass' in run(*words)


def test_a_reference_in_main_memory_is_told_apart(run, tmp_path):
    words = f'train --model {SD15} --labels {tmp_path}/l --encoded {tmp_path}/e --device auto'
    more = '--micro-batch-size 1 --offload-reference --dry-run'.split()
    said = run(*words.split(), *more)
    # 3.44 GB of the policy, and 118 MB for the largest layer of the reference
    assert 'weights 3.56 GB' in said
    assert re.search(r'; and 4\.\d+ GB of main memory for the reference', said)
