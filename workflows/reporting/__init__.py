"""The report: rows of an evaluation in, sentences, tables and figures out, for the terminal and for a page."""
