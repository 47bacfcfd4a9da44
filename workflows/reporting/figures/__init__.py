"""The figures of an experiment, one file for each kind; all of them take rows and give a matplotlib Figure."""
