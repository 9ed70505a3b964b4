"""One pipeline: what the command line makes, Python finds, and the other way round."""

import pandas as pd
import pytest

from balanceddpo import pipeline
from balanceddpo.cli import main
from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import runs_root
from balanceddpo.models.config import EncodeConfig, SampleConfig
from balanceddpo.paper import experiments, scales
from balanceddpo.recipes.settings import settings_of
from balanceddpo.scoring.registry import load_scorers
from balanceddpo.training.run import LabelledPairs
from balanceddpo.voting.config import LabelConfig
from balanceddpo.voting.labels import label_pairs, read_labels
from few_pairs import KINDS, PAIRS, TRAINING, made

VOTING = LabelConfig('majority')
DRAWING = dict(prompts='icons:hpd', limit=2, images_per_prompt=1, steps=2, device='cpu')


def run(*words):
    assert main([str(w) for w in words]) == 0


def from_the_command_line(folder):
    pairs = ('--pairs', 'icons', '--limit', 8, '--device', 'cpu')
    run('label', *pairs, '--scorers', 'icons', '--out', folder / 'labels.parquet')
    run('encode', *pairs, '--model', 'icons')
    (encoded,) = (runs_root() / 'encode').iterdir()
    words = [f'--{name.replace("_", "-")}={value}' for name, value in TRAINING.items()]
    labels = ('--labels', folder / 'labels.parquet', '--encoded', encoded)
    run('train', '--recipe', 'BalancedDPO', '--model', 'icons', *labels, *words)
    (model,) = (runs_root() / 'train').iterdir()
    drawing = [f'--{name.replace("_", "-")}={v}' for name, v in DRAWING.items()]
    prompts = drawing.pop(0).split('=')[1]
    models = ('base=icons', f'ours={model / "model"}')
    # a page of the icon world scores its truth too, which Python has not asked for
    scored = ('--scorers', 'icons', '--no-page', '--out', folder / 'results')
    run('evaluate', *models, '--prompts', prompts, *drawing, *scored)


def from_python():
    scorers = load_scorers([f'icons:{kind}' for kind in KINDS], device='cpu')
    labels = pipeline.label(PAIRS, scorers, VOTING)
    encoded = pipeline.encode(PAIRS, EncodeConfig(model='icons', resolution=64), device='cpu')
    settings = settings_of('BalancedDPO', 'icons', **TRAINING)
    result = pipeline.train(LabelledPairs(encoded, labels, VOTING), settings)
    ours = pipeline.Model.trained('ours', 'icons', result)
    return pipeline.evaluate('icons:hpd', scorers, SampleConfig(**DRAWING), base='icons', ours=ours)


@pytest.fixture(params=['command line first', 'Python first'])
def results(request, tmp_path):
    "Both ways, one after the other: (what the first made, what the second found)."
    ways = [lambda: from_the_command_line(tmp_path), from_python]
    first, second = ways if request.param.startswith('command') else ways[::-1]
    first()
    before = made()
    second()
    return before, made()


def test_nothing_is_made_twice(results):
    before, after = results
    assert before == {name: time for name, time in after.items() if name in before}
    new = {name.split('/')[0] for name in after.keys() - before.keys()}
    assert new == set()


def test_a_study_finds_the_scores_latents_and_models_of_the_command_line(tmp_path):
    scale = scales.scale_of('icons', n_pairs=8)
    run('label', '--pairs', 'icons', '--limit', 8, '--scorers', 'icons', '--device', 'cpu')
    run('encode', '--pairs', 'icons', '--limit', 8, '--model', 'icons')
    before = made()
    experiments.labels_of(scale, VOTING)
    experiments.encoded_pairs(scale)
    assert made() == before


def test_who_voted_beside_the_labels_is_no_part_of_a_run(tmp_path):
    scorers = load_scorers(['icons:hps'], device='cpu')
    encoded = pipeline.encode(PAIRS, EncodeConfig(model='icons', resolution=64), device='cpu')
    settings = settings_of('DiffusionDPO', 'icons', **TRAINING)
    folders = set()
    for voters in ([], scorers):
        human = LabelConfig('human', scorers=tuple(s.name for s in voters) or None)
        labels = pipeline.label(PAIRS, voters, human)
        pairs = LabelledPairs(encoded, labels, human)
        folders.add(pipeline.run_folder_of(settings, pairs))
    assert len(folders) == 1


def test_win_rates_need_two_models(tmp_path):
    config = SampleConfig(**DRAWING)
    with pytest.raises(InputError, match='two models'):
        pipeline.evaluate('icons:hpd', [], config, base='icons')


def test_a_sum_of_scores_counts_pickscore_as_a_cosine(tmp_path):
    "Vanilla (scores): the unit goes from the scorer into the labels, and into their file."
    scorers = load_scorers([f'icons:{kind}' for kind in KINDS], device='cpu')
    asked = LabelConfig('sum_scores', scorers=KINDS)
    labels = pipeline.label(PAIRS, scorers, asked, out=tmp_path / 'labels.parquet')
    _, told = read_labels(tmp_path / 'labels.parquet')
    units = dict(zip(KINDS, told.units))
    assert units.pop('pickscore') == scorers[KINDS.index('pickscore')].encoder.scale > 10
    assert {*units.values()} == {1.0}
    scores = pipeline.pair_scores(PAIRS, scorers)
    cosines = scores.assign(pickscore=scores.pickscore / told.units[KINDS.index('pickscore')])
    pd.testing.assert_series_equal(
        labels.s, label_pairs(cosines, LabelConfig('sum_logits', scorers=KINDS)).s
    )
