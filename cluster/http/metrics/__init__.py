"""Metrics of the service, in Prometheus' form."""
