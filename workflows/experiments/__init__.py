"""Experiments: complete and runnable, each YAML file self-contained."""
