"""Sources with a known distribution, and the exact models and energies derived from it."""
