"""Conditioning on the diffusion time: sinusoidal features modulate every layer (adaLN, Peebles and Xie 2023)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from edlm.models.float32_summed_layers import LayerNorm
from edlm.models.rotary import ROTARY_BASE
from edlm.models.row_invariance import SHARED, RowInvariantLinear, padded

WIDE_ROWS = 16  # AVX-512 takes another path for a remainder of fewer than 32 numbers; a row has at least two


TIME_FREQUENCIES = 128


@dataclass(frozen=True)
class TimeConditioning:
    """Makers of the modules by which a transformer reads the time."""

    time: Callable[[], nn.Module | None]
    """Embedding of the times [b] as [b c], called with the dtype; None: the network does not read the time."""
    norm: Callable[[], nn.Module]
    """Normalisation before attention or an MLP: x [b l h] and the embedded times become x and a gate, as in `AdaLN`."""
    last_norm: Callable[[], nn.Module]
    """Normalisation of the features; its gate is not read."""


class AdaLN(nn.Module):
    """Layer normalisation with a learned scale or, as adaLN, with scale, shift and gate computed from the time."""

    def __init__(self, width: int, time_conditioning: bool) -> None:
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=not time_conditioning, bias=False)
        self.modulate = RowInvariantLinear(TIME_FREQUENCIES, 3 * width) if time_conditioning else None
        if self.modulate is not None:  # zero: scale 1, shift 0, gate 1, so that time has no effect before training
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | float]:
        if self.modulate is None or condition is None:
            return self.norm(x), 1.0
        shift, scale, gate = self.modulate(condition)[:, None].chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, 1 + gate


class TimeEmbedding(nn.Module):
    """Embedding of t in [0, 1] by sines and cosines, mixed by two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = RowInvariantLinear(TIME_FREQUENCIES, width)
        self.second = RowInvariantLinear(width, TIME_FREQUENCIES)

    def forward(self, t: Float[Tensor, " b"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
        # In blocks too small to be split among threads: a thread's share may end anywhere within a row.
        widest = max(self.first.in_features, self.first.out_features)
        block = max(WIDE_ROWS, SHARED // widest // WIDE_ROWS * WIDE_ROWS)
        blocks = padded(t.float()[:, None], WIDE_ROWS).split(block)
        return torch.cat([self._mixed(times, dtype) for times in blocks])[: len(t)]

    def _mixed(self, t: Float[Tensor, "b 1"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
        half = TIME_FREQUENCIES // 2
        scale = torch.exp(-math.log(ROTARY_BASE) * torch.arange(half, device=t.device) / half)
        angle = 1000 * t * scale  # up to 1000 radians, as for a thousand discrete steps
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return F.silu(self.second(F.silu(self.first(waves.to(dtype)))))
