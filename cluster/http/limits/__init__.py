"""Limits on the cost of a request and on the work of an API key."""
