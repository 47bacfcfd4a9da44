"""Server-sent events of a generation."""
