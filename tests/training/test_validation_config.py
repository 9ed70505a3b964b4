"""What validation is told: rules to stop, which are read strictly, and when a run is validated."""

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.training.validation_config import (
    StopRule,
    ValidationConfig,
    stop_rule,
    validation_steps,
)


@pytest.mark.parametrize(
    'text, rule',
    [
        ('worst scorer < 0 for 3', StopRule('worst scorer', 0.0, 3)),
        ('  mean<-.5   for 1 ', StopRule('mean', -0.5, 1)),
        ('pick_score-2 < +1.25 for 10', StopRule('pick_score-2', 1.25, 10)),
        ('no better mean for 5', StopRule('mean', None, 5)),
        ('', None),
    ],
)
def test_a_rule_is_read(text, rule):
    assert stop_rule(text) == rule


@pytest.mark.parametrize(
    'text',
    [
        'worst scorer < 0',
        'worst scorer < 0 for 0',
        'worst scorer > 0 for 3',
        'worst scorer <= 0 for 3',
        'the worst scorer < 0 for 3',
        'mean < 0 for three',
        'mean < nan for 3',
        'mean < 1e3 for 2',
        'mean < 0 for 3 or hps < 0 for 2',
        'no better mean for 0',
        'no better hps for 3',
        'mean < 0 for 3\nmean',
    ],
)
def test_what_is_no_rule_is_refused_with_those_that_there_are(text):
    with pytest.raises(InputError, match="'worst scorer < X for N'.*'no better mean for N'"):
        stop_rule(text)


def test_patience_counts_from_the_best_and_an_equal_mean_is_not_better():
    patience = stop_rule('no better mean for 2')
    means = [0.5, 0.5, 0.6, 0.6, 0.4, 0.9]
    told = [patience.fires([{'hps': m} for m in means[:n]]) for n in range(1, 7)]
    assert told == [False, False, False, False, True, False]


def test_a_gain_at_the_line_is_not_below_it():
    rule = stop_rule('worst scorer < 0 for 2')
    assert not rule.fires([{'a': -1.0, 'b': 1.0}, {'a': 2.0, 'b': 0.0}])
    assert rule.fires([{'a': -1.0, 'b': 1.0}, {'a': 2.0, 'b': -0.0001}])


@pytest.mark.parametrize(
    'every, steps, expected',
    [(0, 4, [1, 2, 3, 4]), (0, 25, [3, 6, 9, 12, 15, 18, 21, 24, 25]), (7, 20, [7, 14, 20])],
)
def test_a_run_is_validated_every_so_many_steps_and_at_its_end(every, steps, expected):
    config = ValidationConfig(validation_prompts='icons:tuning', validate_every=every)
    assert validation_steps(config, steps) == expected


@pytest.mark.parametrize(
    'more, says',
    [
        (dict(stop_when='mean < 0 for 2'), 'name validation_prompts'),
        (dict(validate_every=-1), 'validate_every must be 0 or more'),
        (dict(validation_limit=0), 'validation_limit must be 1 or more'),
        (dict(validation_guidance=float('nan')), 'validation_guidance must be 0 or more'),
    ],
)
def test_settings_without_sense_are_refused(more, says):
    with pytest.raises(InputError, match=says):
        ValidationConfig(**more)
