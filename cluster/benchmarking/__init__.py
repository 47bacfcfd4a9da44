"""Services to benchmark against one another."""
