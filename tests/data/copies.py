"""Copies of texts, which differ in what makes no other text."""

import unicodedata


def marred(text, choices):
    """A copy of `text` with other line ends, white space behind lines, and another Unicode form."""
    form, end, behind, last = choices
    lines = unicodedata.normalize(form, text).split("\n")
    return end.join(line + behind for line in lines) + last
