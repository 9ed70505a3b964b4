"The audit of the win rates: sizes found again, McNemar's limits by brute force, rows by hand."

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.paper.audit_rates import (
    TABLES,
    average_gains,
    difference_p,
    discordant_prompts,
    fit_chance,
    fitting_sizes,
    paper_differences,
    paper_rates,
    printable,
    rate_differences,
    recover_wins,
    statements,
    triples,
)
from balanceddpo.paper.numbers import PAPER, PaperTable, fits


@pytest.mark.parametrize('n', [37, 150, 297])
def test_a_hidden_size_is_found_again(n):
    rng = np.random.default_rng(n)
    wins = rng.integers(1, n, 40)
    rounded, cut = (
        [round(100 * int(k) / n + 1e-9, 2) for k in wins],
        [math.floor(1e4 * int(k) / n) / 100 for k in wins],
    )
    for percents in (rounded, cut):
        found = fitting_sizes(percents, 2 * n)
        assert n in found
        assert min(found) == n


def test_the_papers_sizes():
    def numbers(name, prompt_set):
        return PAPER[name].frame().query('prompt_set == @prompt_set')['value']

    assert fitting_sizes(numbers('table1', 'pickapic'), 593) == [297]
    assert fitting_sizes(numbers('table1', 'partiprompts'), 2000) == [1129]
    assert fitting_sizes(numbers('table1', 'hpd'), 299) == [150]
    for name in ('pickapic', 'partiprompts', 'hpd'):
        assert fitting_sizes(numbers('table2', name), 199) == [100]
    assert fitting_sizes(PAPER['table3'].rows[('Normalized',)], 1700) == []


def test_what_can_be_printed_is_what_fits():
    "By brute force over all 10,001 percentages."
    for n in (7, 150):
        assert {p for p in range(10001) if fits(p / 100, n)} == printable(n)
        assert fit_chance(n, 1) == pytest.approx(len(printable(n)) / 10001)


def test_recovered_wins_print_as_the_paper_does():
    for name in TABLES:
        for row in recover_wins(name).itertuples():
            share = 1e4 * row.wins / row.prompts
            assert row.rounded == (math.floor(share + 0.5) == round(100 * row.value))
            assert row.cut_off == (math.floor(share + 1e-9) == round(100 * row.value))
            assert row.low < row.value < row.high or row.value in (0, 100)
    odd = recover_wins('table3').groupby('model_a')[['rounded', 'cut_off']].sum()
    assert odd.loc['Normalized'].tolist() == [0, 0]
    assert odd.loc['Random', 'cut_off'] == 8
    assert odd.loc['Random', 'rounded'] == 2
    assert (odd.drop(['Normalized', 'Random']).rounded == 8).all()


def mcnemar(b, c):
    "Two-sided exact p-value from the binomial coefficients."
    n, k = b + c, min(b, c)
    return min(1, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1


def test_discordant_prompts_are_the_limits_of_every_pairing():
    n = 6
    for a, b in itertools.product(range(n + 1), repeat=2):
        first = set(range(a))
        found = [
            (len(first - set(s)), len(set(s) - first)) for s in itertools.combinations(range(n), b)
        ]
        counts, p = sorted({x + y for x, y in found}), [mcnemar(x, y) for x, y in found]
        least, middle, most = discordant_prompts(a, b, n)
        assert (least, most) == (counts[0], counts[-1]) and middle in counts, (a, b)
        low, between, high = difference_p(a, b, n)
        assert low == pytest.approx(min(p))
        assert high == pytest.approx(max(p))
        assert low <= between + 1e-12 <= high + 1e-11


def test_the_expected_number_of_discordant_prompts():
    """Two independent models that win 60 and 30 of 100: 60*.7 + 30*.4 = 54 discordant prompts
    expected."""
    assert discordant_prompts(60, 30, 100) == (30, 54, 90)
    rng = np.random.default_rng(0)
    a = np.arange(100) < 60
    drawn = [(a != rng.permutation(np.arange(100) < 30)).sum() for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(54, abs=0.5)


def tiny_table():
    """Ours wins 8 of 10, theirs 5 of 10 against base; ours against theirs is no difference between
    two win rates."""
    return PaperTable(
        '0',
        '',
        '',
        ('model_a', 'model_b'),
        ('prompt_set', 'scorer'),
        (('x', 'hps'),),
        {('ours', 'base'): (80.0,), ('theirs', 'base'): (50.0,), ('ours', 'theirs'): (70.0,)},
        prompts={'x': 10},
    )


def test_rate_differences_by_hand():
    (row,) = rate_differences(recover_wins(tiny_table()), 'ours', ['theirs']).to_dict('records')
    assert (
        row['model_a'],
        row['model_b'],
        row['opponent'],
        row['wins_a'],
        row['wins_b'],
        row['difference'],
    ) == ('ours', 'theirs', 'base', 8, 5, 30)
    assert row['half_width'] == pytest.approx(196 * math.sqrt(0.8 * 0.2 / 10 + 0.5 * 0.5 / 10))


def test_verdicts_follow_from_the_corrected_limits():
    found, strict = [
        t[t.verdict != 'no count'] for t in (paper_differences(), paper_differences(level=1e-4))
    ]
    assert ((found.verdict == 'holds') == (found.p_most < 0.05)).all()
    assert ((found.verdict == 'noise') == (found.p_least >= 0.05)).all()
    assert (strict.verdict == 'holds').sum() < (found.verdict == 'holds').sum()
    raw = [
        mcnemar(*sorted(((d + abs(a - b)) // 2, (d - abs(a - b)) // 2)))
        for a, b, n in found[['wins_a', 'wins_b', 'prompts']].itertuples(index=False)
        for d in [discordant_prompts(a, b, n)[2]]
    ]
    order = np.argsort(raw, kind='stable')
    worst = np.maximum.accumulate(np.array(raw)[order] * np.arange(len(raw), 0, -1)).clip(max=1)
    assert found.p_most.to_numpy()[order] == pytest.approx(worst)


def test_numbers_that_fit_no_count_are_not_tested():
    found = paper_differences()
    rates = recover_wins('table3')
    unfit = rates[~(rates.rounded | rates.cut_off)]
    assert set(unfit.model_a) == {'Normalized'}
    assert len(unfit) == 8
    assert ((found.verdict == 'no count') == (found.model_b == 'Normalized')).all()
    assert found.p_most[found.verdict == 'no count'].isna().all()


def test_no_difference_is_counted_twice():
    found = paper_differences()
    assert not found.duplicated(
        ['table', 'model_a', 'model_b', 'opponent', 'prompt_set', 'scorer']
    ).any()
    assert (found.model_a != found.model_b).all()
    # Table II is about other models of the same names
    rates = paper_rates()
    rest, second = rates[rates.table != 'II'], rates[rates.table == 'II']
    for part, n in ((rest, 100), (second, 36)):
        assert len(part) == n
        assert not part.duplicated(['model_a', 'model_b', 'prompt_set', 'scorer']).any()
    repeated = (
        pd.concat([PAPER[name].frame() for name in ('table1', 'table3', 'table4')])
        .groupby(['model_a', 'model_b', 'prompt_set', 'scorer'])
        .value.nunique()
    )
    assert (repeated == 1).all()


def test_widest_interval_of_a_gain_from_prompts():
    """The variance behind `widest`, from prompts themselves: as many discordant as there can be,
    scorers that move together."""
    first = rate_differences(recover_wins('table1'), 'BalancedDPO', ['DiffusionDPO']).query(
        'prompt_set == "hpd"'
    )
    errors = []
    for a, b, n in first[['wins_a', 'wins_b', 'prompts']].itertuples(index=False):
        ours, theirs = np.arange(n) < a, np.arange(n) >= n - b  # wins as far apart as they go
        errors.append(100 * (ours.astype(float) - theirs).std() / math.sqrt(n))
    assert average_gains().widest[2] == pytest.approx(1.96 * np.mean(errors))


def test_statements_by_hand():
    said = statements().set_index('statement')
    # CLIP, Aesthetic; HPS, CLIP
    assert said.loc['both ablated versions still outperform DiffusionDPO', 'computed'] == '4 of 8'
    # not HPS (twice), PickScore and Random against DiffusionDPO
    assert (
        said.loc['BalancedDPO consistently outperforms every other label source', 'computed']
        == '52 of 56'
    )
    assert said.loc[said['where'] == 'Abstract', 'holds'].all()
    assert (
        said.loc['Aesthetic: 16.6 points above DiffusionDPO on Pick-a-Pic', 'computed'] == '16.50'
    )


def test_triples():
    found = triples().set_index(['table', 'model', 'prompt_set', 'scorer'])
    row = found.loc[('III', 'Normalized', 'pickapic', 'clip')]
    assert (row.over_base, row.dpo_over_base, row.over_dpo) == (
        42.54,
        57.24,
        60.49,
    )
    assert row.circle == pytest.approx((60.49 + 57.24 + 57.46) / 100)
    assert row.expected == pytest.approx(100 / (1 + (57.24 / 42.76) / (42.54 / 57.46)))
    assert not found.index.duplicated().any()
