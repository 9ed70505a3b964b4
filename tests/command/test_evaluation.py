"""balanceddpo sample and evaluate: models and their images."""

import json
import re
from pathlib import Path

import pytest

from short_commands import DRAW, encode_words, label_words, train_words


def fine_tune(world, tmp_path, run):
    "The folder of a model that was trained whole, on a person's labels."
    run(*label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet'))
    run(*encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded'))
    said = run(*train_words(world, tmp_path))
    model = re.search('^model: (.*)$', said, re.M)[1]
    assert Path(model).is_relative_to(tmp_path / 'runs/train')  # --out was not given
    return model


def test_a_full_fine_tune_is_a_model_like_any_other(world, tmp_path, run):
    model = fine_tune(world, tmp_path, run)
    prompts = ['--prompts', world / 'prompts.txt']
    for name, source in (('base', world / 'model'), ('tuned', model)):
        run('sample', '--model', source, *prompts, *DRAW, '--out', tmp_path / name)
    scorer = ['--scorers', f'clip={world}/clip']
    drawn = ['evaluate', f'base={world}/model', f'tuned={model}', *prompts, *DRAW, *scorer]
    run(*drawn, '--out', tmp_path / 'drawn')
    # from the folders of images
    folders = [f'base={tmp_path}/base', f'tuned={tmp_path}/tuned']
    kept = ['evaluate', *folders, *scorer, '--device', 'cpu']
    run(*kept, '--out', tmp_path / 'kept')
    first, second = (tmp_path / name / 'comparisons.csv' for name in ('drawn', 'kept'))
    assert first.read_text() == second.read_text()
    # what they came from, not what was not used
    told = json.loads((tmp_path / 'kept/provenance.json').read_text())['parameters']['images']
    assert {name: (i['steps'], i['images_per_prompt']) for name, i in told.items()} == {
        'base, prompts': (2, 2),
        'tuned, prompts': (2, 2),
    }
    kept.append('--dry-run')
    run(*kept, *prompts, '--limit', 99)
    assert 'other prompts than pickapic' in run(*kept, '--prompts', 'icons:pickapic', code=2)
    assert '--images-per-prompt has nothing to say' in run(*kept, '--images-per-prompt', 9, code=2)
    assert '--limit has nothing to say' in run(*kept, '--limit', 1, code=2)


def test_a_lora_needs_its_base(world, tmp_path, run):
    (tmp_path / 'pytorch_lora_weights.safetensors').touch()
    assert f'b=BASE+{tmp_path}' in run(
        'evaluate', f'a={world}/model', f'b={tmp_path}', '--prompts', world / 'prompts.txt', code=2
    )


@pytest.mark.parametrize(
    'words, says',
    [
        ('sample --model {w}/model --prompts {w}/none.txt', 'none.txt'),
        ('sample --model {w}/model --prompts {w}/prompts.txt --scheduler ddpm', "'ddpm'"),
        ('evaluate', 'two models'),
        ('evaluate a={w}/model --prompts {w}/prompts.txt', 'two models'),
        ('evaluate a={w}/model a={w}/model --prompts {w}/prompts.txt', "two models are called 'a'"),
        ('evaluate a={w}/model b={w}/model', 'name the prompts'),
        (
            'evaluate a={w}/model b=work/run/model --prompts {w}/prompts.txt --dry-run',
            'work/run/model: no such folder',
        ),
        (
            'evaluate a={w}/model b={w}/clip --prompts {w}/prompts.txt',
            'neither a diffusers pipeline',
        ),
        ('evaluate a={w}/model b={w}/model+{w}/none --prompts {w}/prompts.txt', 'no such LoRA'),
        (
            'evaluate a={w}/model b={w}/model --prompts {w}/prompts.txt {w}/prompts.txt',
            'two prompt sets',
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, words, says):
    assert says.lower() in refused(words)
