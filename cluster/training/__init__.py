"""Distributed training: Ray Train workers and the DeepSpeed engine."""
