"Which settings of the rivals are searched, and how the search is shown and told."

import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.losses.methods import LOSSES
from balanceddpo.paper import study_of_settings as study
from balanceddpo.paper.rivals import RIVALS
from balanceddpo.recipes.table import RECIPES


def test_one_method_of_each_loss_is_searched_but_of_those_left_out():
    names = study.first_of_each_loss(RIVALS, but=['dpo'])
    losses = [RECIPES[name].loss for name in names]
    assert len(losses) == len({*losses})
    assert {*losses} == {RECIPES[name].loss for name in RIVALS} - {'dpo'}
    earlier = list(RIVALS)
    for name, loss in zip(names, losses):
        assert not [n for n in earlier[: earlier.index(name)] if RECIPES[n].loss == loss]


def test_the_published_betas_are_those_of_the_losses():
    found = study.published_betas(['CaPO', 'DSPO'])
    assert found == {
        'CaPO': LOSSES['capo'].defaults['beta'],
        'DSPO': LOSSES['dspo'].defaults['beta'],
    }


@pytest.mark.parametrize('ask', [study.first_of_each_loss, study.published_betas])
def test_an_unknown_method_is_refused(ask):
    with pytest.raises(InputError, match='GRPO'):
        ask(['GRPO'])


@pytest.fixture
def found():
    return pd.DataFrame(
        [
            ('A', 100, 1e-5, 0.1),
            ('A', 100, 1e-4, 0.3),
            ('A', 4, 1e-4, 0.2),
            ('A', 2500, 1e-4, -0.1),
            ('B', 2, 1e-5, -0.2),
            ('B', 2, 1e-4, 0.0),
            ('B', 50, 1e-4, -0.05),
        ],
        columns=['method', 'beta', 'rate', 'gain'],
    )


def test_the_grid_has_rates_and_then_multiples_of_beta(found):
    values, kinds = study.search_grid(found, {'B': 2, 'A': 100}, [1e-5, 1e-4], [0.04, 25])
    columns = ['rate 1e-05', 'rate 0.0001', 'beta x 0.04', 'beta x 25']
    assert values.columns.tolist() == kinds.columns.tolist() == columns
    assert values.loc['A'].tolist() == [0.1, 0.3, 0.2, -0.1]
    assert kinds.loc['A'].tolist() == ['above', 'chosen', 'above', 'below']
    assert kinds.loc['B'].tolist() == ['below', 'chosen', 'below', 'below']
    assert values.index.tolist() == ['B', 'A']
    assert {*kinds.stack()} == {*study.WORDS_OF_THE_SEARCH}


def test_a_gain_has_a_sign_and_what_was_not_tried_is_blank():
    assert study.text_of_gain(0.125) == '+0.12'
    assert study.text_of_gain(-1) == '-1.00'
    assert study.text_of_gain(float('nan')) == ''


def test_the_finding_tells_the_best_of_each(found):
    chosen = study.best_settings(found, ['A', 'B'])
    assert study.tell_settings(chosen, len(found)) == (
        'Best of 7 settings on the tuning prompts, gain in s.d. over base, mean of the four '
        'scorers: A rate 0.0001, beta 100: 0.30; B rate 0.0001, beta 2: 0.00.'
    )
