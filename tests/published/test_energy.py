"""EDLM's NCE energy has the published values, for any number of candidates."""

import pytest
import torch

from edlm.checkpoints.model_folder import load_into
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.published.energy import PublishedEnergy
from edlm.published.layout import heads_of, our_weights, sizes_of
from tests.networks import denoiser
from tests.published.checkpoints import TOKENS, every_golden, golden, published, reference


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def opened(tensors: dict[str, torch.Tensor], time_conditioning: bool) -> PublishedEnergy:
    sizes = sizes_of(tensors)
    config = EDLMEnergyConfig(
        width=sizes.width,
        layers=sizes.layers,
        heads=heads_of(tensors, sizes.width) or 0,
        conditioning_width=sizes.conditioning_width or 0,
        time_conditioning=time_conditioning,
    )
    energy = config.build(denoiser(sizes.vocabulary))
    load_into(energy, our_weights(tensors, sizes))
    return energy.eval()


@every_golden
def test_the_energies_are_the_published_ones(layout):
    tensors, values, time_conditioning = golden(layout, "edlm_nce_energy")
    energy, nothing = opened(tensors, time_conditioning), torch.zeros(0)
    actual = energy(values["x1"][:, None], values["xt"], values["t"], nothing, nothing)
    torch.testing.assert_close(actual[:, 0, 0], values["energy_of_x1"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_random_weights_of_another_shape_give_the_energies_of_the_description_to_each_candidate(time_conditioning):
    tensors, g = published("energy"), torch.Generator().manual_seed(1)
    x, t = torch.randint(TOKENS, (4, 3, 9), generator=g), torch.tensor([0.01, 0.3, 0.9, 1.0])
    xt = torch.where(torch.rand(4, 9, generator=g) < 0.6, TOKENS, x[:, 0])
    sigma = -torch.log(1 - (1 - 1e-3) * t.double()) if time_conditioning else torch.zeros(4)
    actual = opened(tensors, time_conditioning)(x, xt, t, torch.zeros(0), torch.zeros(0))
    assert actual.shape == (4, 3, 1)
    for j in range(3):
        expected = reference(tensors, xt, sigma, second=x[:, j])
        torch.testing.assert_close(actual[:, j, 0], expected, atol=1e-5, rtol=1e-5)
