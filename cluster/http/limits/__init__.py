"""Limits: what a request may cost, and how much a client may ask for."""
