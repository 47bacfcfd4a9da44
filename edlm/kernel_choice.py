"""Which kernel draws random numbers on a device: one of Triton, or none, and torch's operators draw them."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from edlm.compilers import missing_to_compile


@functools.cache
def rng_kernel_for(device_type: str) -> Callable[[Tensor, int, torch.dtype], Tensor] | None:
    """Return `edlm.rng_kernel.drawn` on CUDA, where Triton is installed and can build what launches its kernels.

    Triton is there with torch's builds for CUDA on Linux, and not on Windows.
    """
    if device_type != "cuda" or missing_to_compile(device_type):
        return None
    from edlm.rng_kernel import drawn  # imports Triton, which takes a quarter of a second

    return drawn
