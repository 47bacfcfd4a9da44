"""Planning: the time grid of a sampler and the computation spent on each step."""
