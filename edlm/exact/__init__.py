"""Sources of known distribution, and the models and energies that follow from it exactly."""
