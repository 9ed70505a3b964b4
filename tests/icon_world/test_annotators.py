"The simulated annotators: their qualities by hand, and that they are seeded, fair and blind."

import pytest
import torch

from balanceddpo.icon_world.annotators import judge, qualities, utility
from balanceddpo.icon_world.world import Icon, truths


def test_qualities_by_hand():
    icon = Icon(0, 0, 1)
    true = truths([icon])
    found = qualities(torch.cat([true, true - 0.05]).clamp(0, 1), [icon, icon])
    assert found['drawing'][0] == 0
    assert found['background'][0].abs() < 1e-6
    assert found['clean'][0].abs() < 1e-6
    assert found['background'][1].item() == pytest.approx(-0.05 / 0.08, abs=1e-4)
    assert found['drawing'][1] < 0


def test_simulated_annotators_are_seeded_fair_and_blind_where_they_should_be():
    equal = torch.zeros(4000)
    labels = judge(equal, equal, seed=1)
    assert torch.equal(labels, judge(equal, equal, seed=1))
    assert not torch.equal(labels, judge(equal, equal, seed=2))
    assert (labels == 1).sum().item() == pytest.approx((labels == 0).sum().item(), abs=200)
    # a tie: |difference of two normals of s.d. .1| < .05, that is erf(.05/(.1*2)) = 0.276
    assert (labels == 0.5).float().mean().item() == pytest.approx(0.276, abs=0.025)
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blind = [
        utility(qualities(pictures, [Icon(c, 0, b)] * 3), 'aesthetic') for c, b in ((0, 0), (99, 5))
    ]
    assert torch.allclose(*blind)
