"""The machines: Ray, DeepSpeed, MLflow and Serve, and nothing of the mathematics."""
