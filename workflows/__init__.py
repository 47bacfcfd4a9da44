"""Workflows: one module per stage, and the pipeline that chains the stages."""

import cluster  # noqa: F401  # first, because it sets up the garbage collector for the imports that follow
