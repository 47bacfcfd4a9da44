"""HTTP endpoint: turns requests into engine requests and their results into responses; imports no Ray or MLflow."""
