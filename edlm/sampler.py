"""The sampler under its short name; it lives in `edlm.sampling.sampler`."""

from edlm.sampling.sampler import EXACT, Sampler

__all__ = ["EXACT", "Sampler"]
