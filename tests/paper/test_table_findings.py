"The sentences of Tables III to VI, of the seeds and of the search, to the letter."

import pandas as pd
import pytest

from balanceddpo.paper import table_findings as findings

EFFECTS = [
    'refresh, several metrics',
    'refresh, HPS alone',
    'several metrics, refresh',
    'several metrics, no refresh',
]


def rates(names, column, values):
    "Win rates (or gains) with intervals of a tenth on either side."
    table = pd.DataFrame({column: names, 'win_rate': values, 'gain': values})
    return table.assign(low=table.gain - 0.1, high=table.gain + 0.1)


def test_own_scorers_are_told_as_means_and_models_ahead_by_name():
    spots = pd.DataFrame({'kind': ['labels of one scorer'] * 2 + ['other labels']})
    spots = spots.assign(own_win_rate=[90.0, 81.0, 10.0], win_rate=[40.0, 45.0, 99.0])
    over = rates(['BalancedDPO', 'HPS', 'CLIP', 'sum'], 'labels', [0.55, 0.5, 0.6, 0.3])
    met = rates(['HPS', 'CLIP', 'sum'], 'labels', [0.35, 0.38, 0.61])
    means = pd.concat([over.assign(against='over base'), met.assign(against='BalancedDPO over it')])
    gains = rates(['HPS', 'CLIP', 'sum'], 'labels', [0.2, 0.05, 0.3])
    gains = gains.assign(against='BalancedDPO over it')
    others = gains.assign(against='over base', low=9)  # do not count
    assert findings.tell_own_and_others(spots, means, pd.concat([others, gains])) == (
        'Labels of one scorer win 86 % over base by that scorer and 42 % by the other three '
        '(mean of 2 models); by the mean of all scorers BalancedDPO wins 55 % [45, 65], the best '
        'of the others (CLIP) 60 % [50, 70]; head to head BalancedDPO is ahead of 1 of 3 beyond '
        'the interval and behind HPS, CLIP; by gain it is ahead of 2 and behind none.'
    )


def test_parts_are_told_by_their_names_and_not_by_their_order():
    means = rates(EFFECTS[::-1], 'effect', [0.8, 0.7, 0.6, 0.5])
    told = findings.tell_parts(means, rates(EFFECTS, 'effect', [0.1, 0.2, 0.3, -0.4]))
    assert told == (
        'By the mean of the scorers, the model with a reference refresh wins 50 % [40, 60] over '
        'the one without it (HPS labels alone: 60 % [50, 70]); the one with several metrics wins '
        '70 % [60, 80] over the one with HPS alone (without refresh: 80 % [70, 90]). The same '
        'four as gains in s.d.: -0.40 [-0.50, -0.30], +0.30 [0.20, 0.40], +0.20 [0.10, 0.30], '
        '+0.10 [0.00, 0.20].'
    )


def test_differences_are_counted_on_all_sets_and_told_on_the_first():
    rows = [
        ('hpd', 'DiffusionDPO', 'base', 0.1, -0.1, 0.3),
        ('hpd', 'BalancedDPO', 'base', 0.2, 0.1, 0.3),
        ('hpd', 'BalancedDPO', 'DiffusionDPO', -0.2, -0.3, -0.1),
        ('pickapic', 'BalancedDPO', 'base', 0.5, 0.4, 0.6),
    ]
    columns = ['prompt_set', 'model_a', 'model_b', 'difference', 'low', 'high']
    found = pd.DataFrame(rows, columns=columns).assign(scorer='clip')
    assert findings.tell_mean_scores(found) == (
        'Mean scores: DiffusionDPO minus base: 0 of 1 above zero beyond the interval, 0 below; '
        'BalancedDPO minus base: 2 of 2 above zero beyond the interval, 0 below; '
        'BalancedDPO minus DiffusionDPO: 0 of 1 above zero beyond the interval, 1 below; '
        'BalancedDPO minus base on HPD, in s.d. of the base model: CLIP +0.2 [+0.1, +0.3].'
    )


def test_shares_are_told_for_the_first_set():
    columns = ['prompt_set', 'scorer', 'share', 'low', 'high']
    rows = [('pickapic', 'hps', 0.384, 0.2, 0.5), ('pickapic', 'clip', 0.5, 0.4, 0.6)]
    shares = pd.DataFrame([*rows, ('hpd', 'hps', 0.9, 0.9, 0.9)], columns=columns)
    assert findings.tell_variance_shares(shares) == (
        'Base model on Pick-a-Pic: the share of the variance of its scores that lies between '
        'images of one prompt is HPS 0.38 [0.20, 0.50], CLIP 0.50 [0.40, 0.60].'
    )


@pytest.fixture
def apart():
    "Three differences over four seeds, of which two survive the pooled test."
    p = {'p': 0.5, 'p_holm': 0.5, 'p_pooled': 0.001, 'p_holm_pooled': [0.003, 0.004, 0.2]}
    return pd.DataFrame(p).assign(n=4)


def ranking(*models):
    "A ranking of models, the strongest first."
    n = len(models)
    table = pd.DataFrame({'model': models, 'rank': range(1, n + 1)})
    ends = dict(expected_low=0.4, expected_high=0.8)
    return table.assign(rank_low=1, rank_high=n, expected=0.6123, **ends)


def test_the_first_is_named_where_it_is_another(apart):
    gains = rates(['HPS', 'DiffusionDPO', 'BalancedDPO', 'CLIP'], 'model_a', [0.1, 0.2, 0.3, 0.4])
    told = findings.tell_survivors(apart, ranking('HPS', 'BalancedDPO', 'base'), gains)
    assert told == (
        'Over 4 training seeds, 2 of 3 differences from DiffusionDPO survive (pooled t-test, '
        'Holm); on these prompts BalancedDPO ranks 2 of 3 [1, 3] and HPS first, with an expected '
        'win rate against base of 61.2 % [40.0, 80.0, over prompts alone]. Gain over base in '
        's.d., over seeds: CLIP 0.40 [0.30, 0.50], BalancedDPO 0.30 [0.20, 0.40], '
        'DiffusionDPO 0.20 [0.10, 0.30].'
    )
    told = findings.tell_survivors(apart, ranking('BalancedDPO', 'base'), gains)
    assert 'on these prompts BalancedDPO ranks 1 of 2 [1, 2], with an expected' in told


def test_without_our_model_the_first_is_told(apart):
    gains = rates(['HPS', 'DiffusionDPO'], 'model_a', [0.1, 0.2])
    told = findings.tell_survivors(apart, ranking('HPS', 'base'), gains)
    assert 'on these prompts HPS ranks 1 of 2 [1, 2], with an expected' in told
    assert told.endswith('over seeds: DiffusionDPO 0.20 [0.10, 0.30].')


def test_the_best_setting_of_each_method_is_told_with_its_worst_scorer():
    found = pd.DataFrame(
        {'method': ['dpo', 'dpo', 'ours'], 'gain': [0.2, 0.1, 0.3], 'hps': [0.25, 0.9, 0.1]},
        index=['dpo, beta 500', 'dpo, beta 2000', 'ours, beta 500'],
    ).assign(clip=[0.15, 0.9, 0.5], recognised=-1)
    assert findings.tell_best_settings(found, ('hps', 'clip')) == (
        'Best of 3 settings on the tuning prompts, mean of the four scorers: '
        'dpo, beta 500: 0.20 s.d. over base, worst of the four 0.15; '
        'ours, beta 500: 0.30 s.d. over base, worst of the four 0.10.'
    )
