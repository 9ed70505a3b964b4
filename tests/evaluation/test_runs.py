"Runs become numbers: gains and win rates counted in plain Python, and Student's tests by scipy."

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t, ttest_ind

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation import runs
from balanceddpo.evaluation.win_rates import score_table

PAIRS = [('ours', 'base'), ('other', 'base')]
SCORERS = ('hps', 'clip')
rng = np.random.default_rng(0)


def drawn(prompt_set, n=12):
    "Scores of three models on a prompt set, two images a prompt; coarse, so that some tie."
    tables = [
        score_table(
            name,
            {k: rng.integers(0, 4, (n, 2)) + shift for k in SCORERS},
            prompt_set=prompt_set,
        )
        for name, shift in (('base', 0), ('ours', 1), ('other', 0))
    ]
    return pd.concat(tables)


@pytest.fixture(scope='module')
def scores():
    return pd.concat([drawn('hpd'), drawn('pickapic')], ignore_index=True)


def of(scores, model, prompt_set, scorer):
    "The scores of a model, prompts in rows."
    rows = scores[(scores.model == model) & (scores.prompt_set == prompt_set)]
    return rows.pivot(index='prompt_id', columns='image_index', values=scorer).to_numpy('float64')


def test_a_gain_is_in_deviations_of_base_and_a_mean_over_the_prompt_sets(scores):
    found = runs.gains_by_scorer(scores, PAIRS, SCORERS)
    for row in found.itertuples():
        by_set = []
        for name in ('hpd', 'pickapic'):
            ours, base = (of(scores, m, name, row.scorer) for m in (row.model_a, 'base'))
            by_set.append((ours.mean() - base.mean()) / base.std(ddof=1))
        assert row.difference == pytest.approx(np.mean(by_set))
    assert len(found) == len(PAIRS) * len(SCORERS)


def test_a_win_rate_counts_means_of_images_and_halves_of_ties(scores):
    found = runs.win_rates_by_scorer(scores, PAIRS, SCORERS)
    for row in found.itertuples():
        by_set = []
        for name in ('hpd', 'pickapic'):
            ours, base = (of(scores, m, name, row.scorer).mean(1) for m in (row.model_a, 'base'))
            by_set.append(100 * np.mean((ours > base) + (ours == base) / 2))
        assert row.win_rate == pytest.approx(np.mean(by_set))


def test_a_gain_needs_the_base_model(scores):
    with pytest.raises(InputError, match="no scores of 'base'"):
        runs.gains_by_scorer(scores[scores.model != 'base'], [('ours', 'other')], SCORERS)


def test_every_run_has_what_tells_it_from_others():
    tables = {('pairs', 2): pd.DataFrame({'x': [1]}), ('compute', 1): pd.DataFrame({'x': [2, 3]})}
    found = runs.of_each_run(tables, ['budget', 'seed'], lambda table: table * 10)
    assert found.to_dict('list') == {
        'x': [10, 20, 30],
        'budget': ['pairs', 'compute', 'compute'],
        'seed': [2, 1, 1],
    }


def test_the_mean_and_the_worst_are_those_of_the_run():
    gains = pd.DataFrame({'model_a': list('bbaa'), 'seed': 1, 'difference': [0.4, -0.2, 0.1, 0.3]})
    found = runs.mean_and_worst(gains, ['model_a', 'seed'])
    assert found.model_a.tolist() == ['b', 'a']
    assert found['mean'].tolist() == pytest.approx([0.1, 0.2])
    assert found['worst'].tolist() == [-0.2, 0.1]


def trained(**means):
    "Three runs of each model."
    rows = [(name, seed, x) for name, xs in means.items() for seed, x in enumerate(xs)]
    return pd.DataFrame(rows, columns=['model_a', 'seed', 'mean'])


def test_all_rows_share_one_spread():
    table = trained(a=[1, 2, 3], b=[4, 4, 4], c=[0, 4, 8])
    found = runs.pooled_over_seeds(table, ['model_a'], 'mean')
    sd = np.sqrt((2 * 1 + 2 * 0 + 2 * 16) / 6)
    half = t.ppf(0.975, 6) * sd / np.sqrt(3)
    assert (found.high - found['mean']).tolist() == pytest.approx([half] * 3)
    assert found.columns.tolist()[:2] == ['model_a', 'n']


def test_a_pooled_difference_of_two_models_is_students_test():
    x, y = rng.normal(size=(2, 3))
    row = runs.pooled_differences(trained(a=x, b=y), 'mean', against='b').iloc[0]
    theirs = ttest_ind(x, y)
    assert row.p == row.p_holm == pytest.approx(theirs.pvalue)
    assert row.low == pytest.approx(theirs.confidence_interval(0.95).low)


def test_differences_are_corrected_for_the_number_of_models():
    table = trained(base=[0, 0.1, -0.1], far=[5, 5.1, 4.9], near=[0, 0.1, 0.05], low=[-5, -5.2, -5])
    found = runs.pooled_differences(table, 'mean', against='base').set_index('model_a')
    assert 'base' not in found.index
    ranked = found.sort_values('p')
    assert ranked.p_holm.iloc[0] == pytest.approx(3 * ranked.p.iloc[0])
    assert runs.beyond_seeds(found.reset_index()) == (['far'], ['low'])
    assert runs.beyond_seeds(found.reset_index(), level=0) == ([], [])


def test_models_may_stand_in_another_column():
    table = trained(a=[1, 2, 3], b=[7, 8, 9]).rename(columns={'model_a': 'run'})
    found = runs.pooled_differences(table, 'mean', against='a', model='run')
    assert runs.beyond_seeds(found, model='run') == (['b'], [])
