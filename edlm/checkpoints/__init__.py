"""Checkpoints: model folders, the networks in them, and the state of a training."""
