"""balanceddpo sample and evaluate: models and their images."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from balanceddpo.command.evaluation import contestant
from balanceddpo.evaluation.result_images import ResultImages
from balanceddpo.models.config import SampleConfig
from balanceddpo.models.image_store import open_images
from made_pages import data_of
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


@pytest.fixture
def grey(world, tmp_path):
    "A model whose images are all of a single colour."
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(world / 'model', tmp_path / 'one_colour')
    file = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
    tensors = load_file(file)
    tensors['decoder.conv_out.weight'].zero_()
    save_file(tensors, file, metadata={'format': 'pt'})
    return folder


def test_a_model_that_draws_one_colour_is_not_judged_unless_that_is_asked_for(
    world, grey, tmp_path, run
):
    prompts, told = ['--prompts', world / 'prompts.txt'], '4 of 4 images cannot be judged'
    for name, model in (('base', world / 'model'), ('grey', grey)):
        said = run('sample', '--model', model, *prompts, *DRAW, '--out', tmp_path / name)
        assert (told in said) == (name == 'grey')
    contest = ['evaluate', *(f'{name}={tmp_path / name}' for name in ('base', 'grey')), *prompts]
    contest += ['--scorers', f'clip={world}/clip', '--device', 'cpu', '--out', tmp_path / 'out']
    assert f'grey, prompts: {told}' in run(*contest, code=2)
    assert not (tmp_path / 'out').exists()
    assert f'grey, prompts: {told}' in run(*contest, '--max-unsound', 1)
    rows = (tmp_path / 'out/unsound.csv').read_text().splitlines()
    assert rows[1:] == ['base,prompts,4,0,0,0', 'grey,prompts,4,0,4,4']
    noted = json.loads((tmp_path / 'out/provenance.json').read_text())
    assert noted['parameters']['options']['max_unsound'] == 1


def test_where_all_can_be_judged_nothing_is_said(world, tmp_path, run):
    models = [f'{name}={world}/model' for name in 'ab']
    words = [*models, '--prompts', world / 'prompts.txt', *DRAW, '--scorers', f'clip={world}/clip']
    assert 'cannot be judged' not in run('evaluate', *words, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out/unsound.csv').exists()


def test_prompts_that_are_not_read_to_the_end_are_in_the_note(world, tmp_path, run):
    long = 'fox ' * 100
    (tmp_path / 'prompts.txt').write_text(f'a fox\n{long}\n')
    models = [f'{name}={world}/model' for name in 'ab']
    words = [*models, '--prompts', tmp_path / 'prompts.txt', *DRAW]
    with pytest.warns(UserWarning, match='clip does not read 1 of the prompts to the end'):
        run('evaluate', *words, '--scorers', f'clip={world}/clip', '--out', tmp_path / 'out')
    noted = json.loads((tmp_path / 'out/provenance.json').read_text())
    assert noted['parameters']['cut_texts'] == {'clip': [1, long.strip()]}


@pytest.fixture
def three(world, tmp_path, run):
    "The words that compare three sets of images, drawn from different seeds."
    for seed in range(3):
        words = ['--prompts', world / 'prompts.txt', *DRAW, '--seed', seed]
        run('sample', '--model', world / 'model', *words, '--out', tmp_path / f's{seed}')
    # as another program's, whose seeds are not known
    for seed in (1, 2):
        index = pd.read_parquet(tmp_path / f's{seed}/index.parquet')
        (tmp_path / f't{seed}').mkdir()
        for n, row in enumerate(index.itertuples()):
            shutil.copy(tmp_path / f's{seed}' / row.file, tmp_path / f't{seed}/{n}.png')
            (tmp_path / f't{seed}/{n}.txt').write_text(row.prompt)
    contest = ['evaluate', *(f'{n}={tmp_path / n}' for n in ('s0', 't1', 't2'))]
    return [*contest, '--scorers', f'clip={world}/clip', '--device', 'cpu']


def test_three_models_have_an_order_and_the_images_are_listed(three, tmp_path, run):
    out = tmp_path / 'out'
    said = run(*three, '--out', out)
    rates, ranks = (pd.read_csv(out / f'{name}.csv') for name in ('comparisons', 'ranking'))
    assert list(zip(rates.model_a, rates.model_b)) == [('t1', 's0'), ('t2', 's0'), ('t2', 't1')]
    assert sorted(ranks['rank']) == [1, 2, 3]
    assert 'Order by all prompts and scorers' in said
    assert 'p: sign test over prompts, corrected for 3 comparisons (Holm)' in said
    rows = [line for line in said.splitlines() if line.startswith('|')]
    assert len(rows) == 2 + 3 + 2 + 3
    assert max(map(len, rows)) <= 100
    images = ResultImages.open(out)
    assert len([data for _, data in images.all_data()]) == 12
    scores = pd.read_parquet(out / 'scores.parquet')
    key = ['model', 'prompt_set', 'prompt_id', 'image_index', 'seed']
    assert images.rows[key].equals(scores[key])
    assert set(images.rows.store) == {'../s0', '../t1', '../t2'}
    assert set(images.rows.prompt) == {'a red cat', 'a dog'}
    told = json.loads((out / 'provenance.json').read_text())
    assert {'ranking.csv', 'images.parquet'} < set(told['outputs'])
    # of two models there is none, and that of the three is not left behind
    assert 'Order' not in run(*three[:3], *three[4:], '--out', out)
    assert not (out / 'ranking.csv').exists()


def test_image_by_image_there_is_no_p(world, tmp_path, run):
    models = [f'{name}={world}/model' for name in 'ab']
    words = [*models, '--prompts', world / 'prompts.txt', *DRAW, '--scorers', f'clip={world}/clip']
    said = run('evaluate', *words, '--protocol', 'paired', '--out', tmp_path / 'out')
    assert 'sign test' not in said
    assert pd.read_csv(tmp_path / 'out/comparisons.csv').p.isna().all()


def test_a_lora_needs_its_base(world, tmp_path, run):
    (tmp_path / 'pytorch_lora_weights.safetensors').touch()
    assert f'b=BASE+{tmp_path}' in run(
        'evaluate', f'a={world}/model', f'b={tmp_path}', '--prompts', world / 'prompts.txt', code=2
    )


def test_a_packaged_name_is_the_packaged_model(tmp_path, run, monkeypatch):
    "Also where `balanceddpo icons --export icons` has made a folder of that name, or images lie."
    monkeypatch.chdir(tmp_path)
    lora = tmp_path / 'lora' / 'pytorch_lora_weights.safetensors'
    lora.parent.mkdir()
    lora.touch()
    words = ['evaluate', 'base=icons', 'ours=icons+lora', '--prompts', 'icons:hpd', '--dry-run']
    first = run(*words)
    assert 'with icons + lora;' in first
    assert 'with icons + lora;' in run(
        'sample', '--model', 'icons+lora', '--prompts', 'icons:hpd', '--dry-run'
    )
    (tmp_path / 'icons').mkdir()
    assert run(*words) == first
    (tmp_path / 'icons' / 'index.parquet').touch()
    assert run(*words) == first
    assert contestant('base', './icons', SampleConfig()).images == Path('icons')
    words[1] = 'base=./icons'
    (tmp_path / 'icons' / 'index.parquet').unlink()
    assert './icons is neither a diffusers pipeline' in run(*words, code=2)
    both = ['--model', 'icons+lora', '--lora', 'other', '--prompts', 'icons:hpd']
    assert 'two LoRAs' in run('sample', *both, code=2)


def test_a_benchmark_that_counts_lines_draws_and_counts_each(world, tmp_path, run):
    lines = ['--prompt', 'a red cat', 'a dog', 'a red cat']
    draw = ['sample', '--model', world / 'model', *lines, *DRAW]
    said = run(*draw, '--out', tmp_path / 'once')
    assert 'prompt: repeated prompts left out: 1 (--keep-repeats' in said
    assert '4 images for 2 prompts' in said
    assert '6 images for 3 prompts' in run(*draw, '--keep-repeats', '--out', tmp_path / 'a')
    store = open_images(tmp_path / 'a')
    assert list(store.index.prompt) == [p for p in lines[1:] for _ in range(2)]
    assert store.index.sha256.nunique() == store.index.seed.nunique() == 6
    once = open_images(tmp_path / 'once').index
    assert list(store.index.sha256[:4]) == list(once.sha256)  # the first line of each is the same
    contest = ['evaluate', f'a={tmp_path}/a', f'b={world}/model', *lines, '--keep-repeats', *DRAW]
    run(*contest, '--scorers', f'clip={world}/clip', '--out', tmp_path / 'out')
    assert list(pd.read_csv(tmp_path / 'out/comparisons.csv').n) == [3]


def test_the_icon_worlds_scorers_judge_where_its_models_draw(world, run, monkeypatch):
    "Unless others are named: asked for with other models, the published ones would be."
    from balanceddpo.command import evaluation

    seen = []
    monkeypatch.setattr(evaluation, 'scorer_specs', lambda texts, _: seen.append(texts) or [])
    kinds = ['hps', 'clip', 'pickscore', 'aesthetic']
    for models, more, wanted in (
        (['a=icons', f'b={world}/model'], [], [f'icons:{kind}' for kind in kinds]),
        ([f'a={world}/model', f'b={world}/model'], [], kinds),
        (['a=icons', 'b=icons-xl'], ['--scorers', 'clip'], ['clip']),
    ):
        run('evaluate', *models, '--prompt', 'a cat', '--dry-run', *more)
        assert seen.pop() == wanted


@pytest.mark.parametrize(
    'words, says',
    [
        ('sample --model {w}/model --prompts {w}/none.txt', 'none.txt'),
        (
            'sample --model {w}/model --prompts {w}/prompts.txt --prompt fox',
            '--prompt and --prompts',
        ),
        ('align CaPO --model icons --prompts {w}/prompts.txt --prompt fox', 'give one of them'),
        ('sample --model {w}/model --prompts {w}/prompts.txt --scheduler ddpm', "'ddpm'"),
        ('sample --model {w}/model --prompts {w}/prompts.txt --limit -1', 'limit must be'),
        ('sample --model {w}/model --prompts {w}/prompts.txt --steps 5000', '1000 timesteps'),
        ('sample --model {w}/model --prompts {w}/prompts.txt --guidance inf', 'guidance must be'),
        (
            'evaluate a={w}/model b={w}/model --prompts {w}/prompts.txt --limit -1',
            'limit must be',
        ),
        (
            'evaluate a={w}/model b={w}/model --prompts {w}/prompts.txt --max-unsound 5',
            'from 0 to 1',
        ),
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


def test_a_page_shows_every_image_that_was_compared(world, tmp_path, run):
    models = [f'{name}={world}/model' for name in 'ab']
    words = [*models, '--prompts', world / 'prompts.txt', *DRAW, '--scorers', f'clip={world}/clip']
    out = tmp_path / 'out'
    assert f'page: {out}/index.html' in run('evaluate', *words, '--out', out)
    data, scores = data_of(out / 'index.html'), pd.read_parquet(out / 'scores.parquet')
    listed = pd.read_parquet(out / 'images.parquet')
    assert sorted(data['images']['sha256']) == sorted(listed.sha256)
    by_hash = listed.merge(scores, on=['model', 'prompt_set', 'prompt_id', 'image_index'])
    first = by_hash[(by_hash.model == 'a') & (by_hash.prompt == 'a red cat')]
    assert data['images']['scores']['clip'][:2] == pytest.approx(list(first['clip']), rel=1e-6)
    # the command that it gives draws the very image again
    command = [*data['models'][0]['command'], '--prompt', 'a dog', '--images-per-prompt', '2']
    assert command[:2] == ['balanceddpo', 'sample']
    run(*command[1:], '--device', 'cpu', '--out', tmp_path / 'again')
    again = open_images(tmp_path / 'again').index
    wanted = listed[(listed.model == 'a') & (listed.prompt == 'a dog')]
    assert again.sha256.tolist() == wanted.sha256.tolist()
    # it is left out if that is asked for, and then none of before is touched
    before = (out / 'index.html').read_bytes()
    assert 'page:' not in run('evaluate', *words, '--out', out, '--no-page')
    assert (out / 'index.html').read_bytes() == before
