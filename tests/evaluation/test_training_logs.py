"What a training's log says, on logs of which every row is known."

from math import log as ln

import pandas as pd
import pytest

from balanceddpo.evaluation.training_logs import (
    clipped_share,
    losses_after_refresh,
    refresh_losses,
)


def training_log(losses, refreshed_after):
    "A log whose reference was refreshed after the steps of these places."
    refreshed = [int(i in refreshed_after) for i in range(len(losses))]
    return pd.DataFrame({'step': range(len(losses)), 'loss': losses, 'refreshed': refreshed})


def test_the_loss_after_a_refresh_is_that_of_the_next_step():
    log = training_log([0.7, 0.6, 0.5, 0.4], refreshed_after={0, 2})
    assert losses_after_refresh(log).tolist() == [0.6, 0.4]


def test_no_step_follows_a_refresh_after_the_last_one():
    log = training_log([0.7, 0.6], refreshed_after={1})
    assert losses_after_refresh(log).empty
    row = refresh_losses({'run': log}).loc['run']
    assert row['refreshes'] == 1
    assert pd.isna(row['loss after one, mean'])
    assert pd.isna(row['furthest from ln 2'])


def test_the_furthest_from_ln_2_is_so_on_either_side():
    logs = {
        'below': training_log([0.7, 0.5, 0.7, 0.1, 0.7], refreshed_after={0, 2}),
        'above': training_log([0.7, 0.9, 0.7, 0.6, 0.7], refreshed_after={0, 2}),
    }
    found = refresh_losses(logs)
    assert found['loss after one, mean'].tolist() == pytest.approx([0.3, 0.75])
    assert found['furthest from ln 2'].tolist() == pytest.approx([ln(2) - 0.1, 0.9 - ln(2)])


def test_the_end_is_the_mean_of_the_last_steps_and_runs_may_have_names_of_several_parts():
    log = training_log([9.0] * 5 + [1.0] * 9 + [2.0], refreshed_after=set())
    found = refresh_losses({('all weights', 'never'): log, ('LoRA', 'never'): log[:-1]})
    assert found.index.nlevels == 2
    assert found.loc[('all weights', 'never'), 'loss at the end'] == pytest.approx(1.1)
    assert found.loc[('LoRA', 'never'), 'loss at the end'] == pytest.approx(1.8)
    assert refresh_losses({'run': log}, last=1).loc['run', 'loss at the end'] == 2


def test_a_gradient_as_long_as_the_limit_is_not_cut():
    log = pd.DataFrame({'grad_norm': [0.5, 1.0, 1.1, 3.0, 0.1]})
    assert clipped_share(log, 1.0) == 0.4
