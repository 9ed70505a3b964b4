"""The study of claims: an independent calculation of a difference, what must not change it, and
true pictures, which no measure of truth can be above."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import Bootstrap
from balanceddpo.evaluation.significance import holm
from balanceddpo.paper import experiments, scales
from balanceddpo.paper.study_of_claims import (
    CLAIMS,
    GAIN,
    TRUE_PICTURE,
    TRUTHS,
    apart,
    beyond_truth,
    claim_grid,
    differences,
    hacked_grid,
    prompt_values,
    tell_claims,
)
from balanceddpo.recipes.table import RECIPES

VOTERS, CHECKS = ['hps', 'clip'], ['closeness']
FEW = Bootstrap(resamples=500)


def made(seed=0):
    "Scores of base, two arms of three seeds and the true picture: 2 sets of 5 prompts, 2 images."
    draw = np.random.default_rng(seed)
    rows = []
    for model, seeds in (('base', [0]), ('a', [1, 2, 3]), ('b', [1, 2, 3]), (TRUE_PICTURE, [0])):
        for training_seed in seeds:
            for k in range(20):
                rows.append((model, training_seed, f's{k // 10}', f'p{k // 2 % 5}', k % 2))
    columns = ['model', 'training_seed', 'prompt_set', 'prompt_id', 'image_index']
    table = pd.DataFrame(rows, columns=columns)
    for name in VOTERS + CHECKS:
        table[name] = draw.standard_normal(len(table)) + (table.model == 'a') * 0.5
    return table


def by_loops(table, a, b, measure):
    "The mean difference in s.d. of base, prompt by prompt and seed by seed."
    found = []
    for s in sorted(table.prompt_set.unique()):
        part = table[table.prompt_set == s]
        sd = part[part.model == 'base'][measure].std()
        for p in part.prompt_id.unique():
            of = part[part.prompt_id == p]
            for seed in (1, 2, 3):
                ours = of[(of.model == a) & (of.training_seed == seed)][measure].mean()
                other = of[(of.model == b) & (of.training_seed == (0 if b == 'base' else seed))]
                found.append((ours - other[measure].mean()) / sd)
    return np.mean(found)


def test_differences_are_those_of_a_plain_loop():
    table = made()
    pairs = {'over b': ('a', 'b'), 'over base': ('a', 'base')}
    found = differences(prompt_values(table, VOTERS, CHECKS), pairs, [GAIN, 'clip'], FEW)
    assert found.prompts.tolist() == [10] * 4
    for row in found.itertuples():
        names = VOTERS if row.measure == GAIN else [row.measure]
        expected = np.mean([by_loops(table, row.model_a, row.model_b, n) for n in names])
        assert row.difference == pytest.approx(expected)
    for _, rows in found.groupby('measure'):
        assert rows.p_holm.tolist() == holm(rows.p).tolist()


def test_units_shifts_and_the_order_of_rows_change_nothing():
    table = made()
    other = table.assign(hps=100 * table.hps - 7).sample(frac=1, random_state=1)
    one, two = (
        differences(prompt_values(t, VOTERS, CHECKS), {'x': ('a', 'b')}, [GAIN], FEW)
        for t in (table, other)
    )
    assert two.difference[0] == pytest.approx(one.difference[0])


def test_a_prompt_that_one_seed_lacks_is_refused():
    table = made()
    lacks = table[~((table.model == 'a') & (table.training_seed == 2) & (table.prompt_id == 'p1'))]
    values = prompt_values(lacks, VOTERS, CHECKS)
    with pytest.raises(InputError, match='all models need all prompts'):
        differences(values, {'x': ('a', 'b')}, [GAIN], FEW)
    with pytest.raises(InputError, match="no scores of 'c'"):
        apart(values, 'c', 'base', GAIN)


def test_a_gain_above_the_true_pictures_is_called_hacking():
    table = made()
    table.loc[table.model == TRUE_PICTURE, 'clip'] = -5.0
    table.loc[table.model == TRUE_PICTURE, 'hps'] = 50.0
    values = prompt_values(table, VOTERS, CHECKS)
    gains = beyond_truth(values, ['a', 'b'], [GAIN, *VOTERS])
    _, kinds = hacked_grid(gains)
    assert kinds.loc['a', 'clip'] == 'hacked'
    assert kinds.loc['a', 'hps'] != 'hacked'
    assert kinds.loc[TRUE_PICTURE].tolist() != ['hacked'] * 3
    found = differences(values, {'x': ('a', 'b')}, [GAIN, 'closeness'], FEW)
    said = tell_claims(found, gains, VOTERS)
    assert 'Above the true picture: a by CLIP, b by CLIP.' in said
    assert f'x: {found.difference[0]:+.2f}' in said


def test_the_grid_tells_what_holds_from_what_holds_alone():
    table = pd.DataFrame(
        {
            'claim': ['x', 'y', 'z'],
            'measure': GAIN,
            'difference': [0.2, -0.001, 0.1],
            'p': [0.01, 0.9, 0.04],
            'p_holm': [0.03, 0.9, 0.08],
        }
    )
    values, kinds = claim_grid(table)
    assert kinds[GAIN].tolist() == ['holds', 'no', 'alone']
    assert str(values[GAIN].tolist()) == '[0.2, 0.0, 0.1]'  # nothing has no sign


def test_each_claim_compares_two_rows_that_differ_in_one_thing():
    for ours, other in CLAIMS.values():
        a, b = RECIPES[ours], RECIPES[other]
        same = [getattr(a, f) == getattr(b, f) for f in ('loss', 'noise', 'reference', 'groups')]
        labels = a.labels == b.labels
        if other != 'DiffusionDPO':  # it has settings of its own, and no refresh
            assert same.count(False) + (not labels) == 1


def test_no_measure_of_truth_is_above_the_true_picture():
    few = scales.few_prompts(scales.scale_of('smoke'), 3, 1, 1)
    world = replace(few, checks=('recognised', *TRUTHS))
    found = experiments.score_true_pictures(world)
    assert found.model.unique().tolist() == [TRUE_PICTURE]
    assert len(found) == 3
    assert found.closeness.tolist() == [0] * 3
    assert found.structure.tolist() == pytest.approx([1] * 3)
    assert found.edges.tolist() == pytest.approx([1] * 3)
    assert found.recognised.tolist() == [1] * 3
    with pytest.raises(InputError, match='has no true pictures'):
        experiments.score_true_pictures(replace(world, checks=()))
