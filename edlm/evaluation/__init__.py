"""Evaluation: judges, quality of texts, and distances from a known distribution."""
