"""MLflow: runs, metrics, artifacts, the model registry."""
