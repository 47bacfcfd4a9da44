"""Workflows: one module per stage, and the pipeline that chains the stages."""
