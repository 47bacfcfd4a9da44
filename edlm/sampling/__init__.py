"""Sampling: one denoising step, candidates, resampling, speculative decoding."""
