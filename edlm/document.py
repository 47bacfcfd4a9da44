"""What a corpus is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text, never blank, and where it was found."""

    text: str
    name: str
