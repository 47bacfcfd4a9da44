"""Infrastructure: Ray, DeepSpeed, MLflow and Ray Serve. The mathematics is in `edlm`."""
