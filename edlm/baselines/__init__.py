"""Baselines: the published sampler and a naive one, to measure against."""
