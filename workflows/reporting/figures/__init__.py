"""Figures of an experiment, one module per kind; every function takes rows and returns a matplotlib Figure."""
