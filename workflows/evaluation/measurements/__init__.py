"""Measurements of an evaluation grid: one module per kind, each measurement a task of its own."""
