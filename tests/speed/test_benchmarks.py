"""Benchmarks: the rivals do the same work as ours (at tiny size), the protocol is as described,
counts are right, and the table says what the rows say. No times."""

import importlib
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from random_networks import TINY, make_unet, make_vae

os.environ['BENCH_SIZE'] = 'tiny'
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
agreement = importlib.import_module('benchmarks.agreement')
evaluation = importlib.import_module('benchmarks.evaluation')
gpu = importlib.import_module('benchmarks.gpu')
gpu_labelling = importlib.import_module('benchmarks.gpu_labelling')
labelling = importlib.import_module('benchmarks.labelling')
memory = importlib.import_module('benchmarks.memory')
profiles = importlib.import_module('benchmarks.profiles')
report = importlib.import_module('benchmarks.report')
scale = importlib.import_module('benchmarks.scale')
step = importlib.import_module('benchmarks.step')
timing = importlib.import_module('benchmarks.timing')
tried = importlib.import_module('benchmarks.tried')
wall = importlib.import_module('benchmarks.wall')
world = importlib.import_module('benchmarks.world')
together = importlib.import_module('benchmarks.__main__')


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv('BENCH_OUT', str(tmp_path / 'rows'))
    monkeypatch.setenv('BENCH_COMMIT', 'none')
    return timing.Log('test')


def gates(log):
    "(what, value) of the gates that were kept."
    return [(row['gate'], row['value']) for row in log.rows if 'gate' in row]


def read_lines(path):
    "What the lines of a file of JSON say."
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_agreement_of_two_evaluations_by_hand():
    """Four prompts, one scorer. Exact: ours ahead at three and behind at one. Cheap: ahead at one,
    level at one, behind at two: the same winner twice, a win rate of 37.5 % instead of 75 %."""
    import pandas as pd

    from balanceddpo.evaluation.win_rates import score_table

    def tables(ours):
        return pd.concat(
            [
                score_table('a', {'hps': np.array(ours)[:, None]}),
                score_table('base', {'hps': np.zeros((4, 1))}),
            ]
        )

    found = agreement.agreement(
        tables([1.0, 1, 1, -1]), tables([1.0, 0, -1, -1]), ('a', 'base'), ['hps']
    )
    assert found == {'same': 0.5, 'apart': 37.5}


# --- same work


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return step.make_world(TINY, tmp_path_factory.mktemp('world'), n=4)


@pytest.mark.parametrize(
    'mode, rival, batch, micro',
    [
        ('full', step.R1, 2, 2),
        ('full', step.R1, 2, 1),
        ('lora', step.R2, 2, 2),
        ('full', step.R1, 6, 6),
    ],
)
def test_a_public_step_has_our_gradient_and_our_losses(
    tiny, log, tmp_path, mode, rival, batch, micro
):
    "Of four pairs; six a step visit two of them again, with other noise."
    run = step.start_ours(tiny, step.train_config(tiny.geometry, mode, batch), tmp_path)
    theirs = rival(tiny, run.config, micro, step.our_random_numbers, run=run)
    step.gate(log, 'test', run, theirs)
    (_, gradient), (_, losses), (_, moved) = gates(log)
    assert gradient <= 1e-5
    assert losses <= 1e-4
    assert moved >= 1e-3


def test_the_gate_sees_what_the_first_loss_does_not(tiny, log, tmp_path):
    "The wrong pictures: the first loss is ln 2 on both sides all the same."
    from dataclasses import replace

    run = step.start_ours(tiny, step.train_config(tiny.geometry, 'full', 2), tmp_path)
    other = replace(tiny, pixels=tiny.pixels.roll(1, 0))
    wrong = step.R1(other, run.config, 2, step.our_random_numbers)
    assert wrong.micro_step(np.array([0, 1]), 1.0) == pytest.approx(math.log(2), abs=1e-6)
    wrong.optimizer.zero_grad()
    with pytest.raises(SystemExit, match='nothing is timed'):
        step.gate(log, 'test', run, wrong)


def test_rivals_label_as_ours(log, tmp_path):
    source = labelling.write_source(tmp_path / 'pairs.parquet', 10)
    labelling.gate(log, source, labelling.load_four(), tmp_path / 'scores', 8)
    assert len(gates(log)) == 4
    scores = np.array([[[1.0, 1.0], [2.0, 0.0]], [[0.0, 3.0], [5.0, 1.0]]])
    difference = labelling.difference(scores, scores + np.array([0.0, 0.5]))
    assert difference == pytest.approx(0.5 / scores[..., 1].std())
    assert labelling.different_votes(scores, scores[:, ::-1]) == 4


def test_the_rival_evaluates_as_ours(log, tmp_path):
    from balanceddpo.data.prompts import read_prompts
    from balanceddpo.models.folders import local_folder

    models = {'base': local_folder('icons'), 'a': evaluation.write_model(tmp_path / 'a', 1)}
    prompts = read_prompts('icons:pickapic', limit=2)
    evaluation.gate(log, models, prompts, labelling.load_four(), tmp_path / 'runs')
    assert len(gates(log)) == 4


# --- the protocol


def test_a_round_goes_there_and_back():
    calls = []
    arms = []
    for name in 'ab':
        before = partial(calls.append, name.upper())
        arms.append(timing.Arm(name, partial(calls.append, name), before))
    rounds = list(timing.run_rounds(arms, count=2, warmups=1))
    assert [sorted(took) for took in rounds] == [['a', 'b'], ['a', 'b']]
    assert ''.join(calls) == 'AaBb' + 2 * 'AaBbBbAa'


def test_the_clock_stops_at_the_budget_and_a_part_is_scaled(monkeypatch):
    now = iter(range(10**6))
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(now))
    assert timing.seconds_of_run(timing.Arm('a', lambda: None, scale=10.0)) == 10.0
    # this clock goes on by one a look: five looks and so five seconds a round
    monkeypatch.setattr(timing, 'START', 0)
    arms = [timing.Arm('a', lambda: None)]
    assert len(list(timing.run_rounds(arms, count=50, warmups=0, until=30))) < 10


@pytest.mark.parametrize('left', [10_000, 300, 100, 40])
def test_a_benchmark_is_stopped_within_what_is_left(left):
    for name, budget in together.BUDGETS.items():
        seconds = together.seconds_for(name, left)
        assert 0 < seconds <= budget
        assert together.stopped_after(seconds) <= left
        assert seconds == budget or together.stopped_after(budget) > left


def test_ratios_are_of_one_round_and_the_control_is_ours(log, monkeypatch):
    took = [
        {'ours': 1.0, 'theirs': 3.0, 'control': 1.1},
        {'ours': 2.0, 'theirs': 4.0, 'control': 2.0},
    ]

    def run_rounds(arms):
        assert [arm.name for arm in arms] == ['ours', 'theirs', 'control']
        return iter(took)

    monkeypatch.setattr(timing, 'run_rounds', run_rounds)
    arms = [timing.Arm('ours', None), timing.Arm('theirs', None)]
    timing.time_arms(log, 1, {'theirs': '>= 1.5'}, arms)
    assert [(r['value'], r['control']) for r in log.rows] == [(3.0, 1.1), (2.0, 1.0)]
    assert read_lines(log.path)[1:] == log.rows


# --- counted


def test_scorers_that_share_a_network_pay_for_it_once():
    found = scale.count_passes(12)
    # CLIP and Aesthetic look through the same one
    assert (found['scorers'], found['towers']) == (4, 3)
    assert found['image_passes'] == 3 * found['images']
    assert found['text_passes'] == 3 * found['captions']


def test_many_scorers_on_one_network_cost_the_passes_of_one():
    from balanceddpo.scoring.scorers import PromptScorer, score_items

    encoder = gpu_labelling.make_encoder('tiny', 'crop', 'cpu', torch.float32)
    items = [
        (str(i), torch.randint(256, (3, 40, 30), dtype=torch.uint8), f'prompt {i % 2}')
        for i in range(5)
    ]
    score_items([PromptScorer(f's{k}', str(k), encoder, float(k)) for k in range(6)], items)
    assert (encoder.image_passes, encoder.text_passes) == (5, 2)


@pytest.mark.parametrize('clip, variant, networks', [('H', '', 4), ('L', '@l14', 3)])
def test_published_scorers_are_counted_with_the_networks_that_they_load(
    clip, variant, networks, monkeypatch
):
    """Four by default, three with clip@l14: as `load_scorers` asks for them, as they are measured,
    and as their FLOPs are counted."""
    from balanceddpo.scoring.registry import PAPER_SCORERS, PUBLISHED, parse_scorer

    def network(spec):
        variants = PUBLISHED[spec.kind]
        source, beside = variants[spec.variant or next(iter(variants))]
        return beside if spec.kind == 'aesthetic' else source

    specs = [parse_scorer(kind + variant * (kind == 'clip')) for kind in PAPER_SCORERS]
    assert len({network(spec) for spec in specs}) == networks
    scorers = gpu_labelling.real_scorers('cpu', torch.float32, clip, 'tiny', 'tiny')
    assert len({id(scorer.encoder) for scorer in scorers}) == networks
    monkeypatch.setattr(gpu_labelling, 'clip_flops', {'H': (1e3, 1e6), 'L': (1.0, 1e9)}.get)
    expected = {'H': 3 * 2e3 + 2 + 3e6, 'L': 2 * 2e3 + 2 + 2e6 + 1e9}
    assert gpu_labelling.scorer_flops(clip) == expected[clip]


def test_both_goals_of_labelling_are_one_share_of_the_peak():
    shares = [share for what, *_, share in gpu.counted_limits() if what.startswith('labelling')]
    assert len(shares) == 2
    assert shares == pytest.approx([0.627, 0.627], abs=0.005)


def test_flops_of_the_published_geometry_and_the_encoder_share_of_the_small_one():
    def count(g):
        def predict(unet):
            latent = torch.empty(1, 4, g.pixels // 8, g.pixels // 8)
            embedding = torch.empty(1, 77, g.unet['cross_attention_dim'])
            return unet(latent, torch.zeros(1, dtype=torch.long), embedding).sample

        def encode(vae):
            return vae.encode(torch.empty(1, 3, g.pixels, g.pixels)).latent_dist.mean

        return (
            world.meta_flops(partial(make_unet, g), predict),
            world.meta_flops(partial(make_vae, g), encode),
        )

    unet, encode = count(world.SD15)
    small, small_encode = count(world.CPU)
    # SD1.5's geometry, by torch's counter
    assert unet == pytest.approx(803.3e9, rel=1e-3)
    assert encode == pytest.approx(1116.7e9, rel=1e-3)
    assert small_encode / small == pytest.approx(encode / unet, rel=0.1)
    assert world.per_pair(dict(unet=1.0, unet_backward=3.0, encode=2.0, text=0.5)) == {
        'cached': 8.0,
        'in_loop': 12.5,
    }


def test_what_autograd_keeps_is_counted_once_and_without_parameters():
    x, w = torch.ones(10), torch.nn.Parameter(torch.ones(10))
    # x for the product, the result of exp for itself: 40 bytes each
    assert memory.kept_bytes(lambda: (x * w).exp(), [w]) == 80
    y = torch.ones(10, requires_grad=True)
    assert memory.kept_bytes(lambda: (y * y) * y, [w]) == 80  # y three times is kept once; y * y


def test_a_line_is_found():
    fixed, each = scale.fit_line([1, 2, 4], [5.0, 7.0, 11.0])
    assert (fixed, each) == (pytest.approx(3.0), pytest.approx(2.0))


# --- what a run may replace


@pytest.fixture
def kept(tmp_path, monkeypatch):
    "A repository with published rows, in the place of this one; nothing names a folder."
    monkeypatch.delenv('BENCH_OUT', raising=False)
    for module in (timing, profiles, together):
        monkeypatch.setattr(module, 'HERE', tmp_path / 'benchmarks')
    monkeypatch.setattr(together, 'APART', tmp_path / 'apart')
    (tmp_path / 'benchmarks/rows').mkdir(parents=True)
    (tmp_path / 'benchmarks/rows/step.jsonl').write_text('published')
    yield tmp_path
    assert (tmp_path / 'benchmarks/rows/step.jsonl').read_text() == 'published'


@pytest.mark.parametrize('size, rounds', [('tiny', 12), ('cpu', 9)])
def test_less_than_a_measurement_replaces_nothing(kept, monkeypatch, size, rounds):
    monkeypatch.setattr(timing, 'SIZE', size)
    monkeypatch.setattr(timing, 'ROUNDS', rounds)
    for start in (lambda: timing.Log('step'), lambda: timing.out_folder(kept)):
        with pytest.raises(SystemExit, match='BENCH_OUT=FOLDER'):
            start()
    monkeypatch.setenv('BENCH_OUT', str(kept / 'mine'))
    timing.Log('step')
    assert (kept / 'mine/step.jsonl').exists()
    monkeypatch.delenv('BENCH_OUT')
    monkeypatch.setattr(timing, 'SIZE', 'cpu')
    monkeypatch.setattr(timing, 'ROUNDS', 10)
    timing.Log('other')
    assert (kept / 'benchmarks/rows/other.jsonl').exists()


@pytest.fixture
def together_run(kept, monkeypatch):
    """`python -m benchmarks` with some words, none of its benchmarks started: where the rows of
    each would go, and whether README was written."""

    def call(*words):
        places, written = [], []
        monkeypatch.setattr(sys, 'argv', ['__main__.py', *words])
        monkeypatch.setattr(together, 'SIZE', 'cpu')

        def run(name, seconds, out):
            places.append((name, str(out)))

        monkeypatch.setattr(together, 'run', run)
        monkeypatch.setattr(report, 'report', lambda folder: str(folder))
        monkeypatch.setattr(report, 'brief', lambda: 'short table')
        monkeypatch.setattr(report, 'write', written.append)
        together.main()
        return places, written

    return call


def test_only_write_replaces_what_was_published(together_run, kept, monkeypatch):
    apart = str(kept / 'apart')
    assert together_run() == ([(n, apart) for n in together.BUDGETS], [])
    # '': rows/
    assert together_run('labelling', '--write') == ([('labelling', '')], ['short table'])
    monkeypatch.setenv('BENCH_OUT', 'mine')
    assert together_run('scale') == ([('scale', 'mine')], [])
    with pytest.raises(SystemExit, match='--write replaces'):
        together_run('--write')
    assert not together.APART.is_relative_to(timing.HERE)


def test_a_long_run_has_rows_of_its_own(log, monkeypatch):
    "`make bench` labels fewer pairs than --full, and the rows of one are not those of the other."
    monkeypatch.setattr(labelling, 'compare', lambda log, folder, n: log.add(n=n))
    for words in ([], ['--full']):
        monkeypatch.setattr(sys, 'argv', ['labelling.py', *words])
        labelling.main()
    found = {file.name: read_lines(file) for file in log.path.parent.glob('labelling*')}
    assert {name: (head['pairs'], row['n']) for name, (head, row) in found.items()} == {
        'labelling.jsonl': (20, 20),
        'labelling_full.jsonl': (40, 40),
    }
    assert [head['bench'] for head, _ in report.read(log.path.parent)] == [
        'labelling',
        'labelling_full',
        'test',
    ]


def test_published_rows_are_of_the_size_that_their_name_says():
    "Of full runs and of `make bench`; none is tiny."
    for head, _ in report.read(ROOT / 'benchmarks/rows'):
        assert head['size'] == 'cpu'
        assert head['bench'] != 'labelling_full' or head['pairs'] == 500
        assert head['bench'] != 'labelling' or head['pairs'] == 150


@pytest.mark.parametrize(
    'module',
    [
        together,
        agreement,
        evaluation,
        gpu,
        labelling,
        memory,
        profiles,
        report,
        scale,
        step,
        tried,
        wall,
    ],
    ids=lambda m: m.__name__.split('.')[-1],
)
def test_help_and_a_wrong_word_end_at_once(module, kept, monkeypatch, capsys):
    file = Path(module.__file__).name
    name = 'python -m benchmarks' + f'.{Path(file).stem}' * (module is not together)
    monkeypatch.setattr(sys, 'argv', [file, 'nonsense'])
    with pytest.raises(SystemExit) as end:
        module.main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count('\n') == 1
    assert error.startswith(f"{name}: unknown 'nonsense': use ")
    monkeypatch.setattr(sys, 'argv', [file, '--help'])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert module.__doc__.strip()[:60] in capsys.readouterr().out
    assert sorted(p.name for p in (kept / 'benchmarks/rows').iterdir()) == ['step.jsonl']


def test_the_page_names_every_command_and_what_make_bench_runs():
    page = (ROOT / 'benchmarks/README.md').read_text()
    files = set()
    for path in (ROOT / 'benchmarks').glob('*.py'):
        if path.stem != '__main__' and "__name__ == '__main__'" in path.read_text():
            files.add(path.stem)
    assert ', '.join(f'`{n}`' for n in together.BUDGETS) in page
    by_hand = page.split('<!-- results -->')[0].split('By hand')[1]
    assert {n for n in files - set(together.BUDGETS) if f'benchmarks.{n}' not in by_hand} == set()
    assert {n for n in gpu.PARTS if f'`{n}`' not in page} == set()


# --- the table


def add_rows(log, what, values, goal='>= 1.5', control=()):
    "A row a value, with its control if there is one."
    for number, value in enumerate(values):
        beside = {'control': control[number]} if control else {}
        log.add(row=1, what=what, goal=goal, round=number, value=value, **beside)


@pytest.fixture
def files(log):
    "One measurement for each verdict, and a gate."
    add_rows(log, 'met', [1.0, 2.0, 3.0] * 4, control=[0.99, 1.0, 1.2] * 4)
    add_rows(log, 'few', [2.0, 2.0], control=[1.0, 1.0])
    add_rows(log, 'short', [1.0, 1.2, 9.0])
    add_rows(log, 'noisy', [2.0, 2.0, 2.0], control=[1.2, 1.2, 1.0])
    add_rows(log, 'start', [0.1], '<= 0.5')
    log.gate(1, 'gradients', 1e-7, 1e-5)
    return report.read(log.path.parent)


def test_the_short_table_has_the_rows_with_a_goal_and_where_they_were_measured(log):
    add_rows(log, 'fast', [2.0, 3.0, 4.0])
    add_rows(log, 'no goal', [1.0], goal='')
    head, _ = report.read(log.path.parent)[0]
    text = report.brief(log.path.parent)
    assert '| fast | 3 | >= 1.5 met |' in text
    assert 'no goal' not in text
    assert f'- test: {head["date"][:10]}, ' in text
    assert head['commit'] in text


def test_the_table_says_what_the_rows_say(files):
    found = {s['what']: s for s in report.summaries(files)}
    assert {k: s['verdict'] for k, s in found.items()} == {
        'met': 'met',
        'few': 'met (2 rounds only)',
        'short': 'short',
        'noisy': 'A/A off: run again',
        'start': 'met',
    }
    assert (
        '| 1 | met | >= 1.5 | 2 | 1 | 3 | 1 (0.99 to 1.2) | 12 | met |'
        in report.table(list(found.values())).splitlines()
    )
    text = report.report(Path(os.environ['BENCH_OUT']))
    assert 'gradients: 1e-07 (limit 1e-05), passed' in text
    assert 'On a GPU: not yet run.' in text
    assert 'size tiny' in text
    assert 'Not yet run: 2 (labelling)' in text
    assert 'labelling of 500 pairs (--full), `reproduce table1`' in text


def test_the_table_goes_between_its_marks(tmp_path):
    page = tmp_path / 'README.md'
    page.write_text(f'before {report.BEGIN} old {report.END} after')
    report.write('new', page)
    report.write('newer', page)
    assert page.read_text() == f'before {report.BEGIN}\nnewer\n{report.END} after'


def test_beside_what_was_just_run_stands_what_was_published_of_the_rest_and_nothing_twice(tmp_path):
    head = {
        'bench': 'x',
        'date': 'd',
        'commit': 'c',
        'machine': {'gpu': None, 'cpu': 'a', 'cores': 2, 'threads': 2, 'load': 0},
        'versions': dict.fromkeys(('torch', 'diffusers', 'transformers'), '1'),
        'size': 'cpu',
    }

    def keep(folder, name, what):
        (tmp_path / folder).mkdir(exist_ok=True)
        row = {'row': 1, 'what': what, 'goal': '', 'value': 3.0}
        lines = f'{json.dumps(head)}\n{json.dumps(row)}'
        (tmp_path / folder / f'{name}.jsonl').write_text(lines)

    keep('rows', 'step', 'old step')
    keep('rows', 'wall_all', 'whole run')
    keep('mine', 'step', 'new step')
    text = report.published(tmp_path / 'mine', tmp_path / 'rows')
    assert 'whole run' in text
    assert 'wall_all: d' in text
    assert 'step |' not in text
    assert report.published(tmp_path / 'rows', tmp_path / 'rows') == ''
