"""balanceddpo label: what is scored once, and scorers of the user's own."""

import io

import pytest
from PIL import Image
from plugin_package import install

from balanceddpo.data.sources import PairSource
from balanceddpo.voting.labels import LABELLERS, read_labels
from short_commands import file_times, label_words, scorer_texts
from short_runs import picture


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
        "from balanceddpo.scoring.registry import register_scorer\n@register_scorer('redness')\ndef"
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


@pytest.mark.parametrize('out', ['votes.parquet', 'votes.jsonl', 'votes'])
def test_the_labelled_pairs_are_written_for_other_trainers(world, tmp_path, run, out):
    words = label_words(world, '--method', 'human', '--write-pairs', tmp_path / out)
    said = run(*words)
    assert '8 pairs written; left out: 0 undecided, 0 without a label' in said
    assert f'pairs: {tmp_path / out}' in said
    if out == 'votes.parquet':
        ours = [p.label_0 for p in PairSource(f'{world}/pairs.parquet').read()]
        assert [p.label_0 for p in PairSource(str(tmp_path / out)).read()] == ours
    # the labels lie where they lie without it
    (labels,) = (tmp_path / 'runs/labels').glob('*.parquet')
    run(*label_words(world, '--method', 'human'))
    assert list((tmp_path / 'runs/labels').glob('*.parquet')) == [labels]
    assert 'is there already' in run(*words, code=2)


@pytest.mark.parametrize(
    'words, says',
    [
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
        ('label --pairs {w}/pairs.parquet --share 0', 'share'),
        ('label --pairs {w}/pairs.parquet --write-pairs {w}/votes.csv', 'name has no suffix'),
        ('label --pairs {w}/pairs.parquet --write-pairs {w}', 'is there already'),
        (
            'label --pairs {w}/pairs.parquet --write-pairs {w}/votes --undecided keep',
            'only a .parquet',
        ),
        ('label --pairs {w}/pairs.parquet --method human --share 1e-9', 'no row is in the share'),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, words, says):
    assert says.lower() in refused(words)


@pytest.mark.parametrize(
    'text, says',
    [
        ('import sys\nsys.exit(0)', 'mine.py, line 2): SystemExit: 0'),
        ('x = 1\ndef (', 'mine.py): SyntaxError: invalid syntax'),
        ('import no_such_module_of_mine', 'mine.py, line 1): ModuleNotFoundError: No module named'),
        ('\n\n1 / 0', 'mine.py, line 3): ZeroDivisionError'),
    ],
)
def test_a_file_of_scorers_that_fails_is_one_line(world, tmp_path, run, text, says):
    (tmp_path / 'mine.py').write_text(text)
    said = run(*label_words(world, '--register', tmp_path / 'mine.py'), code=2)
    assert f'the file of scorers failed ({tmp_path}/{says}' in said


def test_a_scorer_that_ends_the_program_is_told_and_leaves_no_labels(world, tmp_path, run):
    (tmp_path / 'mine.py').write_text(
        'import sys\nfrom balanceddpo.scoring.registry import register_scorer\n'
        "@register_scorer('leaves')\ndef leaves(images, prompts):\n    sys.exit(0)\n"
    )
    out = tmp_path / 'labels.parquet'
    words = label_words(world, '--register', tmp_path / 'mine.py', '--scorers', 'leaves')
    said = run(*words, '--out', out, code=2)
    assert f'the scorer leaves failed ({tmp_path}/mine.py, line 5): it ends the program' in said
    assert not out.exists()


def test_a_way_to_label_of_an_installed_package(world, tmp_path, run, monkeypatch):
    monkeypatch.setattr('balanceddpo.voting.labels.LABELLERS', dict(LABELLERS))
    code = 'def first(ballot, config):\n    return [[1.0, 0.0]] * len(ballot.pair_ids)\n'
    install(tmp_path / 'site', monkeypatch, code, name='my-votes', labels={'first': 'first'})
    words = label_words(world, '--scorers', *scorer_texts(world, ('clip',)))
    said = run(*words, '--method', 'first', '--out', tmp_path / 'labels.parquet')
    assert '8 pairs labelled by first: 8 for image 0' in said
    assert read_labels(tmp_path / 'labels.parquet')[1].method == 'first'
