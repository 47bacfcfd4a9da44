"""DeepSpeed, imported without what it does not need here and what costs every worker seconds."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed, which detects the accelerator when it is imported, and return it.

    Its autotuner would import MLflow, and its Muon torch's compiler; neither is used.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with unavailable("mlflow"):
        import deepspeed
    with _muon_as_it_is_written():
        import deepspeed.runtime.zero.muon.muon_optimizer  # ZeRO imports it, too
    # The CPU's shared-memory collectives would be compiled at the first start; gloo's need no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def unavailable(module: str) -> Iterator[None]:
    """Make imports of an optional module fail within, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own mark of a module that there is not
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def _muon_as_it_is_written() -> Iterator[None]:
    """Leave the functions that DeepSpeed's Muon has compiled as they are, when it is imported within."""
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        yield
    finally:
        compiler.compile = compiled
