"""The audit: sizes found again from printed percentages, McNemar's limits by brute force, Adam and
the gradient against torch, and numbers worked by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from balanceddpo.paper import audit
from balanceddpo.paper.numbers import PAPER, PaperTable, fits

# --- sizes


@pytest.mark.parametrize('n', [37, 150, 297])
def test_a_hidden_size_is_found_again(n):
    rng = np.random.default_rng(n)
    wins = rng.integers(1, n, 40)
    rounded, cut = (
        [round(100 * int(k) / n + 1e-9, 2) for k in wins],
        [math.floor(1e4 * int(k) / n) / 100 for k in wins],
    )
    for percents in (rounded, cut):
        found = audit.fitting_sizes(percents, 2 * n)
        assert n in found
        assert min(found) == n


def test_the_papers_sizes():
    def numbers(name, prompt_set):
        return PAPER[name].frame().query('prompt_set == @prompt_set')['value']

    assert audit.fitting_sizes(numbers('table1', 'pickapic'), 593) == [297]
    assert audit.fitting_sizes(numbers('table1', 'partiprompts'), 2000) == [1129]
    assert audit.fitting_sizes(numbers('table1', 'hpd'), 299) == [150]
    for name in ('pickapic', 'partiprompts', 'hpd'):
        assert audit.fitting_sizes(numbers('table2', name), 199) == [100]
    assert audit.fitting_sizes(PAPER['table3'].rows[('Normalized',)], 1700) == []


def test_what_can_be_printed_is_what_fits():
    "By brute force over all 10,001 percentages."
    for n in (7, 150):
        assert {p for p in range(10001) if fits(p / 100, n)} == audit.printable(n)
        assert audit.fit_chance(n, 1) == pytest.approx(len(audit.printable(n)) / 10001)


def test_recovered_wins_print_as_the_paper_does():
    for name in audit.TABLES:
        for row in audit.recover_wins(name).itertuples():
            share = 1e4 * row.wins / row.prompts
            assert row.rounded == (math.floor(share + 0.5) == round(100 * row.value))
            assert row.cut_off == (math.floor(share + 1e-9) == round(100 * row.value))
            assert row.low < row.value < row.high or row.value in (0, 100)
    odd = audit.recover_wins('table3').groupby('model_a')[['rounded', 'cut_off']].sum()
    assert odd.loc['Normalized'].tolist() == [0, 0]
    assert odd.loc['Random', 'cut_off'] == 8
    assert odd.loc['Random', 'rounded'] == 2
    assert (odd.drop(['Normalized', 'Random']).rounded == 8).all()


# --- differences


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
        least, middle, most = audit.discordant_prompts(a, b, n)
        assert (least, most) == (counts[0], counts[-1]) and middle in counts, (a, b)
        low, between, high = audit.difference_p(a, b, n)
        assert low == pytest.approx(min(p))
        assert high == pytest.approx(max(p))
        assert low <= between + 1e-12 <= high + 1e-11


def test_the_expected_number_of_discordant_prompts():
    """Two independent models that win 60 and 30 of 100: 60*.7 + 30*.4 = 54 discordant prompts
    expected."""
    assert audit.discordant_prompts(60, 30, 100) == (30, 54, 90)
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
    (row,) = audit.rate_differences(audit.recover_wins(tiny_table()), 'ours', ['theirs']).to_dict(
        'records'
    )
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
        t[t.verdict != 'no count']
        for t in (audit.paper_differences(), audit.paper_differences(level=1e-4))
    ]
    assert ((found.verdict == 'holds') == (found.p_most < 0.05)).all()
    assert ((found.verdict == 'noise') == (found.p_least >= 0.05)).all()
    assert (strict.verdict == 'holds').sum() < (found.verdict == 'holds').sum()
    raw = [
        mcnemar(*sorted(((d + abs(a - b)) // 2, (d - abs(a - b)) // 2)))
        for a, b, n in found[['wins_a', 'wins_b', 'prompts']].itertuples(index=False)
        for d in [audit.discordant_prompts(a, b, n)[2]]
    ]
    order = np.argsort(raw, kind='stable')
    worst = np.maximum.accumulate(np.array(raw)[order] * np.arange(len(raw), 0, -1)).clip(max=1)
    assert found.p_most.to_numpy()[order] == pytest.approx(worst)


def test_numbers_that_fit_no_count_are_not_tested():
    found = audit.paper_differences()
    rates = audit.recover_wins('table3')
    unfit = rates[~(rates.rounded | rates.cut_off)]
    assert set(unfit.model_a) == {'Normalized'}
    assert len(unfit) == 8
    assert ((found.verdict == 'no count') == (found.model_b == 'Normalized')).all()
    assert found.p_most[found.verdict == 'no count'].isna().all()


def test_no_difference_is_counted_twice():
    found = audit.paper_differences()
    assert not found.duplicated(
        ['table', 'model_a', 'model_b', 'opponent', 'prompt_set', 'scorer']
    ).any()
    assert (found.model_a != found.model_b).all()
    # Table II is about other models of the same names
    rates = audit.paper_rates()
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
    first = audit.rate_differences(
        audit.recover_wins('table1'), 'BalancedDPO', ['DiffusionDPO']
    ).query('prompt_set == "hpd"')
    errors = []
    for a, b, n in first[['wins_a', 'wins_b', 'prompts']].itertuples(index=False):
        ours, theirs = np.arange(n) < a, np.arange(n) >= n - b  # wins as far apart as they go
        errors.append(100 * (ours.astype(float) - theirs).std() / math.sqrt(n))
    assert audit.average_gains().widest[2] == pytest.approx(1.96 * np.mean(errors))


def test_statements_by_hand():
    said = audit.statements().set_index('statement')
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
    found = audit.triples().set_index(['table', 'model', 'prompt_set', 'scorer'])
    row = found.loc[('III', 'Normalized', 'pickapic', 'clip')]
    assert (row.over_base, row.dpo_over_base, row.over_dpo) == (
        42.54,
        57.24,
        60.49,
    )
    assert row.circle == pytest.approx((60.49 + 57.24 + 57.46) / 100)
    assert row.expected == pytest.approx(100 / (1 + (57.24 / 42.76) / (42.54 / 57.46)))
    assert not found.index.duplicated().any()


# --- formulas


def test_adam_path_is_torchs():
    import torch

    g = np.random.default_rng(0).normal(size=50)
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=1e-3, eps=1e-12)
    path = []
    for x in g:
        w.grad = torch.full_like(w, x)
        optimizer.step()
        path.append(w.item())
    assert audit.adam_path(g, 1e-3, eps=1e-12) == pytest.approx(np.array(path), rel=1e-6)


def test_no_gradients_pass_the_bound_and_some_come_near_it():
    rng = np.random.default_rng(0)
    for g in (
        rng.normal(size=400),
        rng.standard_cauchy(400),
        np.exp(rng.normal(0, 5, 400)),
        np.r_[np.zeros(300), 1.0, np.zeros(50)],
        1.05 ** np.arange(400.0),
    ):
        assert np.abs(np.diff(audit.adam_path(g, 1.0))).max() <= audit.adam_bound()
    t = 2000
    last = np.abs(np.diff(audit.adam_path((0.999 / 0.9) ** np.arange(float(t)), 1.0)))[-1]
    # but for the bias correction
    assert last / math.sqrt(1 - 0.999**t) == pytest.approx(audit.adam_bound(), rel=1e-3)


def test_learning_rates_scale_as_the_batches():
    rates = audit.learning_rates().set_index('reading')
    assert rates.moved.iloc[0] == pytest.approx(2e-5)
    assert rates.moved.iloc[3] / rates.moved.iloc[0] == pytest.approx(2048)
    assert (rates.bound / rates.moved).tolist() == pytest.approx([audit.adam_bound()] * 4)


def test_error_gap_makes_the_loss_as_sure():
    import torch

    from balanceddpo.losses.diffusion_dpo import dpo_logits

    for beta, sure in ((2000, 0.9), (5000, 0.75), (1, 0.99)):
        gap = audit.error_gap(beta, sure)
        logit = dpo_logits(
            torch.tensor([[0.1, 0.1 + gap]], dtype=torch.float64),
            torch.full((1, 2), 0.1, dtype=torch.float64),
            beta,
        )
        assert torch.sigmoid(logit).item() == pytest.approx(sure, abs=1e-3)


def test_ties_are_binomial():
    from scipy.stats import binom

    from balanceddpo.voting.votes import tie_probability

    for p in (0.5, 0.7, 0.95):
        zero, text = audit.tie_readings(p).set_index('reading').to_numpy()
        assert zero == pytest.approx([binom.sf(2, 4, p), tie_probability(4, p), binom.cdf(1, 4, p)])
        assert text == pytest.approx([binom.sf(2, 4, p), 0, binom.cdf(2, 4, p)])


def test_gradient_factors_are_autograds():
    import torch

    from balanceddpo.losses.diffusion_dpo import diffusion_dpo_loss

    factors = audit.gradient_factors([-3.0, -1, 0, 2])
    x, s = (
        torch.tensor(factors.x.to_numpy(), dtype=torch.float32, requires_grad=True),
        torch.tensor(factors.s.to_numpy()),
    )
    diffusion_dpo_loss(x, (s > 0).float(), (s < 0).float()).sum().backward()
    assert x.grad.numpy() == pytest.approx(factors.corrected.to_numpy(), abs=1e-6)
    assert factors.derivative.to_numpy() == pytest.approx(factors.corrected.to_numpy(), abs=1e-8)
    wrong = factors[(factors.printed - factors.corrected).abs() > 1e-9]
    assert set(wrong.s) == {-1}
    assert (wrong.x != 0).all()
    assert len(wrong) == 3


def test_implied_spread_gives_the_win_rate_back():
    from statistics import NormalDist

    for first, second in (('BalancedDPO', 'SD1.5'), ('DiffusionDPO', 'SD1.5')):
        for row in audit.implied_spread(first, second).dropna(subset=['spread']).itertuples():
            assert 100 * NormalDist().cdf(row.difference / row.spread) == pytest.approx(row.rate)
            assert not row.low > row.spread
            assert not row.high < row.spread
    # a lower mean and more wins: no normal difference does that
    assert np.isnan(audit.implied_spread('DiffusionDPO').spread[3])


def test_embedding_cosine_of_simulated_embeddings():
    rng = np.random.default_rng(0)
    width, n = 256, 3000
    for rho in (0.3, 0.9):
        common = rng.normal(size=width)
        x = math.sqrt(rho) * common / np.linalg.norm(common) + math.sqrt(1 - rho) * rng.normal(
            size=(n, width)
        ) / math.sqrt(width)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        head = rng.normal(size=width)
        head *= 18 / np.linalg.norm(head)
        assert audit.embedding_cosine((x @ head).std(), 18, width) == pytest.approx(rho, abs=0.03)


def test_a_divided_view_sees_divided_pixels():
    import torch
    from PIL import Image

    from balanceddpo.scoring.encoders import normalised
    from balanceddpo.scoring.pictures import ImageBatch, crop_to_square

    mean, std = [0.48, 0.45, 0.40], [0.26, 0.27, 0.28]
    view = normalised(lambda batch, i: crop_to_square(batch[i], 16), mean, std)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype('uint8'))
    divided = audit.divided_view(view, 255)(ImageBatch([image]), 0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 / 255
    assert torch.allclose(
        divided,
        (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None],
        atol=1e-6,
    )


def test_rescaling_takes_the_image_out_of_the_score():
    from balanceddpo.data.pairs import read_pairs

    pairs = list(itertools.islice(read_pairs('icons'), 12))
    same, twice = (
        audit.effect_of_rescaling_twice(pairs, ('icons:clip', 'icons:aesthetic'), f)
        for f in (1, 255)
    )
    assert np.allclose(same.left, 1, atol=1e-3)
    assert (same.agreement == 1).all()
    assert (twice.left_in_pairs < 0.01).all()
    # a caption still varies
    aesthetic, clip = twice.set_index('scorer').loc[['aesthetic', 'clip'], 'left']
    assert aesthetic < 0.05 < clip
