"""Streaming of generated text as server-sent events."""
