"""Kernel that draws random numbers in an exported model: none, in place of `edlm.kernel_choice`.

The bits are the same. Triton would be one more package to import, and torch brings it for CUDA only.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def rng_kernel_for(device_type: str) -> Callable[[Tensor, int, torch.dtype], Tensor] | None:  # noqa: ARG001
    """Return None: torch's operators draw on every device."""
    return None
