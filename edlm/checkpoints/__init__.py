"""Checkpoints: model folders, the networks in them, and training state."""
