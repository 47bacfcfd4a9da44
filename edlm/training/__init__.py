"""Training: the objectives, the loop, and an engine for one process."""
