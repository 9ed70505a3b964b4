"""Dry runs count what a run would do, load no model and write nothing."""

from safetensors.torch import load_file

from short_commands import DRAW, encode_words, file_times, label_words, scorer_texts, train_words


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
