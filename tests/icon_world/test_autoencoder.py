"The linear code that the latents of the icon world are."

import pytest
import torch

from balanceddpo.icon_world import world as icons
from balanceddpo.icon_world.autoencoder import fit_linear_code, pictures_of, to_patches


def test_the_linear_code_is_sklearns():
    from numpy.linalg import eigh

    pictures = pictures_of(icons.all_icons()[::97])
    code = fit_linear_code(pictures, channels=5)
    patches = to_patches(pictures).reshape(-1, 192).double()
    values = eigh(torch.cov(patches.T).numpy())[0][::-1]
    left = (code.decode(code.encode(pictures)) - pictures).square().mean().item()
    assert left == pytest.approx(
        values[5:].sum() / 192, rel=2e-3
    )  # what five components cannot hold
    assert code.encode(pictures).std().item() == pytest.approx(1, rel=0.02)
