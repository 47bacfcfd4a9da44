"""Report of an evaluation: turns its rows into sentences, tables and figures, for the terminal and as a page."""
