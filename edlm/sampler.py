"""Alias of `edlm.sampling.sampler`, which has the code: a short import path, `from edlm.sampler import Sampler`."""

from edlm.sampling.sampler import EXACT, Sampler

__all__ = ["EXACT", "Sampler"]
