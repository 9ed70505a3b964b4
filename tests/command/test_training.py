"""balanceddpo encode and train: what they refuse."""

import pytest

from balanceddpo.command.training import EncodeOptions, encode_plan
from balanceddpo.models.config import EncodeConfig


def test_train_refuses_a_model_of_another_family_than_the_one_asked_for(tmp_path, run):
    words = f'train --model icons --family sdxl --labels {tmp_path}/a'.split()
    said = run(*words, '--encoded', tmp_path / 'b', code=2)
    assert 'icons is of the family sd15, not sdxl' in said


def test_train_refuses_labels_that_are_not_the_recipes(world, encoded, tmp_path, run):
    labels = tmp_path / 'human.parquet'
    run('label', '--pairs', world / 'pairs.parquet', '--method', 'human', '--out', labels)
    words = ['--recipe', 'BalancedDPO', '--values', 'sd15', '--model', world / 'model']
    said = run('train', *words, '--labels', labels, '--encoded', encoded, code=2)
    assert "BalancedDPO learns from the labels 'majority', not 'human'" in said


@pytest.mark.parametrize(
    'words, says',
    [
        ('encode --pairs {w}/pairs.parquet --model {w}/clip', 'model_index.json'),
        ('train --recipe none --model icons --labels x --encoded y', "no recipe 'none'"),
        ('train --labels {w}/none --encoded {w}/none --model {w}/model', 'none'),
        (
            'train --model icons --labels {w}/pairs.parquet --encoded {w}/clip',
            'has no seal',
        ),
        ('train --labels x --encoded y', '--model'),
        (
            'train --recipe BalancedDPO --model icons --labels x --encoded y --beta -1',
            'beta must be above 0',
        ),
        ('encode --pairs {w}/pairs.parquet', '--model'),
        ('train --labels {w}/none --encoded x --model {w}/model', 'make it with balanceddpo label'),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, words, says):
    assert says.lower() in refused(words)


def test_the_plan_of_encoding_counts_both_orientations():
    once, twice = (
        encode_plan(EncodeOptions('icons', limit=3), EncodeConfig('icons', mirrored=mirrored))
        for mirrored in (False, True)
    )
    assert once[1].startswith('6 passes through the autoencoder')
    assert twice[1].startswith('12 passes through the autoencoder')
    assert '24.6 kB of latents' in once[-1]
    assert '49.2 kB of latents' in twice[-1]
