"""Energies of data and of proposal samples tell the two apart as an exact energy does."""

import math

import pytest
import torch

from edlm.evaluation.calibration import energies_of_pairs
from edlm.interfaces import Model
from edlm.schedule import LogLinear
from tests.worlds import Marginals, OnProposal, Residual, world
from workflows.evaluation.measurements.calibration import auc, reliability

DENSE = world("dense", seed=1)


@pytest.mark.parametrize("drafts", [True, False])
def test_the_exact_energy_is_calibrated_and_its_opposite_is_not(drafts):
    """sigmoid(-E*) = q / (q + p_theta): among the samples of which it says so, that share is data."""
    copies = 3000
    x0 = DENSE.texts[torch.multinomial(DENSE.p, copies, replacement=True, generator=torch.Generator().manual_seed(0))]
    reader, exact = Marginals(DENSE, mix=0.2), Residual(DENSE, whole_sequence=drafts)
    data, noise = energies_of_pairs(x0, Model(reader, exact, LogLinear()), 0, 2, (0.25, 1.0))
    for bin in reliability(data, noise):
        assert abs(bin["predicted"] - bin["observed"]) < 4 * 0.5 / math.sqrt(bin["count"])
    assert auc(data, noise) > 0.55
    assert auc(-data, -noise) < 0.45


def test_a_residual_energy_is_distinguished_from_its_own_proposal():
    x0 = DENSE.texts[torch.multinomial(DENSE.p, 3000, replacement=True, generator=torch.Generator().manual_seed(0))]
    same, other = OnProposal(DENSE, DENSE), OnProposal(DENSE, world("dense", seed=5))
    data, noise = energies_of_pairs(x0, Model(Marginals(DENSE), same, LogLinear()), 0, 1, (0.5, 1.0))
    assert data.abs().max() < 1e-9
    assert noise.abs().max() < 1e-9
    data, noise = energies_of_pairs(x0, Model(Marginals(DENSE), other, LogLinear()), 0, 1, (0.5, 1.0))
    for bin in reliability(data, noise):
        assert abs(bin["predicted"] - bin["observed"]) < 4 * 0.5 / math.sqrt(bin["count"])
