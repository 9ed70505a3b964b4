"Comparisons that have names, and one measure of several tables."

import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.named_comparisons import measure_each, measure_named
from balanceddpo.evaluation.scores import mean_gains
from balanceddpo.evaluation.win_rates import compare, mean_win_rates
from figure_checks import SCORERS, made_up_scores

PAIRS = {'ours': ('BalancedDPO', 'base'), 'theirs': ('DiffusionDPO', 'base')}


@pytest.fixture(scope='module')
def scores():
    return made_up_scores(('base', 'DiffusionDPO', 'BalancedDPO'), sets=('hpd',))


@pytest.mark.parametrize('measure', [compare, mean_win_rates, mean_gains])
def test_the_values_are_those_of_the_measure_of_all_pairs(scores, measure):
    named = measure_named(measure, scores, PAIRS, SCORERS, ['who'])
    together = measure(scores, list(PAIRS.values()), SCORERS)
    pd.testing.assert_frame_equal(named.drop(columns='who'), together)
    each = len(together) // len(PAIRS)
    assert named.who.tolist() == ['ours'] * each + ['theirs'] * each


def test_a_name_has_as_many_parts_as_columns(scores):
    named = {('a', 'x'): PAIRS['ours'], ('b', 'x'): PAIRS['ours']}
    found = measure_named(mean_win_rates, scores, named, SCORERS, ['one', 'two'])
    assert found[['one', 'two']].values.tolist() == [['a', 'x'], ['b', 'x']]
    with pytest.raises(InputError, match=r"'a', 'x'.*needs a part for each column: one$"):
        measure_named(mean_win_rates, scores, named, SCORERS, ['one'])
    with pytest.raises(InputError, match="'ours'.*one, two"):
        measure_named(mean_win_rates, scores, PAIRS, SCORERS, ['one', 'two'])


def test_each_table_is_measured_by_itself():
    tables = {7: pd.DataFrame({'x': [1, 2]}), 3: pd.DataFrame({'x': [5]})}
    found = measure_each(lambda t: pd.DataFrame({'total': [t.x.sum()]}), tables, 'seed')
    assert found.to_dict('list') == {'total': [3, 5], 'seed': [7, 3]}
