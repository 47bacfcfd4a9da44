"""Hard constraints: texts of a regular language, with the distribution still known (docs/mathematics.md 3.7)."""
