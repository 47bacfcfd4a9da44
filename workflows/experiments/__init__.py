"""Complete, runnable experiments; each YAML stands on its own."""
