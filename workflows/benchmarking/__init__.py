"""Benchmarks: the contestants, the timing of their races, and the documents about them."""
