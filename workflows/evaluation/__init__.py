"""The grid of measurements, and how it is run."""
