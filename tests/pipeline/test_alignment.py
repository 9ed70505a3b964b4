"""`align` is the stages, one after the other, for a row of the table of methods."""

from dataclasses import replace

import pytest

from balanceddpo import pipeline
from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import runs_root
from balanceddpo.data.pairs import write_pairs
from balanceddpo.data.prompts import read_prompts
from balanceddpo.data.sources import PairSource
from balanceddpo.models.config import EncodeConfig
from balanceddpo.models.weights import merged_weights
from balanceddpo.pipeline import alignment
from balanceddpo.pipeline.alignment import label_for_visits
from balanceddpo.recipes.config import AlignConfig
from balanceddpo.recipes.settings import settings_of
from balanceddpo.scoring.registry import load_scorers
from balanceddpo.training.run import LabelledPairs, is_decided
from balanceddpo.voting.config import LabelConfig
from few_pairs import KINDS, PAIRS, SHORT, made
from tiny_models import tiny_folder


def test_align_finds_what_the_stages_made_and_trains_the_same_model():
    model = pipeline.align('BalancedDPO', 'icons', PAIRS, **SHORT)
    before = made()
    scorers = load_scorers([f'icons:{kind}' for kind in KINDS], device='cpu')
    voting = LabelConfig('majority', scorers=KINDS)
    labels = pipeline.label(PAIRS, scorers, voting)
    decided = {*labels.pair_id[is_decided(labels)]}
    config = EncodeConfig(model='icons', resolution=64)
    encoded = pipeline.encode(PAIRS, config, device='cpu', only=decided)
    settings = settings_of('BalancedDPO', 'icons', **SHORT)
    result = pipeline.train(LabelledPairs(encoded, labels, voting), settings)
    assert str(result) == model.folder
    assert made() == before


def test_the_decided_pairs_alone_train_the_same_weights_as_all_pairs():
    "But for rounding: pairs are encoded in other batches."
    few = pipeline.align('BalancedDPO', 'icons', PAIRS, **SHORT)
    config = AlignConfig(all_pairs=True)
    many = pipeline.align('BalancedDPO', 'icons', PAIRS, config=config, **SHORT)
    assert few.folder != many.folder
    few, many, base = (merged_weights(f) for f in (few.folder, many.folder, 'icons'))
    apart = sum((w - many[n]).norm() ** 2 for n, w in few.items())
    moved = sum((w - base[n]).norm() ** 2 for n, w in few.items())
    assert apart < 1e-3 * moved


@pytest.mark.parametrize('visits', [30, 200])
def test_as_many_pairs_are_labelled_as_the_visits_need(visits):
    pairs, human = PairSource('icons'), LabelConfig('human')
    source, labels = label_for_visits(pairs, [], human, visits)
    assert is_decided(labels).sum() >= visits
    assert len(labels) < 1.6 * visits + 20  # of 2,000: a tenth of all
    assert {p.pair_id for p in source.read()} == {*labels.pair_id}
    # a second look finds the shares that were scored
    before = made()
    again = label_for_visits(pairs, [], human, visits)[1]
    assert again.equals(labels)
    assert made() == before


def test_few_pairs_are_all_labelled_and_so_are_those_with_a_limit():
    for pairs, visits in ((PAIRS, 10**6), (PAIRS, 2)):
        source, labels = label_for_visits(pairs, [], LabelConfig('human'), visits)
        assert source == pairs
        assert len(labels) == 8


def test_a_method_of_groups_draws_them_and_writes_its_run_where_it_is_told(tmp_path):
    config = AlignConfig(images_per_prompt=3, steps=2)
    prompts = read_prompts('icons:pickapic', limit=4)
    model = pipeline.align(
        'SOUP', 'icons', prompts=prompts, config=config, out=tmp_path / 'soup', **SHORT
    )
    assert model.folder == str(tmp_path / 'soup' / 'model')
    assert len([*(tmp_path / 'soup').glob('part-*/model')]) == 4


def test_a_method_of_groups_learns_from_images_that_are_there():
    "A group of two has the votes of a pair: Borda's first and last are the majority's."
    model = pipeline.align('Borda', 'icons', PAIRS, **SHORT)
    voted = pipeline.align('BalancedDPO', 'icons', PAIRS, **SHORT)
    ours, theirs, base = (merged_weights(f) for f in (model.folder, voted.folder, 'icons'))
    apart = sum((w - theirs[n]).norm() ** 2 for n, w in ours.items())
    moved = sum((w - base[n]).norm() ** 2 for n, w in ours.items())
    assert moved > 0
    assert apart < 1e-3 * moved


@pytest.mark.parametrize(
    'recipe, given, words',
    [
        ('BalancedDPO', dict(pairs=PAIRS, refresh_every=0), "the reference 'replaced'"),
        ('CaPO', {}, 'name the prompts to draw for, or pairs whose images are the groups'),
        ('BalancedDPO', dict(prompts='icons:hpd'), 'learns from preference pairs: name them'),
        ('SmPO-Diffusion', dict(pairs=PAIRS, scorers=['icons:hps']), "called 'pickscore'"),
    ],
)
def test_what_a_recipe_cannot_do_is_refused_before_anything_is_made(recipe, given, words):
    with pytest.raises(InputError, match=words):
        pipeline.align(recipe, 'icons', **given, **SHORT)
    assert not (runs_root() / 'train').exists()


def test_labels_of_another_kind_are_refused():
    human = LabelConfig('human')
    encoded = pipeline.encode(PAIRS, EncodeConfig(model='icons'), device='cpu')
    pairs = LabelledPairs(encoded, pipeline.label(PAIRS, [], human), human)
    with pytest.raises(InputError, match="the labels 'majority', not 'human'"):
        pipeline.align('BalancedDPO', 'icons', pairs, **SHORT)


def rated_pairs(folder, n=60):
    """A file in which every pair stands four times: the first ratings are ties. In small bands a
    pair has a rating in several of them."""
    pairs = list(PairSource('icons', limit=n // 4).read())
    rows = [replace(p, label_0=0.5 if k < 2 else 1.0) for k in range(4) for p in pairs]
    return str(write_pairs(rows, folder / 'pairs.parquet'))


def test_a_pair_that_was_rated_twice_has_one_label(tmp_path):
    source = PairSource(rated_pairs(tmp_path))
    share, labels = label_for_visits(source, [], LabelConfig('human'), 20)
    assert labels.pair_id.is_unique
    assert {*labels.pair_id} <= {p.pair_id for p in share.read()}


def test_a_source_that_begins_beyond_a_share_stays_there():
    pairs = PairSource('icons', share=0.9, beyond=0.4)
    source, labels = label_for_visits(pairs, [], LabelConfig('human'), 30)
    assert source.beyond == 0.4
    assert source.share < 0.6
    left_out = {p.pair_id for p in PairSource('icons', share=0.4).read()}
    assert not left_out & {*labels.pair_id}


def test_rows_that_cannot_be_read_are_told(tmp_path):
    pairs = list(PairSource('icons', limit=120).read())
    pairs[3] = replace(pairs[3], images=(b'no picture', pairs[3].images[1]))
    source = str(write_pairs(pairs, tmp_path / 'pairs.parquet'))
    config = AlignConfig(all_pairs=True)
    with pytest.warns(UserWarning, match='pairs.parquet: 120 rows, 119 pairs kept'):
        pipeline.align('DiffusionDPO', 'icons', source, config=config, **SHORT)


@pytest.mark.parametrize(
    'recipe, words',
    [('CaPO', 'CaPO makes its own pairs'), ('BalancedDPO', 'BalancedDPO draws no images')],
)
def test_pairs_and_prompts_are_not_both_taken(recipe, words):
    with pytest.raises(InputError, match=words):
        pipeline.align(recipe, 'icons', PAIRS, prompts='icons:hpd', **SHORT)


@pytest.mark.parametrize(
    'kind, values, seen',
    [
        ('sd15', 'sd15', {'mirrored'}),
        ('sd15', 'sd15_lora', {'mirrored'}),
        ('sdxl', 'sdxl', {'mirrored', 'empty_text'}),
        ('sdxl', 'sdxl_lora', {'mirrored', 'sizes'}),
        ('icons', 'icons', set()),
    ],
)
def test_align_encodes_what_the_rows_settings_ask_for(tmp_path, monkeypatch, kind, values, seen):
    asked, real = [], alignment.encode

    def spy(source, config, **options):
        asked.append(config)
        return real(source, config, **options)

    monkeypatch.setattr(alignment, 'encode', spy)
    model = kind if kind == 'icons' else str(tiny_folder(tmp_path / kind, kind))
    small = dict(resolution=64, precision='fp32', tracker='none', warmup_steps=0)
    config = AlignConfig(all_pairs=True)
    changes = SHORT | small
    pipeline.align('DiffusionDPO', model, PAIRS, config=config, values=values, **changes)
    (used,) = asked
    assert {n for n in ('mirrored', 'sizes', 'empty_text') if getattr(used, n)} == seen
