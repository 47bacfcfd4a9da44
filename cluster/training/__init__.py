"""Training on the cluster: Ray Train workers and the DeepSpeed engine."""
