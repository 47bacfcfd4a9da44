"""MLflow tracking: runs, metrics, artifacts and the model registry."""
