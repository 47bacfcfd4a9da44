"""The grid of an evaluation: one file for each kind of measurement, each cell of it a task on its own."""
