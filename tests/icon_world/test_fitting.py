"The loop that trains the icon world's networks."

import json

import pytest
import torch

from balanceddpo.icon_world.fitting import FitConfig, fit, learning_rate_at, seconds_spent


class Killed(Exception):
    pass


def curve_fit(folder, steps, die_at=None):
    "A parabola through noisy points, whose every draw comes from the step's generator."
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(3))

    def batch_loss(step, generator):
        if step == die_at:
            raise Killed
        x = torch.rand(8, generator=generator)
        return (
            (
                (weights[0] * x * x + weights[1] * x + weights[2] - torch.sin(x))
                + 0.1 * torch.randn(8, generator=generator)
            )
            .square()
            .mean()
        )

    fit(
        'parabola',
        [weights],
        batch_loss,
        FitConfig(steps=steps, warmup=3, keep_every=10, ema=0.9),
        folder,
    )
    return weights.detach().clone()


def test_a_run_that_was_stopped_ends_where_the_other_ends(tmp_path):
    whole = curve_fit(tmp_path / 'whole', 40)
    with pytest.raises(Killed):
        curve_fit(tmp_path / 'stopped', 40, die_at=27)
    assert torch.equal(whole, curve_fit(tmp_path / 'stopped', 40))
    # a finished run is not trained further
    assert torch.equal(whole, curve_fit(tmp_path / 'stopped', 40))


def test_the_clocks_of_all_sittings_are_added(tmp_path):
    # stopped at 100
    rows = [
        {'step': 50, 'seconds': 10},
        {'step': 100, 'seconds': 25},
        {'step': 100},
        {'step': 150, 'seconds': 8},
        {'step': 200, 'seconds': 16},
    ]
    (tmp_path / 'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    assert seconds_spent(tmp_path / 'log.jsonl') == 25 + 16


def test_the_learning_rate_by_hand():
    config = FitConfig(steps=200, learning_rate=2.0, warmup=4, decay=0.5)
    assert [learning_rate_at(s, config) for s in (0, 3, 99, 100, 150, 199)] == pytest.approx(
        [0.5, 2.0, 2.0, 2.0, 1.0, 0.02]
    )
