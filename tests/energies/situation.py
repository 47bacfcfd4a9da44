"""Candidates and noisy rows that an energy is asked about."""

import torch

from edlm import equations
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.sampling.candidates import propose
from tests.networks import base_of, denoiser, stirred

V, L = 5, 12


def situation(config: AbstractEnergyConfig, k: int = 3, b: int = 4):
    """A denoiser, an energy with stirred weights, and candidates at positions that differ from row to row."""
    net = denoiser(V)
    energy = stirred(config.build(net, base_of(config, net)), seed=3)
    g = torch.Generator().manual_seed(4)
    masked = torch.rand(b, L, generator=g) < torch.linspace(0.2, 1.0, b)[:, None]
    xt = torch.where(masked, net.mask, torch.randint(V, (b, L), generator=g))
    new = masked if energy.whole_sequence else masked & (torch.rand(b, L, generator=g) < 0.6)
    t = torch.linspace(0.2, 1.0, b, dtype=torch.float64)
    context = net.read(xt, t)
    u = torch.rand(b, k, L, generator=g, dtype=torch.float64)
    x, by_position = propose(net, context, xt, new, u)
    return net, energy, (x, xt, t, equations.sum_by_group(by_position, energy.block), context)
