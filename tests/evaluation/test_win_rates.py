"Win rates: the protocol by hand and by a slow, plain implementation; refusals."

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import Bootstrap, wilson
from balanceddpo.evaluation.scores import score_differences
from balanceddpo.evaluation.win_rates import (
    best_of,
    compare,
    count_wins,
    mean_score,
    mean_win_rates,
    refuse_mismatch,
    score_grid,
    score_table,
    tie_points,
    win_rates,
    win_statistics,
)
from balanceddpo.paper.numbers import fits

# --- the protocol, by hand

#                          prompt 1    prompt 2    prompt 3    prompt 4    prompt 5
X = np.array([[9, 1, 1], [4, 4, 4], [2, 6, 2], [1, 1, 1], [5, 3, 1]], float)
Y = np.array([[5, 5, 5], [4, 4, 4], [6, 2, 2], [3, 0, 0], [4, 3, 2]], float)
# best                     9 > 5       4 = 4       6 = 6       1 < 3       5 > 4         2 wins 2
# ties 1 loss
# mean                     3.7 < 5     4 = 4       3.3 = 3.3   1 = 1       3 = 3         0 wins 4
# ties 1 loss
# paired                   W L L       T T T       L W T       L W W       W T L         5 wins 5
# ties 5 losses
BY_HAND = {'best': (5, 2, 2), 'mean': (5, 0, 4), 'paired': (15, 5, 5)}


@pytest.mark.parametrize('protocol', BY_HAND)
@pytest.mark.parametrize('rule', ['split', 'drop', 'loss'])
def test_win_statistics_by_hand(protocol, rule):
    n, wins, ties = BY_HAND[protocol]
    rate = {'split': (wins + ties / 2) / n, 'drop': wins / (n - ties), 'loss': wins / n}[rule]
    found = win_statistics(X, Y, protocol, rule)
    assert (found['n'], found['wins'], found['ties']) == (n, wins, ties)
    assert found['win_rate'] == pytest.approx(rate)
    prompts = (n - ties if rule == 'drop' else n) / (3 if protocol == 'paired' else 1)
    assert (found['low'], found['high']) == pytest.approx(wilson(rate * prompts, prompts))
    assert found['low'] <= found['win_rate'] <= found['high']
    assert found['boot_low'] <= found['win_rate'] <= found['boot_high']


def test_the_papers_strict_rate():
    "297 prompts, 210 won, 3 tied: the paper's rule prints 70.71."
    best = np.zeros((297, 5))
    best[:, 2] = np.repeat([2.0, 1.0, 0.0], [210, 3, 84])
    found = win_statistics(best, np.maximum(0, np.ones((297, 5))), 'best', 'loss')
    assert round(100 * found['win_rate'], 2) == 70.71
    assert fits(70.71, 297)
    # 211.5/297
    assert (
        round(100 * win_statistics(best, np.ones((297, 5)), 'best', 'split')['win_rate'], 2)
        == 71.21
    )


def test_split_is_the_only_rule_in_which_both_sides_add_up():
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 4, (60, 5)), rng.integers(0, 4, (60, 5))
    for protocol in BY_HAND:
        there, back = win_statistics(x, y, protocol), win_statistics(y, x, protocol)
        assert there['win_rate'] + back['win_rate'] == pytest.approx(1)
        assert there['low'] == pytest.approx(1 - back['high'])
        strict = (
            win_statistics(x, y, protocol, 'loss')['win_rate']
            + win_statistics(y, x, protocol, 'loss')['win_rate']
        )
        assert strict < 1


def test_a_model_against_itself():
    x = np.random.default_rng(6).random((30, 5))
    split, drop, loss = (win_statistics(x, x, 'best', rule) for rule in ('split', 'drop', 'loss'))
    assert split['win_rate'] == 0.5
    assert split['low'] < 0.5 < split['high']
    assert split['ties'] == 30
    assert math.isnan(drop['win_rate'])
    assert (
        drop['low'],
        drop['high'],
        drop['boot_low'],
        drop['boot_high'],
    ) == (0, 1, 0, 1)
    assert loss['win_rate'] == 0


def test_the_mean_does_not_depend_on_the_order_of_images():
    rows = [list(p) for p in itertools.permutations([0.1, 0.2, 0.3, 0.7])]
    # plain sums do differ
    assert len(set(mean_score(rows))) == 1
    assert len({sum(r) for r in rows}) > 1
    assert best_of([[1, 3, 2]]).tolist() == [3]


def test_only_the_order_of_scores_matters():
    """Best and paired win rates are the same under any increasing change of scale; that is what
    makes them comparable across scorers."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(80, 5)), rng.normal(0.2, 1, (80, 5))
    for protocol in ('best', 'paired'):
        assert (
            win_statistics(x, y, protocol)
            == win_statistics(np.exp(x), np.exp(y), protocol)
            == win_statistics(100 * x - 7, 100 * y - 7, protocol)
        )


def test_best_of_five_rewards_spread():
    """P(max of 5 N(0, 1.5^2) > max of 5 N(0, 1)) from an independent integral, and half for single
    images."""
    from scipy.integrate import quad
    from scipy.stats import norm

    exact = quad(
        lambda t: 5 * norm.pdf(t) * norm.cdf(t) ** 4 * (1 - norm.cdf(t / 1.5) ** 5), -8, 8
    )[0]
    rng = np.random.default_rng(8)
    wild, steady = rng.normal(0, 1.5, (4000, 5)), rng.normal(0, 1, (4000, 5))
    assert win_statistics(wild, steady, 'best', bootstrap=Bootstrap(resamples=10))[
        'win_rate'
    ] == pytest.approx(exact, abs=0.02)
    assert exact > 0.65
    assert win_statistics(wild, steady, 'paired', bootstrap=Bootstrap(resamples=10))[
        'win_rate'
    ] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    'call',
    [
        lambda: count_wins(X, Y[:4]),
        lambda: count_wins(X, Y, 'median'),
        lambda: tie_points([1], [0], 1, 'coin'),
    ],
)
def test_unknown_words_and_shapes_are_refused(call):
    with pytest.raises(InputError):
        call()


# --- score tables

SETTINGS = dict(
    prompt_set='hpd',
    sampler={'steps': 20, 'guidance': 7.5},
    scorer_keys={'hps': 'aaaa', 'clip': 'bbbb'},
)


def table(model, hps=X, **change):
    return score_table(model, {'hps': hps, 'clip': -np.asarray(hps)}, **(SETTINGS | change))


def test_win_rates_of_tables():
    found = win_rates(table('a'), table('b', Y), ['hps', 'clip'], ties='loss')
    assert found[['model_a', 'model_b', 'prompt_set']].drop_duplicates().values.tolist() == [
        ['a', 'b', 'hpd']
    ]
    assert found['scorer'].tolist() == ['hps', 'clip']
    assert found['win_rate'].tolist() == [
        0.4,
        win_statistics(-X, -Y, 'best', 'loss')['win_rate'],
    ]


def test_lower_is_better_turns_the_scale():
    down = win_rates(table('a'), table('b', Y), ['hps', 'clip'], lower_is_better=('clip',))
    assert down['wins'].tolist() == [2, 2]
    assert down['ties'].tolist() == [2, 2]  # clip is -hps here


def test_rows_in_any_order():
    a, b = table('a'), table('b', Y)
    shuffled = a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2)
    pd.testing.assert_frame_equal(win_rates(a, b, ['hps']), win_rates(*shuffled, ['hps']))


MISMATCHES = {
    'prompt sets': table('b', prompt_set='pickapic'),
    "'guidance' is 7.5 and 5.0": table('b', sampler={'steps': 20, 'guidance': 5.0}),
    "'steps' is 20 and '(absent)'": table('b', sampler={'guidance': 7.5}),
    "'hps' had the weights aaaa and cccc": table('b', scorer_keys={'hps': 'cccc', 'clip': 'bbbb'}),
    'image 0 of prompt 4 is there for a only': table('b', Y[:4]),
    'image 2 of prompt 0 is there for a only': table(
        'b', Y[:, :2], seeds=[[0, 1], [3, 4], [6, 7], [9, 10], [12, 13]]
    ),
    'image 0 of prompt 0 is there for a only': table('b', prompt_ids=['x', '1', '2', '3', '4']),
    'the seeds of prompt 1, image 2 are 5 and 99': table(
        'b', seeds=np.where(np.arange(15) == 5, 99, np.arange(15))
    ),
}


@pytest.mark.parametrize('told', MISMATCHES)
def test_mismatches_are_refused_and_named(told):
    for ask in (
        lambda: win_rates(table('a'), MISMATCHES[told], ['hps']),
        lambda: score_differences(table('a'), MISMATCHES[told], ['hps']),
    ):
        with pytest.raises(InputError) as e:
            ask()
        assert told in str(e.value)
        assert str(e.value).startswith('a and b cannot be compared')
        assert '\n' not in str(e.value)


def test_weights_of_scorers_that_are_not_asked_for_may_differ():
    refuse_mismatch(table('a'), table('b', scorer_keys={'hps': 'aaaa', 'clip': 'zzzz'}), ['hps'])


@pytest.mark.parametrize(
    'spoil,told',
    [
        (lambda t: t.drop(columns='seed'), "lacks the column 'seed'"),
        (lambda t: t[:0], 'no rows'),
        (lambda t: pd.concat([t, table('c', prompt_ids=list('vwxyz'))]), 'has 2: b, c'),
        (lambda t: t.assign(hps=np.inf), "no 'hps' score"),
        (lambda t: t.drop(columns='hps'), "no scores of 'hps': the table has clip"),
        (lambda t: t.assign(hps=t['hps'].where(t.index != 7)), 'prompt 2'),
    ],
)
def test_broken_tables_are_refused(spoil, told):
    with pytest.raises(InputError, match=told):
        win_rates(table('a'), spoil(table('b', Y)), ['hps'])


def test_ragged_and_doubled_images_are_refused():
    # the same image is missing on both sides
    ragged = [t.drop(index=4) for t in (table('a'), table('b', Y))]
    with pytest.raises(InputError, match='prompt 1 has no .hps. score for image 1'):
        win_rates(*ragged, ['hps'])
    with pytest.raises(InputError, match='prompt 0 has image 0 twice'):
        score_grid(pd.concat([table('a'), table('a')[:1]]), 'hps')
    with pytest.raises(InputError, match='shape'):
        score_table('a', {'hps': X, 'clip': X[:2]})


def test_compare_walks_sets_and_pairs():
    scores = pd.concat(
        [
            table(m, v, prompt_set=s)
            for s in ('hpd', 'pickapic')
            for m, v in (('a', X), ('b', Y), ('c', X + Y))
        ]
    )
    found = compare(
        scores,
        [('a', 'b'), ('c', 'b')],
        ['hps', 'clip'],
        protocol='paired',
        ties='drop',
        bootstrap=Bootstrap(resamples=50),
    )
    assert len(found) == 8
    assert found['prompt_set'].tolist() == ['hpd'] * 4 + ['pickapic'] * 4
    assert set(found['protocol']) == {'paired'}
    assert found['win_rate'][0] == 0.5
    assert found['tie_rule'][0] == 'drop'
    with pytest.raises(InputError, match="'hpd' has no scores of 'd'"):
        compare(scores, [('a', 'd')], ['hps'])


# --- the mean over scorers


def test_the_mean_over_scorers_by_a_slow_implementation():
    """Three scorers, twelve prompts: the rate is the mean of the rates; the interval draws prompts,
    each with all its scorers."""
    draw = np.random.default_rng(0)
    names = ['hps', 'clip', 'pickscore']
    x, y = ({k: draw.integers(0, 4, (12, 2)).astype(float) for k in names} for _ in range(2))
    both = pd.concat([score_table('a', x), score_table('b', y)])
    for protocol in ('best', 'mean', 'paired'):
        found = mean_win_rates(
            both, [('a', 'b')], names, protocol=protocol, bootstrap=Bootstrap(seed=5)
        )
        (row,) = found.to_dict('records')
        single = compare(both, [('a', 'b')], names, protocol=protocol)
        assert row['win_rate'] == pytest.approx(single.win_rate.mean())
        assert row['scorer'] == 'mean of 3'
        assert row['n'] == 12
        wins, ties, m = zip(*(count_wins(x[k], y[k], protocol) for k in names))
        a_prompt = np.mean([(w + t / 2) / m[0] for w, t in zip(wins, ties)], axis=0)
        means = np.sort([a_prompt[draw.integers(0, 12, 12)].mean() for _ in range(20_000)])
        assert (row['low'], row['high']) == pytest.approx((means[499], means[19_499]), abs=0.02)
    with pytest.raises(InputError, match="no scores of 'c'"):
        mean_win_rates(both, [('a', 'c')], names)


def test_the_mean_over_scorers_does_not_drop_ties():
    both = pd.concat([score_table(m, {'hps': np.zeros((2, 1))}) for m in 'ab'])
    with pytest.raises(InputError, match='split or loss'):
        mean_win_rates(both, [('a', 'b')], ['hps'], ties='drop')


def test_a_second_scorer_that_agrees_does_not_narrow_the_interval():
    draw = np.random.default_rng(1)
    x, y = draw.random((2, 40, 2))
    both = pd.concat(
        [
            score_table('a', {'hps': x, 'again': 10 * x}),
            score_table('b', {'hps': y, 'again': 10 * y}),
        ]
    )
    one, two = (
        mean_win_rates(both, [('a', 'b')], names)[['win_rate', 'low', 'high']].to_numpy()
        for names in (['hps'], ['hps', 'again'])
    )
    assert (one == two).all()
