"""Ray Serve: deployment, replicas, model promotion and autoscaling."""
