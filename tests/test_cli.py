"""The command line end to end on tiny random models, what it says of bad input, and how light it
is."""

import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from balanceddpo import cli
from balanceddpo.cli import VERBS, main, option_comments
from balanceddpo.core.files import asset, content_digest
from balanceddpo.data.pairs import make_pair, write_pairs
from balanceddpo.models.encoding import EncodedPairs
from balanceddpo.models.sampling import open_images
from balanceddpo.scoring.encoders import write_random_clip
from balanceddpo.voting.labels import read_labels
from tiny_models import tiny_folder

KINDS = ('hps', 'clip', 'pickscore', 'aesthetic')
CAPTIONS = ('a red cat', 'a dog', 'red dogs')


def picture(i):
    small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, 'PNG')
    return buffer.getvalue()


def random_scorers(root):
    "Four scorers with random weights, in the formats of the published ones."
    for kind, library, file in (
        ('hps', 'open_clip', 'open_clip_model'),
        ('clip', 'transformers', 'model'),
        ('pickscore', 'transformers', 'model'),
    ):
        path = (
            write_random_clip(root / kind, library, 'a red cat dog dogs'.split(), seed=len(kind))
            / f'{file}.safetensors'
        )
        save_file(
            {
                k: v * 12.0 if k.endswith('weight') and v.ndim == 2 and 'embedding' not in k else v
                for k, v in load_file(path).items()
            },
            path,
            metadata={'format': 'pt'},
        )
    (root / 'aesthetic').mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file(
        {'weight': torch.randn(1, 32, generator=generator), 'bias': torch.zeros(1)},
        root / 'aesthetic/head.safetensors',
    )
    (root / 'aesthetic/aesthetic.json').write_text('{"backbone": "../clip"}')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with a tiny pipeline (model), scorers, pairs.parquet and prompts.txt; nothing of the
    icon world."""
    root = tmp_path_factory.mktemp('world')
    random_scorers(root)
    tiny_folder(root / 'model')
    write_pairs(
        [
            make_pair(
                CAPTIONS[i % 3], (picture(2 * i), picture(2 * i + 1)), float(i % 2), ('a', 'b')
            )
            for i in range(8)
        ],
        root / 'pairs.parquet',
    )
    (root / 'prompts.txt').write_text('a red cat\na dog\n')
    return root


def scorer_texts(world, kinds=KINDS):
    return [f'{k}={world / k}' for k in kinds]


def label_words(world, *more):
    return ['label', '--pairs', f'{world}/pairs.parquet', '--device', 'cpu', *more]


def encode_words(world, *more):
    words = f'encode --pairs {world}/pairs.parquet --model {world}/model --resolution 32'
    return [*words.split(), *more]


def train_words(world, place, *more):
    "Train on the labels and the encoded pairs in a folder."
    words = f'train --model {world}/model --labels {place}/labels.parquet --encoded {place}/encoded'
    return [*words.split(), *TRAIN, *more]


TRAIN = (
    '--resolution 32 --max-steps 2 --batch-size 4 --micro-batch-size 2 --refresh-every 1'
    ' --checkpoint-every 2 --device cpu --tracker none --learning-rate 1e-3'.split()
)
DRAW = '--images-per-prompt 2 --steps 2 --resolution 32 --batch-size 4 --device cpu'.split()


@pytest.fixture
def run(capfd):
    def run(*words, code=0):
        "Run the command in this process; returns what it printed."
        found = main(list(map(str, words)))
        said = capfd.readouterr()
        assert found == code, said.err
        if not code:
            return said.out
        lines = [line for line in said.err.splitlines() if line.strip()]
        assert len(lines) == 1, said.err
        assert lines[0].startswith('balanceddpo: '), said.err
        return said.err.strip()

    return run


def file_times(folder):
    "When each file in a folder was written, locks left out."
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in Path(folder).rglob('*')
        if p.is_file() and p.name != '.lock'
    }


def label_and_encode(world, work, run):
    "The first two of the four commands."
    labels_file = work / 'labels.parquet'
    said = run(*label_words(world, '--scorers', *scorer_texts(world), '--out', labels_file))
    assert '8 rows, 8 pairs kept' in said
    assert 'agreement' in said
    labels, config = read_labels(labels_file)
    assert len(labels) == 8
    assert config.scorers == KINDS
    assert {f'vote_{k}' for k in KINDS} < set(labels)

    said = run(*encode_words(world, '--device', 'cpu', '--out', work / 'encoded'))
    assert '8 pairs, 3 captions at 32 pixels' in said
    assert EncodedPairs.open(work / 'encoded').pair_ids == list(labels.pair_id)


def train_a_lora(world, work, run):
    "The third command; the same one again finds all done."
    train = train_words(world, work, '--mode', 'lora', '--out', work / 'lora')
    assert f'model: {work}/lora/model' in run(*train)
    assert len((work / 'lora/metrics.jsonl').read_text().splitlines()) == 2
    before = file_times(work / 'lora/model')
    run(*train)
    assert file_times(work / 'lora/model') == before


def check_results(folder, said):
    "What the fourth command leaves, and prints."
    rates = pd.read_csv(folder / 'comparisons.csv')
    assert list(rates.scorer) == list(KINDS)
    assert set(rates.model_a) == {'ours'}
    assert set(rates.model_b) == {'base'}
    assert (rates.n == 2).all()
    assert set(rates.prompt_set) == {'prompts'}
    assert (rates.low <= rates.win_rate).all()
    assert (rates.win_rate <= rates.high).all()
    assert f'{100 * rates.win_rate[0]:.1f} [' in said
    tables = {'win_rates.csv', 'win_rates.md', 'win_rates.tex'}
    outputs = tables | {'comparisons.csv', 'scores.parquet'}
    assert {p.name for p in folder.iterdir()} == outputs | {'provenance.json'}
    kept = json.loads((folder / 'provenance.json').read_text())
    assert kept['parameters']['options']['protocol'] == 'best'
    assert set(kept['outputs']) == outputs


def test_four_commands_from_parquet_to_win_rates_of_a_lora(world, tmp_path, run):
    work = tmp_path / 'work'
    label_and_encode(world, work, run)
    train_a_lora(world, work, run)
    contest = [
        'evaluate',
        f'base={world}/model',
        f'ours={world}/model+{work}/lora/model',
        *('--prompts', world / 'prompts.txt'),
        *('--scorers', *scorer_texts(world)),
        *DRAW,
    ]
    check_results(work / 'results', run(*contest, '--out', work / 'results'))
    stores = [open_images(p) for p in (tmp_path / 'runs/sample').iterdir()]
    assert len(stores) == 2
    assert stores[0].model != stores[1].model
    assert [len(s) for s in stores] == [4, 4]
    # the LoRA is in use
    assert not np.array_equal(*(np.asarray(s.image(stores[0].index.prompt_id[0])) for s in stores))

    # again, by another rule: nothing is drawn or scored
    before = file_times(tmp_path / 'runs')
    run(*contest, '--ties', 'drop', '--protocol', 'paired', '--out', work / 'paired')
    assert file_times(tmp_path / 'runs') == before
    assert set(pd.read_csv(work / 'paired/comparisons.csv').n) == {4}


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


def test_relabelling_costs_no_scoring(world, tmp_path, run):
    words = label_words(world, '--scorers', *scorer_texts(world, ('clip', 'aesthetic')))
    run(*words)
    before = file_times(tmp_path / 'runs/pair_scores')
    run(*words, '--ties', 'first')
    run(*words, '--method', 'sum_losses', '--weights', 2, 1)
    assert file_times(tmp_path / 'runs/pair_scores') == before
    made = [read_labels(p) for p in (tmp_path / 'runs/labels').glob('*.parquet')]
    assert sorted(c.method + c.ties for _, c in made) == [
        'majoritydrop',
        'majorityfirst',
        'sum_lossesdrop',
    ]
    assert {c.weights for _, c in made} == {None, (2.0, 1.0)}


def test_a_scorer_of_the_users_own(world, tmp_path, run):
    (tmp_path / 'mine.py').write_text(
        "from balanceddpo.scoring.scorers import register_scorer\n@register_scorer('redness')\ndef"
        ' redness(images, prompts): return [image.resize((1, 1)).getpixel((0, 0))[0]/255 for image'
        ' in images]\n'
    )
    said = run(
        *label_words(
            world,
            '--register',
            tmp_path / 'mine.py',
            '--method',
            'single',
            '--scorer',
            'redness',
            '--out',
            tmp_path / 'labels.parquet',
        )
    )
    labels, _ = read_labels(tmp_path / 'labels.parquet')

    def red(i):
        image = Image.open(io.BytesIO(picture(i))).convert('RGB')
        return image.resize((1, 1)).getpixel((0, 0))[0]

    assert list(labels.s) == [1 if red(2 * i) >= red(2 * i + 1) else -1 for i in range(8)]
    assert '8 pairs labelled by single' in said


@pytest.fixture
def encoded(world, tmp_path, run, monkeypatch):
    "A folder with labels and encoded pairs; from then on no model can be loaded."
    run(*label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet'))
    run(*encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded'))
    from balanceddpo.models import families
    from balanceddpo.scoring import encoders

    for module, name in (
        (families, 'load_part'),
        (encoders, 'transformers_encoder'),
        (encoders, 'open_clip_encoder'),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('a model was loaded'))
    return tmp_path


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


def test_a_preset_gives_defaults_that_can_be_changed(monkeypatch):
    monkeypatch.setitem(
        VERBS,
        'train',
        cli.replace(VERBS['train'], run=lambda options, config: seen.append((options, config))),
    )
    monkeypatch.setitem(
        VERBS,
        'encode',
        cli.replace(VERBS['encode'], run=lambda options, config: seen.append((options, config))),
    )
    from balanceddpo.recipes.presets import preset

    seen = []
    for words in (
        ['--preset', 'balanced_dpo_sdxl'],
        ['--preset=balanced_dpo_sdxl'],
        [
            '--refresh-every',
            '7',
            '--preset',
            'balanced_dpo_sdxl',
            '--no-sample-latents',
            '--lora_targets',
            'to_q',
        ],
    ):
        assert main(['train', '--labels', 'l', '--encoded', 'e', *words]) == 0
    assert seen[0][1] == seen[1][1] == preset('balanced_dpo_sdxl')
    assert seen[0][0].preset == 'balanced_dpo_sdxl'
    assert seen[2][1] == preset(
        'balanced_dpo_sdxl', refresh_every=7, sample_latents=False, lora_targets=('to_q',)
    )
    assert main(['encode', '--pairs', 'p', '--preset', 'balanced_dpo_sdxl', '--seed', '3']) == 0
    assert (seen[3][1].model, seen[3][1].resolution, seen[3][1].seed, seen[3][1].dtype) == (
        'stabilityai/stable-diffusion-xl-base-1.0',
        1024,
        3,
        'fp32',
    )


# bad input


@pytest.mark.parametrize(
    'words, says',
    [
        ('lable', "unknown verb 'lable': use label, encode"),
        ('label', '--pairs'),
        ('label --pairs', 'pairs'),
        ('label --pairs {w}/none.parquet', 'none.parquet: no such file'),
        ('label --pairs {w}/prompts.txt', 'prompts.txt'),
        ('label --pairs {w}/pairs.parquet --limit many', '--limit'),
        ('label --pairs {w}/pairs.parquet --stpes 3', '--stpes'),
        ('label --pairs {w}/pairs.parquet --method most', "'most'"),
        ('label --pairs {w}/pairs.parquet --scorers hsp', "unknown scorer 'hsp'"),
        (
            'label --pairs {w}/pairs.parquet --scorers clip={w}/clip clip={w}/clip',
            "two scorers are called 'clip'",
        ),
        ('label --pairs {w}/pairs.parquet --method single', 'method single needs a scorer'),
        (
            'label --pairs {w}/pairs.parquet --method single --scorer hps --scorers clip={w}/clip',
            "no scorer is called 'hps'",
        ),
        ('label --pairs {w}/pairs.parquet --weights 1 2', '4 scorers vote but 2 weights'),
        ('label --pairs {w}/pairs.parquet --method human --out {w}/prompts.txt', 'holds no labels'),
        ('label --pairs {w}/pairs.parquet --method human --out {w}', 'is a folder'),
        ('label --pairs {w}/pairs.parquet --register {w}/none.py', 'no such file of scorers'),
        (
            (
                'label --pairs {w}/pairs.parquet --method smoothed --scorer hps --scorers'
                ' clip={w}/clip'
            ),
            "no scorer is called 'hps'",
        ),
        ('label --pairs {w}/pairs.parquet --method given', 'made by other code'),
        (
            'label --pairs {w}/pairs.parquet --method confidence --scorers clip={w}/clip',
            'at least three scorers',
        ),
        ('label --pairs {w}/pairs.parquet --scorers clip={w}/none --device cpu', 'none'),
        (
            'label --pairs {w}/pairs.parquet --method human --out {w}/prompts.txt/labels.parquet',
            'prompts.txt is a file',
        ),
        ('encode --pairs {w}/pairs.parquet --model {w}/clip', 'model_index.json'),
        ('encode --pairs {w}/pairs.parquet --preset none', "unknown preset 'none'"),
        ('train --labels {w}/none --encoded {w}/none --model {w}/model', 'none'),
        (
            'train --preset balanced_dpo_sd15 --labels {w}/pairs.parquet --encoded {w}/clip',
            'not a table of labels',
        ),
        ('train --labels x --encoded y', '--model'),
        (
            'train --preset balanced_dpo_sd15 --labels x --encoded y --beta -1',
            'beta must be above 0',
        ),
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
        ('encode --pairs {w}/pairs.parquet', '--model'),
        ('label --pairs {w}/pairs.parquet --share 0', 'share'),
        ('train --labels {w}/none --encoded x --model {w}/model', 'make it with balanceddpo label'),
        (
            'evaluate a={w}/model b={w}/clip --prompts {w}/prompts.txt',
            'neither a diffusers pipeline',
        ),
        ('evaluate a={w}/model b={w}/model+{w}/none --prompts {w}/prompts.txt', 'no such LoRA'),
        (
            'evaluate a={w}/model b={w}/model --prompts {w}/prompts.txt {w}/prompts.txt',
            'two prompt sets',
        ),
        ('reproduce', 'NAME'),
        ('reproduce table0', "no notebook 'table0'"),
        ('reproduce table1 --parameters x=1', "unknown parameter 'x'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(world, run, words, says):
    said = run(*words.format(w=world).split(), code=2)
    assert says.lower() in said.lower(), said


def test_a_lora_needs_its_base(world, tmp_path, run):
    (tmp_path / 'pytorch_lora_weights.safetensors').touch()
    assert f'b=BASE+{tmp_path}' in run(
        'evaluate', f'a={world}/model', f'b={tmp_path}', '--prompts', world / 'prompts.txt', code=2
    )


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError('a mistake of ours')

    monkeypatch.setitem(VERBS, 'icons', cli.replace(VERBS['icons'], run=fail))
    with pytest.raises(RuntimeError, match='of ours'):
        main(['icons'])


def test_no_memory_left_is_a_line_with_advice(monkeypatch, capsys):
    import torch

    def fail(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nmore of it')

    monkeypatch.setitem(VERBS, 'icons', cli.replace(VERBS['icons'], run=fail))
    assert main(['icons']) == 1
    assert '2 GiB.; use less at once: --micro-batch-size' in (said := capsys.readouterr().err)
    assert said.count('\n') == 1


def test_long_paths_are_not_broken_in_messages(run):
    path = '/'.join(['a long name'] * 40)
    assert path in run('label', '--pairs', path, code=2)
    assert f"'{path}'" in run('sample', '--limit', path, code=2)


def test_the_installed_command_in_a_shell(tmp_path):
    command = Path(sys.executable).parent / 'balanceddpo'
    done = subprocess.run(
        [command, 'label', '--pairs', 'none.parquet'], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and done.stdout == ''
        and re.fullmatch(r'balanceddpo: .*none\.parquet: no such file.*\n', done.stderr)
    ), done.stderr
    ascii = subprocess.run(
        [sys.executable, '-m', 'balanceddpo.cli', 'sample', '--steps', 'x'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'},
    )
    assert ascii.returncode == 2 and re.fullmatch(
        r"balanceddpo: Error parsing --steps: .*'x' \(see balanceddpo sample --help\)\n",
        ascii.stderr,
    ), ascii.stderr
    listed = subprocess.run(
        f'{command} train --help | head -1',
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.startswith('usage: balanceddpo train')
    assert listed.stderr == ''


# help


def test_help_is_light():
    code = """
import sys; from balanceddpo.cli import main
assert main(['--help']) == 0
heavy = 'torch numpy pandas pyarrow PIL tyro papermill nbformat diffusers transformers'.split()
loaded = {m.split('.')[0] for m in sys.modules} & set(heavy)
light = 'cli core core.errors core.files core.parallel paper paper.reproduction'.split()
ours = {m.removeprefix('balanceddpo.') for m in sys.modules if m.startswith('balanceddpo.')}
stages = ours - set(light)
assert not loaded | stages, loaded | stages
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(v in done.stdout for v in VERBS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize('verb', VERBS)
def test_help_has_every_option_with_its_comment(verb, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '400')
    with pytest.raises(SystemExit) as stop:
        main([verb, '--help'])
    said, v = capsys.readouterr().out, VERBS[verb]
    assert stop.value.code in (0, None)
    for config in filter(None, (v.options, v.settings)):
        comments = option_comments(config)
        for name in config.__dataclass_fields__:
            if config is v.settings and name in v.hidden:
                assert f'--{name} ' not in said or name in v.options.__dataclass_fields__
                continue
            assert comments.get(name), f'{config.__name__}.{name} has no comment'
            assert comments[name] in said, f'{config.__name__}.{name}'
            assert name in v.positional or f'--{name.replace("_", "-")}' in said
    assert {'--dry-run'} <= set(said.split()) or '--dry-run,' in said


def test_an_options_name_is_used_once():
    for v in VERBS.values():
        if v.settings:
            assert not set(v.options.__dataclass_fields__) & (
                set(v.settings.__dataclass_fields__) - set(v.hidden)
            )


# the icon world


def test_the_icon_world_can_be_seen_and_copied_out(tmp_path, run):
    said = run('icons')
    assert 'simulated' in said
    assert 'pairs' in said
    assert '150 hpd' in said
    run('icons', '--export', tmp_path / 'world')
    for part in cli.PARTS:
        assert content_digest(tmp_path / 'world' / part) == content_digest(asset(part))
    assert 'is there already' in run('icons', '--export', tmp_path / 'world', code=2)
    said = run('icons', '--grid', tmp_path / 'pairs.png', '--rows', 2)
    assert Image.open(tmp_path / 'pairs.png').width > 500
    assert 'pairs.pdf' in said


def test_icons_is_short_for_its_four_scorers():
    assert cli.scorer_names(('icons', 'clip')) == [*(f'icons:{k}' for k in KINDS), 'clip']
    assert cli.scorer_names(None) == list(KINDS)
    assert cli.scorer_names(None, 'human') == []
    assert cli.scorer_names(None, 'single', 'hps') == ['hps']


# what README and docs say

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def python_blocks(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.S)


def test_every_command_on_the_pages_can_be_read():
    text = '\n'.join(page.read_text() for page in PAGES)
    blocks = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.S))
    inline = re.findall(r'`(balanceddpo [^`]+)`', text)
    lines = [line for line in [*blocks.splitlines(), *inline] if line.startswith('balanceddpo ')]
    verbs = {line.split()[1] for line in lines}
    assert verbs >= {'label', 'encode', 'train', 'evaluate', 'reproduce', 'icons'}
    for line in lines:
        cli.parse(VERBS[shlex.split(line)[1]], shlex.split(line)[2:])


def test_a_method_beside_a_preset_comes_with_its_own_beta_and_noise():
    from balanceddpo.losses.methods import LOSSES

    for words, method, beta, noise in (
        (
            '--preset balanced_dpo_icons --method inpo',
            'inpo',
            LOSSES['inpo'].defaults['beta'],
            'inpo_code',
        ),
        ('--method=mapo --preset=balanced_dpo_sd15 --refresh-every 0', 'mapo', 0.1, 'random'),
        ('--preset smpo_sd15 --method dpo', 'dpo', 5000, 'random'),
        ('--preset smpo_sd15 --method smpo', 'smpo', 2000, 'smpo_code'),
        ('--preset smpo_sd15 --method ipo --beta 7 --noise inpo', 'ipo', 7, 'inpo'),
    ):
        _, c = cli.parse(VERBS['train'], [*words.split(), '--labels', 'l', '--encoded', 'e'])
        assert (c.method, c.beta, c.noise) == (method, beta, noise), words


def run_python(code, changes):
    "Run a page's lines with some of their words replaced; what they define."
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    scope = {}
    exec(code, scope)
    return scope


def test_the_steps_in_python_run(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (steps,) = python_blocks('docs/real_weights.md')
    small = {
        "'stable-diffusion-v1-5/stable-diffusion-v1-5', 'prompts.txt'": (
            f"'{world}/model', '{world}/prompts.txt'"
        ),
        "'pairs.parquet'": f"'{world}/pairs.parquet'",
        'load_scorers()': f'load_scorers({scorer_texts(world)})',
        "resolution=512, dtype='bf16'": 'resolution=32',
        "_lora', model=base)": (
            "_lora', model=base, resolution=32, max_steps=1, batch_size=2, precision='fp32',"
            " tracker='none')"
        ),
        "dtype='bf16')": 'steps=1, images_per_prompt=1, resolution=32)',
    }
    run_python(steps, small)
    assert 'win_rate' in capsys.readouterr().out


def test_a_rival_in_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (rival,) = python_blocks('docs/methods.md')
    small = {"scale_of('icons')": "scale_of('smoke')"}
    small |= {'n_prompts=200, n_images=8': 'n_prompts=3, n_images=4'}
    assert run_python(rival, small)['model'].name == 'CaPO'


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages, scorer = python_blocks('README.md')
    small = {
        "PairSource('icons')": "PairSource('icons', limit=8)",
        "preset('balanced_dpo_icons')": (
            "preset('balanced_dpo_icons', max_steps=1, batch_size=4, micro_batch_size=4)"
        ),
        'steps=15': 'steps=2, limit=2, images_per_prompt=1',
    }
    run_python(stages, small)
    assert 'win_rate' in capsys.readouterr().out
    sharpness = run_python(scorer, {})['sharpness']
    flat = Image.new('RGB', (8, 8))
    striped = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4))).convert('RGB')
    assert sharpness([flat, striped], ['', '']) == [0, 255]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_every_link_on_a_page_leads_somewhere(page):
    text = page.read_text()
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    links = [link for link in links if not link.startswith('http')]
    assert [link for link in links if not (page.parent / link.partition('#')[0]).exists()] == []
    headings = re.findall(r'^#+ (.+)$', text, re.M)
    headings = {re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings}
    assert [link for link in links if link.startswith('#') and link[1:] not in headings] == []


def test_train_refuses_a_model_of_another_family_than_the_one_asked_for(tmp_path, run):
    words = f'train --preset balanced_dpo_icons --family sdxl --labels {tmp_path}/a'.split()
    said = run(*words, '--encoded', tmp_path / 'b', code=2)
    assert 'icons is of the family sd15, not sdxl' in said
