"""The numbers in README's findings are those of the committed tables, rounded; whoever runs the
notebooks again is told here which sentence to change."""

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ' '.join((ROOT / 'README.md').read_text(encoding='utf-8').split())
WORDS = 'none one two three four five six seven eight nine ten eleven twelve'.split()


def table(name):
    return pd.read_csv(ROOT / f'paper_figures/icons/{name}.csv', index_col=0)


def value(name, row, column, ends=('', ' low', ' high')):
    return [table(name).loc[row, column + end] for end in ends]


@pytest.mark.parametrize(
    'name, row, column, says',
    [
        ('seeds_gains', 'BalancedDPO', 'base', 'BalancedDPO gains {}'),
        ('seeds_gains', 'DiffusionDPO', 'base', 'and DiffusionDPO {}'),
        ('seeds_gains', 'Normalized (z-score)', 'base', 'the sum of standardised scores gains {}'),
        ('seeds_gains', 'HPS', 'base', 'HPS alone {}'),
        ('seeds_gains', 'Random', 'base', 'a scorer drawn at random each step {}'),
        (
            'table4_gains',
            'several metrics, refresh',
            'Pick-a-Pic',
            'gain {} over labels of HPS alone',
        ),
        (
            'table4_gains',
            'refresh, several metrics',
            'Pick-a-Pic',
            'A reference that follows gains {}',
        ),
        (
            'refresh_gains',
            'all weights, every 25',
            'Pick-a-Pic',
            'a refresh every 25 steps of 100 gains {}',
        ),
        ('refresh_gains', 'all weights, never', 'Pick-a-Pic', 'none {}'),
        ('refresh_gains', 'all weights, every 10', 'Pick-a-Pic', 'every 10 steps {}'),
        ('refresh_gains', 'weaker pull, every 25', 'Pick-a-Pic', 'with a gain of {}'),
        ('noise_gains', '50 % flipped', 'majority', 'gain {} and'),
        ('noise_gains', '50 % flipped', 'HPS alone', 'and {}'),
    ],
)
def test_gains_and_their_intervals(name, row, column, says):
    v, low, high = value(name, row, column)
    assert says.format(f'{v:.2f} [{low:.2f}, {high:.2f}]') in README


@pytest.mark.parametrize(
    'name, row, column, says',
    [
        ('noise', 'majority, 50 % flipped', 'mean of the scorers', 'taught by a coin win {}'),
        ('noise', 'HPS alone, 50 % flipped', 'mean of the scorers', 'and {} over base'),
        ('table4_effects', 'several metrics, refresh', 'mean of 4', 'and win {}'),
        ('table4_effects', 'several metrics, refresh', 'HPS', 'but {} by HPS itself'),
        ('table4_effects', 'refresh, several metrics', 'mean of 4', 'over a fixed one and wins {}'),
        (
            'refresh',
            'weaker pull, every 25',
            'mean of the scorers',
            'BalancedDPO wins {} over base',
        ),
    ],
)
def test_win_rates_and_their_intervals(name, row, column, says):
    v, low, high = value(name, row, column)
    assert says.format(f'{v:.0f} % [{low:.0f}, {high:.0f}]') in README


def test_gains_without_intervals():
    ours, theirs = (
        value('table2_gains', f'{m} vs base', '', ('Pick-a-Pic', 'PartiPrompts', 'HPD'))
        for m in ('BalancedDPO', 'DiffusionDPO')
    )
    assert 'BalancedDPO gains {:.2f}, {:.2f} and {:.2f}'.format(*ours) in README
    assert f'DiffusionDPO {theirs[0]:.2f} each time' in README
    assert len({f'{g:.2f}' for g in theirs}) == 1
    for column, says in (
        ('majority', 'its gain falls from {:.2f} to {:.2f} and {:.2f}'),
        ('sum of losses', 'of the sum of losses from {:.2f} to {:.2f} and {:.2f}'),
        ('HPS alone', 'of HPS alone from {:.2f} to {:.2f} and {:.2f}'),
    ):
        assert (
            says.format(
                *(
                    table('noise_gains').loc[case, column]
                    for case in ('clean', '20 % flipped', '40 % flipped')
                )
            )
            in README
        )


def test_counts_of_cells_and_the_rank():
    said = (ROOT / 'paper_figures/icons/table1_finding.txt').read_text()
    over, stand = re.search(
        r'BalancedDPO beats base beyond the interval in (\d+) of 12 cells and loses in 0 \((\d+) of'
        r' these stand',
        said,
    ).groups()
    assert (
        f'beats the base model beyond the interval in {WORDS[int(over)]} of twelve cells,'
        f' {WORDS[int(stand)]} after correction for all 36' in README
    )
    wins, losses = re.search(
        r'BalancedDPO beats DiffusionDPO beyond the interval in (\d+) of 12 cells and loses in'
        r' (\d+)',
        said,
    ).groups()
    assert (
        f'beats DiffusionDPO in {WORDS[int(wins)]} and loses {WORDS[int(losses)]}, by PickScore'
        in README
    )
    ahead, behind = re.search(
        r'by gain it is ahead of (\d+) and behind (\w+)\.',
        (ROOT / 'paper_figures/icons/table3_finding.txt').read_text(),
    ).groups()
    assert f'By gain it is ahead of {WORDS[int(ahead)]} of its ten rivals' in README
    assert f'and behind {behind}.' in README
    ranks = table('seeds_ranking')['rank']
    assert f'BalancedDPO ranks {ranks["BalancedDPO"]} of {len(ranks)}' in README


def test_the_rivals():
    place = (
        pd.read_csv(ROOT / 'paper_figures/icons/rivals_summary.csv')
        .query('budget == "equal pairs"')
        .set_index('method')
    )
    span = lambda name, v: '{:.2f} [{:.2f}, {:.2f}]'.format(
        *(place.loc[name, f'{v}_{c}'] for c in ('mean', 'low', 'high'))
    )
    assert (
        f'BalancedDPO gains {span("BalancedDPO", "mean")}, DiffusionDPO'
        f' {place.loc["DiffusionDPO", "mean_mean"]:.2f}, votes weighed by confidence'
        f' {place.loc["Confidence votes", "mean_mean"]:.2f};' in README
    )
    assert f'Its worst scorer gains {span("BalancedDPO", "worst")}' in README
    assert {
        f'{place.loc[n, "worst_mean"]:.2f}'
        for n in ('Soft majority', 'Confidence votes', 'Majority, no refresh')
    } == {'0.09', '0.10'}
    assert 'the worst gains 0.09 or 0.10' in README
    for name, says in (
        ('CaPO', 'CaPO with'),
        ('MaPO', 'MaPO with'),
        ('SmPO-Diffusion', 'SmPO-Diffusion with'),
    ):
        assert f'{says} {place.loc[name, "mean_mean"]:.2f}' in README
    clear = pd.read_csv(ROOT / 'paper_figures/icons/rivals_differences.csv').query(
        'of == "mean" and p_holm < .05'
    )
    behind = {b: set(t.model_a) for b, t in clear.groupby('budget')}
    assert len(place) == 23
    assert not (clear['mean'] > 0).any()
    assert {'CaPO', 'MaPO', 'SmPO-Diffusion'} <= behind['equal pairs']
    assert (
        f'none is ahead of it beyond the seeds, {len(behind["equal pairs"])} are behind' in README
    )
    assert f'instead of as many pairs, {len(behind["equal compute"])} are behind too' in README
    by, rank = (
        table('rivals_scorers').loc['BalancedDPO'],
        table('rivals_left_out').loc['without aesthetic', 'rank of BalancedDPO'],
    )
    assert (
        f"Aesthetic's, {by.aesthetic:.2f}; by HPS it has {by.hps:.2f}, by PickScore"
        f' {by.pickscore:.2f}, and without Aesthetic it ranks {rank} of 23' in README
    )
    assert (
        "prefers the base model's pictures a little: {:.1f} % [{:.1f}, {:.1f}]".format(
            *value('rivals', 'BalancedDPO', 'base recognised')
        )
        in README
    )
    said = (ROOT / 'paper_figures/icons/votes_finding.txt').read_text()
    better, worse = re.search(
        r'of 8 other labels (\d+) are better beyond the seeds \(Holm\) and (\d+) worse', said
    ).groups()
    assert better == '0'
    assert f'none beats the plain majority of pairs, {WORDS[int(worse)]} are worse' in README
    gain = re.search(r'gains \+(\S+) \[\+(\S+), \+(\S+)\]', said).groups()
    assert 'BalancedDPO gains {} [{}, {}]. Intervals'.format(*gain) in README
