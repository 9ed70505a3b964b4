"Settings: their names, what they gain, and which is best."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.scores import mean_gains
from balanceddpo.evaluation.tuning import (
    best_setting,
    setting_gains,
    setting_titles,
    with_win_rates,
)
from balanceddpo.evaluation.win_rates import compare, mean_win_rates, score_table

SETTINGS = pd.DataFrame(
    [('dpo', 2000.0, 1e-5, 0), ('dpo', 500.0, 3e-5, 0), ('ours', 2000.0, 1e-5, 25)],
    columns=['method', 'beta', 'rate', 'T'],
)
TITLES = ['dpo, beta 2000, rate 1e-05', 'dpo, beta 500, rate 3e-05']
TITLES += ['ours, beta 2000, rate 1e-05, T = 25']


@pytest.fixture(scope='module')
def scores():
    rng = np.random.default_rng(0)
    shifts = {'base': 0.0} | dict(zip(TITLES, (0.1, 0.3, 0.2)))
    drawn = [
        score_table(m, {k: s + rng.normal(size=(20, 2)) for k in ('hps', 'clip', 'closeness')})
        for m, s in shifts.items()
    ]
    return pd.concat(drawn)


def test_the_interval_of_refreshes_is_named_where_there_is_one():
    assert setting_titles(SETTINGS) == TITLES
    assert setting_titles(SETTINGS.drop(columns='T'))[:2] == TITLES[:2]
    assert setting_titles(SETTINGS.drop(columns='T'))[2] == 'ours, beta 2000, rate 1e-05'


def test_the_gain_is_that_of_a_comparison_with_base(scores):
    found = setting_gains(SETTINGS, scores, ['clip', 'hps'])
    gains = mean_gains(scores, [(t, 'base') for t in TITLES], ['clip', 'hps']).gain
    assert found.index.tolist() == TITLES
    assert list(found) == ['method', 'beta', 'rate', 'T', 'clip', 'hps', 'gain']
    assert found.gain.tolist() == pytest.approx(gains.tolist())
    with pytest.raises(InputError, match='nobody'):
        setting_gains(SETTINGS, scores, ['hps'], base='nobody')


def test_win_rates_are_by_the_mean_of_a_prompts_images(scores):
    pairs, found = [(t, 'base') for t in TITLES], setting_gains(SETTINGS, scores, ['clip', 'hps'])
    beside = with_win_rates(found, scores, ['clip', 'hps'], ['closeness'])
    by_mean = mean_win_rates(scores, pairs, ['clip', 'hps'], protocol='mean').win_rate
    by_check = compare(scores, pairs, ['closeness'], protocol='mean').win_rate
    assert beside['win rate (%)'].tolist() == pytest.approx((100 * by_mean).tolist())
    assert beside['closeness (%)'].tolist() == pytest.approx((100 * by_check).tolist())
    assert list(with_win_rates(found, scores, ['clip', 'hps']))[-1] == 'win rate (%)'


def test_the_best_is_the_one_with_the_largest_gain_and_of_equals_the_first():
    found = SETTINGS.set_axis(TITLES).assign(gain=[0.1, 0.2, 0.9])
    assert best_setting(found, 'dpo').name == TITLES[1]
    assert best_setting(found, 'ours')['T'] == 25
    assert best_setting(found.assign(gain=0.2), 'dpo').name == TITLES[0]
