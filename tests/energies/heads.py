"""The light heads by their definitions, position by position, without gathering positions."""

import torch
from torch import Tensor

from tests.networks import base_of, denoiser, stirred

V, L, ROWS, K = 5, 10, 7, 3
EDGE = V + 1


def built(config):
    """A denoiser and the energy on it, with stirred weights."""
    net = denoiser(V)
    return net, stirred(config.build(net, base_of(config, net)), seed=3)


@torch.no_grad()
def rows(net):
    """Candidates at positions that differ from row to row: nothing new, all of it, each edge alone, and at random."""
    g = torch.Generator().manual_seed(4)
    masked = torch.rand(ROWS, L, generator=g) < 0.7
    new = masked & (torch.rand(ROWS, L, generator=g) < 0.6)
    masked[:4], new[:4] = True, False
    new[1], new[2, 0], new[3, -1] = True, True, True
    xt = torch.where(masked, net.mask, torch.randint(V, (ROWS, L), generator=g))
    x = torch.where(new[:, None], torch.randint(V, (ROWS, K, L), generator=g), xt[:, None])
    t = torch.linspace(0.2, 1.0, ROWS, dtype=torch.float64)
    return x, xt, t, new, net.read(xt, t)


def beside(text: list[int], at: int, offset: int) -> int:
    """The token at `offset` from a position, the edge's id beyond the canvas."""
    return text[at + offset] if 0 <= at + offset < len(text) else EDGE


def through(head, z: Tensor, positions: list[int], causal: bool) -> Tensor:
    """The layers on one sequence [m h]."""
    rotary = head.layers.rotary(torch.tensor(positions)[None])
    for layer in head.layers:
        z = layer(z[None], rotary, causal=causal)[0]
    return head.norm(z)
