"""Estimate: a mean over sequences with its standard error, and paired differences."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean over sequences. `draws` is the number of noise samples per sequence."""

    values: Float64[Tensor, " b"]
    draws: int

    @property
    def mean(self) -> float:
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error over sequences; NaN for a single one."""
        return (self.values.std() / math.sqrt(len(self.values))).item() if len(self.values) > 1 else math.nan


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Return a - b per sequence, so that its standard error is the paired one."""
    if len(a.values) != len(b.values):
        raise ValueError(f"estimates of {len(a.values)} and {len(b.values)} sequences cannot be paired")
    return Estimate(a.values - b.values, min(a.draws, b.draws))
