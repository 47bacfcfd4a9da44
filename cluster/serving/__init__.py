"""Ray Serve: deployment, replicas, promotion of models, autoscaling."""
