"""Evaluation: the grid of measurements and its execution."""
