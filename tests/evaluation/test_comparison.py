"""What is told of several models at once: by hand, and by scipy and statsmodels' own numbers."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.comparison import compare_models
from balanceddpo.evaluation.ranking import bradley_terry, prompt_points
from balanceddpo.evaluation.win_rates import score_table

MODELS = ['base', 'ours', 'other']


def some_scores(n=12, sets=('a', 'b'), models=MODELS):
    "Random scores of models by two scorers on prompt sets, two images a prompt."
    rng = np.random.default_rng(3)
    return pd.concat(
        score_table(
            name,
            {'hps': rng.normal(k / 2, 1, (n, 2)), 'clip': rng.normal(0, 5, (n, 2))},
            prompt_set=prompt_set,
        )
        for prompt_set in sets
        for k, name in enumerate(models)
    )


def test_p_is_corrected_over_scorers_sets_and_comparisons():
    rates = compare_models(some_scores(), MODELS, ['hps', 'clip']).rates
    assert len(rates) == 3 * 2 * 2
    losses = rates.n - rates.wins - rates.ties
    p = [binomtest(int(w), int(w + x)).pvalue for w, x in zip(rates.wins, losses)]
    assert np.allclose(rates.p, p)
    # Holm in its definition: the k-th smallest times those that are left, and never falling
    order, corrected, most = np.argsort(p, kind='stable'), np.empty(12), 0.0
    for k, at in enumerate(order):
        most = max(most, min(1, (12 - k) * p[at]))
        corrected[at] = most
    assert np.allclose(rates.p_holm, corrected)
    assert (rates.p_holm < 0.1).any()


def test_gains_are_in_the_units_of_the_first_model():
    scores = some_scores()
    found = compare_models(scores, MODELS, ['hps', 'clip'])
    row = found.rates.query("model_a == 'other' and model_b == 'ours' and prompt_set == 'b'")
    here = scores[scores.prompt_set == 'b'].set_index('model')
    for k, told in zip(('hps', 'clip'), row.itertuples()):
        unit = here.loc['base', k].std()
        wanted = (here.loc['other', k].mean() - here.loc['ours', k].mean()) / unit
        assert told.scorer == k
        assert told.gain == pytest.approx(wanted, rel=1e-5)
        assert told.gain_low < told.gain < told.gain_high
    mean = found.gains.query("model_a == 'other' and model_b == 'ours' and prompt_set == 'b'")
    assert mean.scorer.tolist() == ['hps', 'clip', 'mean of 2']
    assert mean.gain.iloc[2] == pytest.approx(row.gain.mean())


def test_three_models_have_an_order_and_two_have_none():
    scores = some_scores()
    found = compare_models(scores, MODELS, ['hps', 'clip'])
    points = prompt_points(scores, MODELS, ['hps', 'clip'])
    assert len(points) == 24
    strengths = dict(zip(MODELS, bradley_terry(points.sum(0), prior=1.0)))
    assert found.ranks.model.tolist() == sorted(MODELS, key=strengths.get, reverse=True)
    assert found.ranks.set_index('model').loc['base', ['strength', 'expected']].tolist() == [0, 0.5]
    two = compare_models(scores[scores.model != 'other'], MODELS[:2], ['hps', 'clip'])
    assert two.ranks.empty
    assert 'expected' not in str(two)
    assert 'expected' in str(found)


def test_a_scorer_without_a_unit_gives_no_gain_but_a_win_rate():
    scores = some_scores()
    flat = (scores.model == 'base') & (scores.prompt_set == 'a')
    scores.loc[flat, 'clip'] = 1.0
    found = compare_models(scores, MODELS, ['hps', 'clip'])
    lacking = found.rates[found.rates.gain.isna()]
    assert set(zip(lacking.prompt_set, lacking.scorer)) == {('a', 'clip')}
    assert lacking.win_rate.notna().all()
    assert found.gains.groupby('prompt_set').scorer.unique().map(list).to_dict() == {
        'a': ['hps'],
        'b': ['hps', 'clip', 'mean of 2'],
    }


def test_images_compared_one_by_one_have_no_sign_test():
    rates = compare_models(some_scores(), MODELS, ['hps'], 'paired').rates
    assert rates[['p', 'p_holm']].isna().all(axis=None)
    assert rates.gain.notna().all()


def test_one_model_is_no_comparison():
    with pytest.raises(InputError, match='two models'):
        compare_models(some_scores(), ['base'], ['hps'])
