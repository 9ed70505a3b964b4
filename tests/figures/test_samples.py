"""Votes, outcomes at the same seed, spreads and their figures: worked by hand, against an
independent way, and drawn as the tables say."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.win_rates import compare_scores, score_summary, score_table
from balanceddpo.figures.samples import (
    adherence_caption,
    beyond_zero,
    difference_table,
    first_of_each,
    first_split,
    in_deviations,
    mean_table,
    paper_deviations,
    plot_differences,
    plot_distributions,
    plot_seed_scores,
    plot_vote,
    same_seed_outcomes,
    sample_grid,
    say_differences,
    seed_spread,
    size_of,
    spread_table,
    told_apart,
    vote_title,
    with_places,
)
from balanceddpo.figures.tables import COLUMN, PAGE, image_grid, save_figure
from balanceddpo.paper.numbers import SCORERS

SETS = ('pickapic', 'partiprompts', 'hpd')


def picture(color='red', size=64):
    return Image.new('RGB', (size, size), color)


def made(models=('base', 'BalancedDPO'), sets=SETS, seed=0):
    rng = np.random.default_rng(seed)
    return pd.concat(
        [
            score_table(m, {k: 0.2 * j + rng.normal(size=(12, 5)) for k in SCORERS}, prompt_set=s)
            for s in sets
            for j, m in enumerate(models)
        ]
    )


def texts_outside(fig):
    "The texts of a figure that do not lie wholly inside it."
    fig.draw_without_rendering()
    page = fig.bbox
    ticks = [
        (ax.get_xlim(), x, t)
        for ax in fig.axes
        for x, t in zip(ax.get_xticks(), ax.get_xticklabels())
    ]
    # matplotlib draws none of these
    unseen = {t for (low, high), x, t in ticks if not low <= x <= high}
    found = [
        t
        for t in fig.findobj(lambda a: hasattr(a, 'get_text'))
        if t.get_visible() and t.get_text().strip() and t not in unseen
    ]
    boxes = [(t.get_text(), t.get_window_extent()) for t in found]
    return [
        text
        for text, b in boxes
        if b.x0 < -0.5 or b.y0 < -0.5 or b.x1 > page.width + 0.5 or b.y1 > page.height + 0.5
    ]


# votes


def test_the_first_split_is_the_first_for_either_image_and_with_abstentions_none():
    votes = np.array([[1, 1, 0, 1], [1, -1, -1, 1], [-1, -1, -1, 1], [1, 1, 1, -1], [-1] * 4])
    assert [first_split(votes, s) for s in ('3-0', '2-2', '3-1', '1-3', '4-0')] == [0, 1, 2, 2, 4]
    with pytest.raises(InputError, match='split 3-1; they split 2-2'):
        first_split(votes[1:2], '3-1')


@pytest.mark.parametrize(
    'votes,title',
    [
        ([1, 1, -1], '2 of 3 scorers vote for image 0'),
        ([-1, 0, -1, 1], '2 of 4 scorers vote for image 1'),
        ([1, -1], '1 of 2 scorers vote for each image: a tie'),
    ],
)
def test_a_vote_in_words(votes, title):
    assert vote_title(votes) == title


def test_scores_get_the_decimals_that_tell_them_apart():
    pairs = {
        (0.95371, 0.95374): ('0.95371', '0.95374'),
        (6.066, 6.066): ('6.066', '6.066'),
        (-13.431, 12.3): ('-13.43', '12.30'),
        (1.0, 1 + 1e-9): ('1.000000', '1.000000'),
    }
    assert [told_apart(*p) for p in pairs] == list(pairs.values())
    assert [size_of(2.0, b, 4.0) for b in (2.0, 1.0, 2.01)] == [
        'equal: counts for image 0',
        'by 0.25 s.d.',
        'by less than 0.01 s.d.',
    ]


@pytest.mark.parametrize(
    'scores,count,winner',
    [
        # equal scores vote for image 0, Eq. 6
        (
            {
                'hps': (0.28, 0.27),
                'clip': (0.31, 0.36),
                'pickscore': (21.4, 20.9),
                'aesthetic': (5.6, 5.6),
            },
            ['3', '1'],
            0,
        ),
        (
            {
                'hps': (0.27, 0.28),
                'clip': (0.31, 0.36),
                'pickscore': (21.4, 21.9),
                'aesthetic': (5.7, 5.6),
            },
            ['1', '3'],
            1,
        ),
        (
            {
                'hps': (0.27, 0.28),
                'clip': (0.31, 0.36),
                'pickscore': (21.4, 20.9),
                'aesthetic': (5.7, 5.6),
            },
            ['2', '2'],
            None,
        ),
    ],
)
@pytest.mark.parametrize('width', [4.5, PAGE])
def test_the_figure_of_a_vote_counts_as_equations_6_and_7(scores, count, winner, width):
    fig = plot_vote(
        [picture(), picture('blue')],
        scores,
        r'a prompt with a $ and a \ in it',
        dict.fromkeys(SCORERS, 0.1),
        human=0,
        width=width,
    )
    texts = [t.get_text() for t in fig.texts]
    assert texts_outside(fig) == []
    assert texts[texts.index('votes') + 2 :][0] == count[0]
    at = texts.index('votes')
    assert [t for t in texts[at:] if t.isdigit()] == count
    arrows = [texts.count(x) for x in '◀▶']
    assert arrows == [int(n) + (winner == i) for i, n in enumerate(count)]
    assert [ax.get_xlabel() for ax in fig.axes] == [
        f'image {i}' + ' wins' * (winner == i) for i in (0, 1)
    ]
    # .01 and .05 in units of .1
    assert 'by 0.10 s.d.' in texts
    assert 'by 0.50 s.d.' in texts
    assert texts[-1].endswith('annotator: a tie')


# samples


def test_every_sample_is_shown_once_with_its_prompt():
    colors = [(i, 0, 0) for i in range(7)]
    fig = sample_grid(
        [picture(c) for c in colors], [f'prompt {i}' for i in range(7)], across=3, title='seven'
    )
    assert [
        int(ax.images[0].get_array()[0, 0, 0])
        for ax in sorted(fig.axes, key=lambda ax: (-ax.get_position().y0, ax.get_position().x0))
    ] == list(range(7))
    below = {t.get_text(): t.get_position() for t in fig.texts if t.get_text().startswith('prompt')}
    for ax in fig.axes:
        x, y = below[f'prompt {int(ax.images[0].get_array()[0, 0, 0])}']
        box = ax.get_position()
        assert box.x0 < x < box.x1
        assert 0 < box.y0 - y < 0.05
    # no room is left for row names
    assert texts_outside(fig) == []
    assert min(ax.get_position().x0 for ax in fig.axes) * PAGE < 0.1
    with pytest.raises(InputError, match='2 for 1'):
        sample_grid([picture()], ['a', 'b'])


def test_names_over_narrow_columns_do_not_touch():
    names = ['base', 'Aesthetic', 'CLIP', 'HPS', 'PickScore', 'DiffusionDPO', 'BalancedDPO']
    fig = image_grid([[picture()] * 7], ['a prompt'], names, truth=[picture()], title='seven')
    fig.draw_without_rendering()
    heads = sorted(
        (t.get_window_extent() for t in fig.texts if t.get_text() in [*names, 'true render']),
        key=lambda b: b.x0,
    )
    assert len(heads) == 8
    assert all(a.x1 < b.x0 for a, b in zip(heads, heads[1:]))


def test_places_are_the_middles_of_equal_parts():
    assert with_places(['a', 'b']) == ['a (25\xa0%)', 'b (75\xa0%)']


# the same seed


def test_outcomes_against_a_loop_and_the_first_of_each():
    rng = np.random.default_rng(3)
    a, b = (
        pd.concat(
            [
                score_table(
                    m,
                    {'recognised': rng.integers(0, 2, (9, 3))},
                    prompt_set=s,
                    seeds=np.arange(27).reshape(9, 3),
                )
                for s in SETS
            ]
        )
        for m in ('x', 'y')
    )
    found = same_seed_outcomes(a, b.sample(frac=1, random_state=0))
    for row in found.itertuples():
        u, v = (
            t[
                (t.prompt_set == row.prompt_set)
                & (t.prompt_id == row.prompt_id)
                & (t.image_index == row.image_index)
            ].recognised.item()
            for t in (a, b)
        )
        assert (
            row.outcome
            == {(1, 0): 'x only', (0, 1): 'y only', (1, 1): 'both', (0, 0): 'neither'}[u, v]
        )
    picks, order = first_of_each(found, 2, index=1), ['x only', 'y only', 'both', 'neither']
    by_hand = [
        (r.prompt_set, r.prompt_id, o)
        for o in order
        for r in found[(found.outcome == o) & (found.image_index == 1)][:2].itertuples()
    ]
    assert picks == by_hand
    assert len(picks) == 8


def test_other_seeds_or_prompts_are_refused():
    a, b = (score_table(m, {'recognised': [[1, 0]]}) for m in 'ab')
    for other in (b.assign(seed=b.seed + 1), b[:1], b.assign(prompt_id='7')):
        with pytest.raises(InputError, match='differ in their prompts or seeds'):
            same_seed_outcomes(a, other)


def test_captions_mark_each_part():
    caption = adherence_caption(('red apple', 'flat', 'blue'), ('red apple', 'noto', 'blue'))
    assert caption.replace(' \xa0', ' | ').replace('\xa0', ' ') == '✓ red apple | ✗ flat | ✓ blue'
    with pytest.raises(ValueError):
        adherence_caption(('a',), ('a', 'b'))


# spreads and differences


def test_seed_spread_is_what_pandas_says():
    scores = made(sets=SETS[:1])
    a, b = (scores[scores.model == m] for m in ('BalancedDPO', 'base'))
    found = seed_spread(a, b, SCORERS).set_index('scorer')
    x, y = (t.groupby('prompt_id')[list(SCORERS)].std() for t in (a, b))
    assert np.allclose(found.spread_a, x.mean(), rtol=1e-6)
    assert np.allclose(found.difference, (x - y).mean(), atol=1e-6)
    from scipy.stats import bootstrap

    for k in SCORERS:
        theirs = bootstrap(
            ((x - y)[k].to_numpy(),), np.mean, method='percentile', n_resamples=9999, rng=1
        ).confidence_interval
        assert np.allclose([found.low[k], found.high[k]], theirs, atol=0.02)


def test_differences_in_deviations_have_the_unit_of_their_own_set_and_scorer():
    scores = made()
    scores.loc[scores.prompt_set == 'hpd', 'clip'] *= 10
    raw = compare_scores(scores, [('BalancedDPO', 'base')], SCORERS)
    units = in_deviations(raw, scores)
    for r, u in zip(raw.itertuples(), units.itertuples()):
        sd = (
            scores[(scores.model == 'base') & (scores.prompt_set == r.prompt_set)][r.scorer]
            .astype(float)
            .std()
        )
        assert np.allclose(
            [u.difference * sd, u.low * sd, u.high * sd], [r.difference, r.low, r.high]
        )
    with pytest.raises(InputError, match="'other'"):
        in_deviations(raw, scores, 'other')


def test_the_papers_differences_in_its_deviations():
    "HPS .0022/.0130, .0037/.0130, .0015/.0130; Aesthetic -.0020/.1049, .0174/.1049, .0194/.1049."
    found = paper_deviations(
        [('DiffusionDPO', 'base'), ('BalancedDPO', 'base'), ('BalancedDPO', 'DiffusionDPO')]
    ).set_index(['scorer'])
    assert found.loc['hps', 'difference'].round(3).tolist() == [0.169, 0.285, 0.115]
    assert found.loc['aesthetic', 'difference'].round(3).tolist() == [-0.019, 0.166, 0.185]
    assert found.low.isna().all()
    assert set(found.prompt_set) == {'the paper'}


def test_tables_hold_ours_and_the_papers():
    scores = made(('base', 'DiffusionDPO', 'BalancedDPO'))
    summary = score_summary(scores, SCORERS)
    five, six = (
        mean_table(summary),
        spread_table(score_summary(scores[scores.model == 'base'], SCORERS)),
    )
    assert five.shape == (3 * 3 + 3, 8)
    assert five.loc[('the paper', 'BalancedDPO'), ('Aesthetic', 'mean')] == 4.5034
    assert five.loc[('the paper', 'SD1.5'), ('CLIP', 's.d.')] == 0.0461
    assert np.isnan(five.loc[('the paper', 'DiffusionDPO'), ('CLIP', 's.d.')])
    own = scores[(scores.model == 'DiffusionDPO') & (scores.prompt_set == 'hpd')]['clip'].astype(
        float
    )
    assert np.allclose(five.loc[('HPD', 'DiffusionDPO'), 'CLIP'], [own.mean(), own.std()])
    assert list(five.index.get_level_values(0).unique()) == [
        'Pick-a-Pic',
        'PartiPrompts',
        'HPD',
        'the paper',
    ]
    assert six.shape == (4 * 4, 6)
    assert six.loc[('Aesthetic', 'SD1.5, the paper')].round(2).tolist() == [
        4.49,
        4.10,
        4.79,
        0.10,
        -3.71,
        2.88,
    ]
    assert np.allclose(six['mean'] + six['min, in s.d.'] * six['s.d.'], six['min'])


def test_a_scorer_the_paper_lacks_has_no_paper_row():
    summary = score_summary(
        made(sets=SETS[:1]).rename(columns={'clip': 'recognised'}), ('hps', 'recognised')
    )
    assert len(spread_table(summary[summary.model == 'base'])) == 3
    assert mean_table(summary).shape == (2 + 3, 4)


def test_differences_as_table_and_words():
    found = compare_scores(made(), [('BalancedDPO', 'base')], SCORERS)
    table = difference_table(found)
    cell = found[(found.prompt_set == 'hpd') & (found.scorer == 'clip')]
    assert table.shape == (3, 4)
    assert table.loc[('HPD', 'BalancedDPO minus base'), 'CLIP'] == cell.difference.item()
    rows = pd.DataFrame(
        {
            'scorer': ['hps', 'x'],
            'difference': [0.01234, -2e-18],
            'low': [0.001, -0.5],
            'high': [0.02, -1e-4],
        }
    )
    assert say_differences(rows) == 'HPS +0.012 [+0.001, +0.02], x +0 [-0.5, -0.0001]'
    assert beyond_zero(rows) == '1 of 2 above zero beyond the interval, 1 below'


# figures


def test_the_figure_of_differences_shows_the_numbers():
    scores = made(('base', 'DiffusionDPO', 'BalancedDPO'))
    pairs = [('DiffusionDPO', 'base'), ('BalancedDPO', 'base'), ('BalancedDPO', 'DiffusionDPO')]
    found = pd.concat(
        [in_deviations(compare_scores(scores, pairs, SCORERS), scores), paper_deviations(pairs)]
    )
    fig = plot_differences(found, 'A title')
    assert texts_outside(fig) == []
    assert len(fig.axes) == 4
    for ax, name in zip(fig.axes, found.prompt_set.unique()):
        here = found[found.prompt_set == name]
        marks = [x for x in ax.lines if x.get_marker() in list('osD')]
        assert sorted(m.get_xdata()[0] for m in marks) == pytest.approx(sorted(here.difference))
        assert len({m.get_ydata()[0] for m in marks}) == len(here)
        assert all((m.get_markerfacecolor() == 'white') == (name == 'the paper') for m in marks)
        spans = [
            tuple(x.get_xdata())
            for x in ax.lines
            if x.get_linewidth() == 1.3 and x.get_marker() == 'None'
        ]
        assert (
            np.allclose(sorted(spans), sorted(zip(here.low, here.high)))
            if name != 'the paper'
            else spans == []
        )


def test_the_distributions_are_those_of_the_scores():
    scores = made(('base',))
    fig = plot_distributions(scores, SCORERS, 'A title')
    assert texts_outside(fig) == []
    assert len(fig.axes) == 4
    for ax, k in zip(fig.axes, SCORERS):
        x = scores[scores.prompt_set == 'hpd'][k].to_numpy(float)
        line = [v for v in ax.lines if v.get_ydata()[0] == pytest.approx(2.85)]
        ends = [tuple(v.get_xdata()) for v in line]
        assert ends[0] == (x.min(), x.max())
        assert ends[1] == pytest.approx((x.mean() - x.std(ddof=1), x.mean() + x.std(ddof=1)))
        assert ends[2] == pytest.approx((x.mean(),))
        heights = [2.75 - v for v in ax.patches[2].get_data().values]
        counts, _ = np.histogram(x, ax.patches[2].get_data().edges)
        assert counts.sum() == len(x)
        assert np.allclose(heights, 0.6 * counts / counts.max())


def test_every_seeds_score_is_drawn_in_its_line():
    scores = made(sets=SETS[:1])
    prompts = {'3': 'the third prompt, which has a rather long text that goes on', '7': 'short'}
    fig = plot_seed_scores(scores, SCORERS, prompts, 'A title')
    assert texts_outside(fig) == []
    for ax, k in zip(fig.axes, SCORERS):
        for i, p in enumerate(prompts):
            dots = [
                v for v in ax.lines if v.get_marker() in list('os') and round(v.get_ydata()[0]) == i
            ]
            for dot, m in zip(dots, ('base', 'BalancedDPO')):
                assert np.array_equal(
                    dot.get_xdata(),
                    scores[(scores.prompt_id == p) & (scores.model == m)][k].astype(float),
                )


def test_figures_are_the_same_bytes(tmp_path):
    scores = made()
    found = in_deviations(compare_scores(scores, [('BalancedDPO', 'base')], SCORERS), scores)
    for draw in (
        lambda: plot_differences(found),
        lambda: plot_distributions(scores[scores.model == 'base'], SCORERS),
        lambda: plot_seed_scores(scores[scores.prompt_set == 'hpd'], SCORERS, {'0': 'p'}),
        lambda: plot_vote([picture()] * 2, {k: (1.0, 2.0) for k in SCORERS}),
        lambda: sample_grid([picture()] * 3, list('abc'), width=COLUMN),
    ):
        assert [p.read_bytes() for p in save_figure(draw(), tmp_path / 'a')] == [
            p.read_bytes() for p in save_figure(draw(), tmp_path / 'b')
        ]
