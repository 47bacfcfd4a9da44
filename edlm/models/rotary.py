"""Rotary position embedding (Su et al. 2021): attention depends on the distance of two positions only."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class Rotary:
    """Angles by which pairs of channels of queries and keys are rotated, per position.

    Maps x = (x_1, x_2), halves of the channels, to (x_1 cos - x_2 sin, x_2 cos + x_1 sin). In float32, because bfloat16
    cannot distinguish far positions.
    """

    cos: Float[Tensor, "*b l c"]
    sin: Float[Tensor, "*b l c"]
    """For all channels, as `cos`; the first half holds -sin."""

    @classmethod
    def at(cls, positions: Int[Tensor, "*b l"], channels: int) -> "Rotary":
        """Return the angles at positions [l], the same for all rows, or [b l]."""
        half = channels // 2
        frequency = ROTARY_BASE ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
        angle = positions.float()[..., None] * frequency
        cos, sin = angle.cos(), angle.sin()
        return cls(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))

    def of(self, selected: Int[Tensor, "n m"]) -> "Rotary":
        """Select, from the angles of all positions, those at `selected` of each row."""
        return Rotary(self.cos[selected], self.sin[selected])

    def __call__(self, x: Float[Tensor, "*n a l c"]) -> Float[Tensor, "*n a l c"]:
        """Rotate the channels of x."""
        cos, sin = self.cos.unsqueeze(-3), self.sin.unsqueeze(-3)
        wide = x.to(torch.float32, memory_format=torch.contiguous_format)
        return (wide * cos + wide.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)
