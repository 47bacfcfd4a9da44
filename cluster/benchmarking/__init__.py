"""Services that are benchmarked against each other."""
