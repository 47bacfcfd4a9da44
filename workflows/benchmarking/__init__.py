"""Benchmarks: who runs, how the race is timed, and what a person reads afterwards."""
