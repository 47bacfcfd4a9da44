"""Likelihood: bounds, the paths of the sampler along which they are computed, and the paper's estimates."""

from edlm.likelihood.bounds import nelbo, sampler_bound
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.paper import paper_estimate

__all__ = ["Estimate", "nelbo", "paper_estimate", "sampler_bound"]
