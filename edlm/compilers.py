"""What kernels are compiled with on this machine, by torch.compile and by Triton."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from edlm.config import ConfigurationError


def require_compiler(device: torch.device) -> None:
    """Raise ConfigurationError, which says what to install, unless torch.compile can compile for this device."""
    if missing := missing_to_compile(device.type):
        raise ConfigurationError(
            f"compiled: to compile for a device {device.type!r} this machine lacks {missing}; or set compiled: false"
        )


def missing_to_compile(device_type: str) -> str | None:
    """Return what is missing to compile kernels for a device, and how to get it; None if nothing is.

    On CUDA torch compiles by Triton, which builds what launches its kernels with a C compiler, and elsewhere with a C++
    compiler. Both look for a compiler under these names, and need the headers of Python.
    """
    if device_type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton: install torch for CUDA on Linux, which brings it"
        language, variable, names, package = "C", "CC", ("gcc", "clang"), "gcc"
    else:
        names = ("clang++",) if sys.platform == "darwin" else ("g++",)
        language, variable, package = "C++", "CXX", "g++"
    if given := os.environ.get(variable):
        names = (given,)
    if not any(map(shutil.which, names)):
        return (
            f"a {language} compiler, {' or '.join(names)}: install it (Debian: apt-get install {package}), or name "
            f"another in the variable {variable}"
        )
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return None if header.is_file() else f"{header}: install Python's headers (Debian: apt-get install python3-dev)"
