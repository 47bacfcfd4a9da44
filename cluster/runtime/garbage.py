"""Garbage collection in a process that has imported torch and Ray, whose million objects stay for good."""

import functools
import gc


@functools.cache  # once per process: what later work leaves behind is collected
def freeze_imports() -> None:
    """Leave every object that exists now out of the collections to come, as reading a vocabulary causes them."""
    gc.freeze()
