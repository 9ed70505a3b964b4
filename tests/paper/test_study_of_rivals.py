"What the study of rivals counts and says, from runs whose gains are known."

import itertools

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.runs import mean_and_worst
from balanceddpo.paper import rivals
from balanceddpo.paper import study_of_rivals as study
from balanceddpo.paper.experiments import training_settings
from balanceddpo.paper.scales import ICONS, SMOKE
from balanceddpo.paper.study_of_rivals import COMPUTE, PAIRS

NAMES = ['IPO', 'CaPO', 'BalancedDPO', 'Soft majority']
ONCE = {'IPO', 'BalancedDPO'}


def test_what_is_asked_for_is_read_from_texts():
    assert study.methods_in('CaPO, target 1 ;SUM', ['IPO']) == ['CaPO, target 1', 'SUM']
    assert study.methods_in('all', ('IPO', 'SUM')) == ['IPO', 'SUM']


@pytest.mark.parametrize(
    'device, more', [('cpu', ''), ('cuda', ' --parameters device=cuda workers=3')]
)
def test_a_command_names_the_device_unless_it_is_the_cpu(device, more):
    made = {'device': device, 'workers': 3, 'made_on': 'a machine'}
    assert study.command_on('votes', 'icons', made) == (
        f'balanceddpo reproduce votes --scale icons{more}'
    )


# costs


@pytest.fixture(scope='module')
def passes():
    table = study.count_passes(ICONS, rivals.RIVALS, pool=[200, 8], small_pool=[100, 4])
    return table.set_index('method')


def test_at_equal_compute_all_take_what_diffusion_dpo_takes(passes):
    plain = training_settings(ICONS, 'DiffusionDPO')
    budget = 8 * plain.max_steps * plain.batch_size
    for name, row in passes.iterrows():
        a_step = row['passes a pair'] * training_settings(ICONS, name).batch_size
        drawn = 100 * 4 * ICONS.steps * 2 if row['drawing images'] else 0
        assert abs(row['steps at equal compute'] * a_step + drawn - budget) <= a_step / 2
        assert row['drawing images'] in (0, 200 * 8 * ICONS.steps * 2)


def test_costs_are_in_units_of_diffusion_dpo(passes):
    settings = {name: training_settings(ICONS, name) for name in passes.index}
    table = study.cost_table(passes, settings)
    share = table["all, in DiffusionDPO's"]
    assert share['DiffusionDPO'] == 1
    assert share['Supervised fine-tuning'] == 6 / 8
    assert share['CaPO'] == pytest.approx(1 + 200 * 8 * 12 * 2 / (8 * 100 * 32))
    assert table.columns.tolist().index(share.name) == 2


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match='GRPO'):
        study.count_passes(SMOKE, ['GRPO'], [6, 4], [3, 2])


def test_one_run_serves_where_the_steps_are_the_same_and_nothing_is_drawn():
    columns = {'steps at equal compute': [100, 100, 38], 'drawing images': [0, 96, 0]}
    passes = pd.DataFrame(columns, index=['IPO', 'CaPO', 'DDIM-InPO'])
    assert study.methods_of_one_run(passes, 100) == {'IPO'}


# runs


def made_gains(once=ONCE, seeds=(1, 2, 3)):
    "Gains of four methods by three scorers at both budgets, those of one run the same at both."
    rng = np.random.default_rng(0)
    level = dict(zip(NAMES, (0.5, -0.1, 0.2, 0.3)))
    rows = []
    for budget, seed, name in itertools.product((PAIRS, COMPUTE), seeds, NAMES):
        if budget == COMPUTE and name in once:
            rows += [(COMPUTE, *r[1:]) for r in rows if r[:3] == (PAIRS, seed, name)]
            continue
        for k, scorer in enumerate(('hps', 'clip', 'aesthetic')):
            gain = level[name] + 0.1 * k + 0.01 * rng.normal()
            rows.append((budget, seed, name, scorer, gain))
    return pd.DataFrame(rows, columns=['budget', 'seed', 'model_a', 'scorer', 'difference'])


@pytest.fixture(scope='module')
def gains():
    return study.without_repeats(made_gains(), ONCE)


@pytest.fixture(scope='module')
def runs(gains):
    return mean_and_worst(gains, ['budget', 'seed', 'model_a'])


def test_repeats_come_back_as_they_were():
    whole = made_gains()
    left = study.without_repeats(whole, ONCE)
    assert len(left) == len(whole) - 3 * 3 * len(ONCE)
    again = study.with_repeats(left, ONCE)
    order = ['budget', 'seed', 'model_a', 'scorer']
    pd.testing.assert_frame_equal(
        again.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True)
    )


def test_standings_are_means_over_the_seeds_with_one_width(runs):
    place = study.standings(runs, ONCE)
    assert len(place) == 2 * len(NAMES)
    whole = mean_and_worst(made_gains(), ['budget', 'seed', 'model_a'])
    expected = whole.groupby(['budget', 'model_a'])[['mean', 'worst']].mean()
    for row in place.itertuples():
        assert row.mean_mean == pytest.approx(expected.at[(row.budget, row.method), 'mean'])
        assert row.worst_mean == pytest.approx(expected.at[(row.budget, row.method), 'worst'])
    width = place.worst_high - place.worst_low
    assert width.tolist() == pytest.approx([width[0]] * len(place))


def test_a_picture_of_standings_has_a_point_for_each_method_at_equal_pairs(runs):
    figure = study.plot_frontier(study.standings(runs, ONCE), 'Made up')
    words = [text.get_text() for text in figure.findobj() if hasattr(text, 'get_text')]
    assert {*NAMES} <= {*words}


def test_variants_stand_on_our_side():
    assert study._side('Soft majority') == study._side('BalancedDPO')
    assert study._side('IPO') == 'rivals'


def test_all_are_compared_with_ours_at_equal_pairs(runs):
    apart = study.differences_from_ours(runs, 'worst', ONCE)
    ours = runs[(runs.model_a == 'BalancedDPO') & (runs.budget == PAIRS)].worst.mean()
    for _, row in apart.iterrows():
        budget = PAIRS if row.model_a in ONCE else row.budget
        own = runs[(runs.model_a == row.model_a) & (runs.budget == budget)].worst.mean()
        assert row['mean'] == pytest.approx(own - ours)
    assert sorted(apart[apart.budget == COMPUTE].model_a) == ['CaPO', 'IPO', 'Soft majority']
    # corrected for the runs that were made, each once: IPO, and CaPO and the soft majority twice
    made = apart[~((apart.budget == COMPUTE) & apart.model_a.isin(ONCE))]
    assert len(made) == 5
    assert made.p_holm.min() == pytest.approx(5 * made.p.min())


def test_ours_of_another_run_is_compared_with_ours_at_equal_pairs(gains):
    table = made_gains(once={'IPO'})
    runs = mean_and_worst(study.without_repeats(table, {'IPO'}), ['budget', 'seed', 'model_a'])
    apart = study.differences_from_ours(runs, 'mean', {'IPO'})
    own = apart[apart.model_a == 'BalancedDPO']
    assert own.budget.tolist() == [COMPUTE]
    assert abs(own['mean'].item()) < 0.02


def test_a_scorer_that_is_left_out_counts_in_nothing(gains):
    means = study.gains_at_pairs(gains, NAMES, ['hps', 'clip', 'aesthetic'])
    assert means.index.tolist() == NAMES
    left = study.left_out_table(gains, means, ONCE)
    rest = means[['clip', 'aesthetic']].mean(axis=1)
    row = left.loc['without hps']
    assert row['gain'] == pytest.approx(rest['BalancedDPO'])
    assert row['rank of BalancedDPO'] == 3
    assert (row.ahead, row.behind) == (2, 1)
    other = gains.assign(difference=gains.difference.where(gains.scorer != 'hps', 99.0))
    means = study.gains_at_pairs(other, NAMES, ['hps', 'clip', 'aesthetic'])
    pd.testing.assert_series_equal(study.left_out_table(other, means, ONCE).loc['without hps'], row)


# win rates


def test_win_rates_over_base_have_the_spread_of_their_scorer_and_end_where_rates_end():
    rates = pd.DataFrame(
        [
            (PAIRS, name, opponent, scorer, rate)
            for (name, opponent, scorer), of_seeds in {
                ('IPO', 'base', 'hps'): (60, 70),
                ('CaPO', 'base', 'hps'): (50, 50),
                ('IPO', 'base', 'clip'): (99, 97),
                ('IPO', 'BalancedDPO', 'hps'): (40, 44),
                ('CaPO', 'BalancedDPO', 'hps'): (30, 30),
            }.items()
            for rate in of_seeds
        ],
        columns=['budget', 'model_a', 'model_b', 'scorer', 'win_rate'],
    )
    won = study.mean_win_rates(rates)
    table, (low, high) = study.win_rate_tables(won, ['CaPO', 'IPO'], ['hps', 'clip'])
    assert table.index.tolist() == ['CaPO', 'IPO']
    assert table.loc['IPO'].tolist()[:3] == [65, 98, 42]
    width = (high - low)['base', 'hps']
    assert width['IPO'] == pytest.approx(width['CaPO'])
    assert high.loc['IPO', ('base', 'clip')] == 100
    # each its own: two equal seeds have no interval
    assert np.isnan(low.loc['CaPO', ('BalancedDPO', 'hps')])
    assert table.columns.tolist() == [
        (opponent, scorer) for opponent in ('base', 'BalancedDPO') for scorer in ('hps', 'clip')
    ]


# in words


def place_and_apart():
    "Standings and differences of three methods, with round numbers."
    methods = ['IPO', 'CaPO', 'BalancedDPO']
    place = pd.DataFrame(
        {
            'budget': [PAIRS] * 3 + [COMPUTE] * 3,
            'method': methods * 2,
            'mean_mean': [0.3, 0.1, 0.2, 0.3, 0.4, 0.2],
            'worst_mean': [-0.1, 0.1, 0.0, -0.1, 0.3, 0.0],
        }
    )
    for measure in ('mean', 'worst'):
        place[f'{measure}_low'] = place[f'{measure}_mean'] - 0.05
        place[f'{measure}_high'] = place[f'{measure}_mean'] + 0.05
    apart = pd.DataFrame(
        {
            'budget': [PAIRS, PAIRS, COMPUTE, COMPUTE],
            'model_a': methods[:2] * 2,
            'mean': [0.1, -0.1, 0.1, 0.2],
            'p_holm': [0.2, 0.01, 0.2, 0.04],
        }
    )
    return place, apart


def test_the_finding_tells_the_leaders_and_the_order():
    assert study.tell_rivals(*place_and_apart(), n_seeds=3) == (
        'Gain over base in s.d., 3 methods, 3 training seeds: '
        'at equal pairs first by the mean of the scorers IPO 0.30 [0.25, 0.35], by the worst CaPO '
        '0.10 [0.05, 0.15]; BalancedDPO 0.20 [0.15, 0.25] and 0.00 [-0.05, 0.05]; '
        'at equal compute first by the mean of the scorers CaPO 0.40 [0.35, 0.45], by the worst '
        'CaPO 0.30 [0.25, 0.35]; BalancedDPO 0.20 [0.15, 0.25] and 0.00 [-0.05, 0.05]. '
        'By the mean, beyond the seeds (Holm), '
        'at equal pairs 0 of 2 are ahead of it and 1 behind (CaPO); '
        'at equal compute 1 of 2 are ahead of it and 0 behind.'
    )


def test_shown_are_those_the_study_is_about_and_the_first_and_last():
    place, _ = place_and_apart()
    assert study.methods_to_show(place) == ['BalancedDPO', 'CaPO', 'IPO']


def test_seconds_are_those_of_all_pairs_of_a_training():
    place = pd.DataFrame({'budget': [PAIRS, COMPUTE], 'method': 'SmPO-Diffusion'})
    distances = place.assign(seed=1, distance=[0.002, 0.001])
    passes = pd.DataFrame({'steps at equal compute': [33]}, index=['SmPO-Diffusion'])
    names = ('DiffusionDPO', 'SmPO-Diffusion')
    settings = {name: training_settings(ICONS, name) for name in names}
    pace = {'SmPO-Diffusion': 0.25}
    found = study.summary_table(place, distances, passes, settings, pace)
    assert found.seconds.tolist() == [100 * 32 / 4, 33 * 32 / 4]
    assert found.distance.tolist() == [2, 1]
