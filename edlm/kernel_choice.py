"""Which kernel draws random numbers on a device: one of Triton, or none, and torch's operators draw them."""

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


@functools.cache
def rng_kernel_for(device_type: str) -> Callable[[Tensor, int, torch.dtype], Tensor] | None:
    """Return `edlm.rng_kernel.drawn` on CUDA, where Triton is installed and can build what launches its kernels.

    Triton is there with torch's builds for CUDA on Linux, and not on Windows. It needs a C compiler and the headers of
    Python.
    """
    if device_type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file():
        return None
    from edlm.rng_kernel import drawn  # imports Triton, which takes a quarter of a second

    return drawn
