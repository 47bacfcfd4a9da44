"""Short import path of the sampler, which is defined in `edlm.sampling.sampler`."""

from edlm.sampling.sampler import EXACT, Sampler

__all__ = ["EXACT", "Sampler"]
