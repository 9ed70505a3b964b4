"What a loss sees: errors and logits of both images of a pair, and what does not belong together."

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from balanceddpo.core.errors import InputError
from balanceddpo.losses.outputs import Outputs, by_votes, pair_logits


def make(n=6):
    "n random pairs of latents of 3 x 2 elements, decided, shared and without a label."
    draw = torch.Generator().manual_seed(0)
    policy, reference, target = torch.randn(3, n, 2, 3, 2, generator=draw)
    kinds = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])
    return Outputs(policy, reference, target, kinds.repeat(n // 3, 1))


@pytest.mark.parametrize('convention', ['mean', 'sum'])
def test_errors_and_logits_against_a_loop(convention):
    outputs = replace(make(), convention=convention)
    for i in range(6):
        p, r = (
            [
                getattr((x[i, image] - outputs.target[i, image]).double().square(), convention)()
                for image in (0, 1)
            ]
            for x in (outputs.prediction, outputs.reference_prediction)
        )
        assert_close(outputs.errors[i].double(), torch.stack(p), rtol=1e-5, atol=1e-6)
        assert_close(outputs.reference_errors[i].double(), torch.stack(r), rtol=1e-5, atol=1e-6)
        ahead = -2.0 * ((p[0] - p[1]) - (r[0] - r[1]))  # beta 4
        assert_close(pair_logits(outputs, 4.0)[i].double(), ahead, rtol=1e-4, atol=1e-5)


def test_weights_choose_and_mix():
    outputs = make()
    if_0, if_1 = torch.arange(6.0), 10 + torch.arange(6.0)
    expected = [0.0, 0.25 * 1 + 0.75 * 11, 0.0, 3.0, 0.25 * 4 + 0.75 * 14, 0.0]
    assert by_votes(outputs, if_0, if_1).tolist() == expected
    assert outputs.signed.tolist() == [1, -0.5, 0] * 2
    assert outputs.labelled.tolist() == [1, 1, 0] * 2


def test_outputs_refuse_what_does_not_belong_together():
    good = make()
    with pytest.raises(InputError, match=r'\[n, 2, ...\]'):
        replace(good, prediction=good.prediction.flatten(0, 1))
    with pytest.raises(InputError, match='weights'):
        replace(good, weights=torch.ones(6))
    with pytest.raises(InputError, match='weights'):
        replace(good, weights=torch.ones(3, 2))
    cut = replace(good, target=good.target[:, :1])
    with pytest.raises(InputError, match='shapes'):
        _ = cut.errors
    median = replace(good, convention='median')
    with pytest.raises(InputError, match='convention'):
        _ = median.errors
    with pytest.raises(InputError, match='reference'):
        pair_logits(replace(good, reference_prediction=None), 4.0)
