"""Dirichlet draws as pure functions of counter-based uniforms: a source's parameters depend on its seed alone.

NumPy's generator is not used because its streams, and with them every distribution, may change between releases.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from edlm.rng import Purpose, uniforms


def dirichlet(seed: int, part: int, rows: int, size: int, concentration: float) -> Float64[Tensor, "rows size"]:
    """Draw `rows` vectors from the symmetric Dirichlet of this concentration; `part` is a key within the seed.

    A row is the softmax of log gamma draws, so that a tiny concentration gives zeros and never 0 / 0.
    """
    return _log_gamma(seed, part, (rows, size), concentration).softmax(dim=-1)


def _log_gamma(seed: int, part: int, shape: tuple[int, ...], a: float) -> Float64[Tensor, "..."]:
    """Return the logarithms of independent Gamma(a, 1) draws (Marsaglia and Tsang 2000).

    Proposals are numbered, and each entry takes its first accepted one. They follow Gamma(a + 1, 1), and
    Gamma(a) = Gamma(a + 1) U^(1/a).
    """
    d = a + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    result = torch.full(shape, torch.nan, dtype=torch.float64)
    attempt = 0
    while result.isnan().any():
        attempt += 1
        u = uniforms(seed, attempt, part, Purpose.PARAMETER, (*shape, 3))
        normal = (-2 * u[..., 0].log()).sqrt() * torch.cos(2 * math.pi * u[..., 1])  # Box and Muller 1958
        v = (1 + c * normal) ** 3
        log_v = v.clamp(min=0).log()
        accepted = u[..., 2].log() < normal**2 / 2 + d * (1 - v + log_v)  # false where v <= 0
        result = torch.where(result.isnan() & accepted, math.log(d) + log_v, result)
    return result + uniforms(seed, 0, part, Purpose.PARAMETER, shape).log() / a
