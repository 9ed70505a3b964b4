"The sentences of findings, from tables of which every number is known."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.paper import figure_numbers, findings

PAIR = ('BalancedDPO', 'base')


def cells(opponent, low, high, wins):
    "Win rates of `ours` over 50 prompts, by the ends of their intervals."
    names = {'model_a': 'ours', 'model_b': opponent, 'protocol': 'best', 'n': 50, 'ties': 0}
    return pd.DataFrame({'low': low, 'high': high, 'wins': wins}).assign(**names)


def test_cells_are_counted_on_either_side_and_corrected_over_the_whole_table():
    rates = pd.concat(
        [
            cells('base', [0.9, 0.51, 0.3], [1, 0.7, 0.45], wins=[50, 30, 20]),
            cells('dpo', [0.2], [0.8], wins=[25]),
        ]
    )
    gains = pd.DataFrame(
        {'model_a': 'ours', 'model_b': ['base', 'base', 'dpo'], 'gain': [0.204, -0.05, 0.0]}
    )
    # of four sign tests only 50 of 50 stands: 30 of 50 alone has p = .2
    assert findings.tell_win_rates(rates, gains) == (
        'ours beats base beyond the interval in 2 of 3 cells and loses in 1 '
        "(1 of these stand after Holm's correction); "
        'ours beats dpo beyond the interval in 0 of 1 cells and loses in 0 '
        "(0 of these stand after Holm's correction); "
        'gain in s.d., by prompt set: ours over base 0.20, -0.05; ours over dpo 0.00.'
    )


def differences(**columns):
    "A difference of BalancedDPO from base by HPS on HPD, and what else is given."
    row = {'model_a': 'BalancedDPO', 'model_b': 'base', 'prompt_set': 'hpd', 'scorer': 'hps'}
    row |= {'n': 40, 'mean_a': 0.5, 'mean_b': 0.25, 'difference': 0.25, 'low': 0.2, 'high': 0.3}
    return pd.DataFrame([row | columns])


def test_side_by_side_is_told_in_deviations_of_the_base_model_by_scorers_alone():
    found = pd.concat(
        [
            differences(),
            differences(scorer='recognised'),
            differences(model_b='DiffusionDPO'),
        ]
    )
    scores = pd.DataFrame({'model': 'base', 'prompt_set': 'hpd', 'hps': [0.0, 0.5, 1.0]})
    assert findings.tell_side_by_side(found, scores, ('hps',)) == (
        'BalancedDPO minus base over 40 prompts of HPD, in s.d. of the base model: '
        'HPS +0.5 [+0.4, +0.6].'
    )


def test_samples_are_told_with_the_means_and_the_differences():
    found = pd.concat([differences(), differences(scorer='clip', mean_a=0.12345, low=-0.1)])
    assert findings.tell_samples(found) == (
        'BalancedDPO over 40 prompts of HPD: HPS 0.5, CLIP 0.123; '
        'minus base: HPS +0.25 [+0.2, +0.3], CLIP +0.25 [-0.1, +0.3].'
    )


def test_adherence_is_counted_only_where_somebody_names_what_is_there():
    counts = pd.Series([68, 40, 1200, 192])
    told = findings.tell_adherence(differences(), counts)
    assert told == (
        'Over 40 prompts, a held-out recogniser names 50.0 % of the images of BalancedDPO right '
        'and 25.0 % of those of base, at the same seed BalancedDPO is right and base not in 68 '
        'images, base right and BalancedDPO not in 40; difference HPS +0.25 [+0.2, +0.3].'
    )
    assert findings.tell_adherence(differences(), None) == (
        'Over 40 prompts, difference HPS +0.25 [+0.2, +0.3].'
    )


def test_a_spread_is_counted_on_all_sets_and_told_for_the_first():
    found = pd.concat(
        [differences(low=-0.3, high=-0.2, difference=-0.25), differences(prompt_set='pickapic')]
    )
    scores = pd.concat(
        pd.DataFrame({'model': 'base', 'prompt_set': name, 'hps': [0.0, 0.5, 1.0]})
        for name in ('hpd', 'pickapic')
    )
    assert findings.tell_seed_spread(found, scores) == (
        'Spread over seeds, BalancedDPO minus base: 1 of 2 above zero beyond the interval, 1 '
        'below; on HPD, in s.d. of the base model: HPS -0.5 [-0.6, -0.4].'
    )


# what the sentences and tables of the figures are made of


def test_the_shares_of_votes_have_wilsons_intervals():
    splits = figure_numbers.vote_shares([[1, 1, 1, 1]] * 30 + [[1, 1, -1, -1]] * 10)
    z, p, n = 1.959964, 0.75, 40
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    row = splits.set_index('split').loc['4-0']
    assert row.low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-6)
    assert row.high == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-6)
    table, (low, high) = figure_numbers.split_table(splits)
    assert table.loc['4-0'].tolist() == [75.0, '12.5']
    assert low.loc['4-0', 'pairs (%)'] == 100 * row.low
    assert high.loc['4-0', 'fair coins (%)'] == '12.5'


def test_the_first_prompts_come_in_the_order_of_the_sets():
    scores = pd.DataFrame(
        {'prompt_set': list('bbbaab'), 'prompt_id': ['3', '3', '1', '9', '8', '7']}
    )
    assert figure_numbers.first_prompts(scores, 2) == [
        ('b', '3'),
        ('b', '1'),
        ('a', '9'),
        ('a', '8'),
    ]


def images(model, right, hps):
    "A table of one image a prompt."
    n = len(right)
    names = {'model': model, 'prompt_set': 'hpd', 'prompt_id': [str(i) for i in range(n)]}
    return pd.DataFrame(
        names | {'image_index': 0, 'seed': range(n), 'recognised': right, 'hps': hps}
    )


def test_outcomes_are_counted_for_each_two_models():
    scores = pd.concat(
        [
            images('BalancedDPO', [1, 1, 0, 1, 0], [0.0] * 5),
            images('base', [0, 1, 1, 0, 0], [0.5] * 5),
        ]
    )
    outcomes = figure_numbers.outcomes_of_pairs(scores, [PAIR, PAIR[::-1]])
    table = figure_numbers.outcome_table(outcomes)
    assert table.loc['BalancedDPO vs base'].tolist() == [2, 1, 1, 1]
    assert table.loc['base vs BalancedDPO'].tolist() == [1, 2, 1, 1]


def test_a_black_image_is_compared_with_the_base_models_first_images_of_its_set():
    scores = pd.concat(
        [
            images('BalancedDPO', [1, 1], [9.0, 9.0]),
            images('base', [1, 1], [0.5, 0.0]),
            images('base', [1, 1], [7.0, 7.0]).assign(image_index=1),
            images('base', [1, 1], [8.0, 8.0]).assign(prompt_set='pickapic'),
        ]
    )
    black = pd.DataFrame({'prompt_id': ['1', '0'], 'hps': [0.25, 0.25]})
    found = figure_numbers.black_image_table(scores, black, 'hpd', ('hps',))
    assert found.loc['hps'].tolist() == [0.25, 0.25, 50.0]
