"Variants over the base model: their labels, their table, and the sentences of two findings."

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.win_rates import compare, mean_win_rates
from balanceddpo.paper import variants
from balanceddpo.voting.config import LabelConfig
from figure_checks import SCORERS, made_up_scores

METHODS = {
    'majority': LabelConfig('majority'),
    'HPS alone': LabelConfig('single', scorer='hps'),
}


@pytest.fixture(scope='module')
def scores():
    "Scores of 500 pairs by four scorers, each with noise of its own on one quality."
    draw, n = np.random.default_rng(1), 500
    drawn = draw.normal(size=(n, 2, 1)) + draw.normal(size=(n, 2, 4))
    rows = pd.DataFrame({'pair_id': np.repeat([f'p{i}' for i in range(n)], 2)})
    rows['slot'] = np.tile([0, 1], n)
    rows['label_0'] = 1.0
    return rows.join(pd.DataFrame(drawn.reshape(-1, 4), columns=SCORERS))


def test_the_last_column_is_the_mean_of_the_scorers_that_vote():
    scores = made_up_scores(sets=('pickapic',))
    over_base = [(m, 'base') for m in scores.model.unique() if m != 'base']
    rates = compare(scores, over_base, SCORERS, protocol='mean')
    means = mean_win_rates(scores, over_base, SCORERS[:2], protocol='mean')
    table, low, high = variants.tables_with_mean(rates, means)
    assert table.columns[-1] == 'mean of the scorers'
    assert np.allclose(table['mean of the scorers'], table.iloc[:, :2].mean(axis=1))
    percent = variants.in_percent(means)
    assert np.allclose(low['mean of the scorers'], percent.low)
    assert np.allclose(high['mean of the scorers'], 100 * means.high)
    first = rates[rates.scorer == SCORERS[0]]
    assert np.allclose(low.iloc[:, 0], 100 * first.boot_low)
    assert np.allclose(high.iloc[:, 0], 100 * first.boot_high)
    assert percent.n.tolist() == means.n.tolist()


def test_each_scorer_has_its_votes_turned_in_pairs_of_its_own(scores):
    noisy = variants.turn_votes(scores, SCORERS, rate=0.3)
    turned = (noisy[list(SCORERS)] != scores[list(SCORERS)])[::2]
    assert (abs(turned.mean() - 0.3) < 0.07).all()
    both = (turned['hps'] & turned['clip']).mean()
    assert abs(both - 0.09) < 0.04  # independent of each other
    assert turned.drop_duplicates().shape[0] > 8


def test_wrong_labels_grow_with_the_votes_turned_and_a_majority_has_fewer(scores):
    found = variants.turned_votes(scores, METHODS, SCORERS, [0.0, 0.2, 0.5])
    wide = found.pivot(index='rate', columns='labels', values='wrong')
    assert wide.index.tolist() == [0, 20, 50]
    assert wide.loc[0].tolist() == [0, 0]
    assert abs(wide.loc[20, 'HPS alone'] - 0.2) < 0.06
    assert wide.loc[20, 'majority'] < wide.loc[20, 'HPS alone']
    assert (abs(wide.loc[50] - 0.5) < 0.08).all()


@pytest.fixture(scope='module')
def cases(scores):
    clean = variants.clean_labels(scores, METHODS)
    flips = variants.flipped_labels(clean, [0.2, 0.4])
    return clean, clean | flips | variants.labels_with_replaced(scores, METHODS, 'hps')


def test_every_case_has_every_method_and_a_name(cases):
    _, every = cases
    names = ['clean', '20 % flipped', '40 % flipped', 'HPS a coin', 'HPS negated']
    assert list(dict.fromkeys(case for _, case in every)) == names
    assert set(every) == {(method, case) for method in METHODS for case in names}


def test_one_scorer_of_four_loses_pairs_of_a_majority_and_turns_none(cases):
    clean, every = cases
    changes = variants.changes_of_cases(every, clean).set_index(['labels', 'case'])
    assert changes.kept['majority', 'clean'] == 1
    assert changes.turned['majority', 'HPS negated'] == 0
    assert changes.lost['majority', 'HPS negated'] > 0.1
    assert changes.turned['HPS alone', 'HPS negated'] == 1
    assert abs(changes.turned['HPS alone', 'HPS a coin'] - 0.5) < 0.08
    shares = changes.turned[:, '40 % flipped']
    assert (abs(shares - 0.4) < 0.08).all()


def test_a_scorer_that_is_not_there_is_refused(scores):
    with pytest.raises(InputError, match='imagereward'):
        variants.labels_with_replaced(scores, METHODS, 'imagereward')


def test_flips_are_told_by_their_share_and_other_cases_left_out(cases):
    clean, every = cases
    rows = variants.rows_of_flips(variants.changes_of_cases(every, clean), ['HPS alone'])
    assert rows.flipped.tolist() == ['0', '20', '40']
    assert rows.labels.unique().tolist() == ['HPS alone']


def test_noise_is_told_case_by_case():
    keys = [
        ('majority', 'clean'),
        ('HPS alone', 'clean'),
        ('majority', '50 % flipped'),
        ('HPS alone', '50 % flipped'),
    ]
    rows = pd.DataFrame(keys, columns=['labels', 'case'])
    rates = rows.assign(win_rate=[72.1, 78.4, 46.4, 70.4], low=[63.6, 71, 39, 62], high=80.0)
    gains = rows.assign(gain=[0.26, 0.219, -0.045, 0.0])
    told = {'clean': ['HPS alone', 'majority'], '50 % flipped': ['majority']}
    assert variants.tell_noise(rates, gains, told) == (
        'Win rate over base by the mean of the scorers, and gain in s.d.: '
        'clean HPS alone 78 % [71, 80] +0.22, majority 72 % [64, 80] +0.26; '
        '50 % flipped majority 46 % [39, 80] -0.04.'
    )


def test_a_refresh_is_told_by_weights_with_the_rank_correlation_of_all_references():
    rows = [
        ('all weights', 'never', 5.94, 68.0),
        ('all weights', 'every 10', 7.01, 49.0),
        ('all weights', 'soft', 6.17, 78.0),
        ('all weights', 'EMA', 6.07, 68.5),
        ('LoRA', 'never', 1.0, 50.0),
        ('weaker pull', 'never', 6.0, 57.0),
        ('weaker pull', 'every 10', 8.0, 36.0),
        ('weaker pull', 'soft', 7.0, 53.0),
        ('weaker pull', 'EMA', 6.7, 55.0),
    ]
    found = pd.DataFrame(rows, columns=['weights', 'reference', 'distance', 'win_rate'])
    found = found.assign(low=found.win_rate - 10, high=found.win_rate + 10)
    of_all = spearmanr(found.distance[:4], found.win_rate[:4]).statistic
    assert variants.tell_refresh(
        found, ['all weights', 'weaker pull'], ['never', 'every 10'], off=1.9e-9
    ) == (
        'Win rate over base, and distance in thousandths of the norm, '
        'by steps between two refreshes; '
        'all weights: never 68 % [58, 78] at distance 5.9, '
        'every 10 49 % [39, 59] at distance 7.0; '
        'weaker pull: never 57 % [47, 67] at distance 6.0, '
        'every 10 36 % [26, 46] at distance 8.0; '
        'rank correlation of distance and win rate over 4 settings '
        f'{of_all:.2f} (all weights) and -1.00 (weaker pull); '
        'the loss right after a hard refresh is ln 2 within 2e-09.'
    )
