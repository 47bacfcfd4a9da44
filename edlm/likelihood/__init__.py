"""Likelihood: bounds, the paths along which they are computed, exact values, and the paper's estimates."""

from edlm.likelihood.bounds import nelbo, sampler_bound
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import exact_order_nll
from edlm.likelihood.paper_estimator import paper_estimate

__all__ = ["Estimate", "exact_order_nll", "nelbo", "paper_estimate", "sampler_bound"]
