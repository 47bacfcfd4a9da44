"""Repeats: texts that make up a notable part of many documents, found in bounded memory."""

from edlm.config import Fraction, Positive, config

NOTABLE = 0.01  # share of the documents
MANY = 10  # documents: fewer copies are not boilerplate, whatever their share of a small split
COUNTED = 10_000  # texts: bounds the undercount below 0.01 % of the documents
SHOWN = 60  # characters


@config
class Repeated:
    """Text of a notable share of a split's documents, such as a deleted page's notice."""

    beginning: str
    """Its first 60 characters."""
    documents: Positive
    """Number of documents with this text: exact up to 10,000 distinct texts, else low by at most 0.01 % of all."""
    share: Fraction
    """Share of the documents with this text."""


class Repeats:
    """Counts of the most frequent texts among the documents added so far (Misra and Gries 1982)."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._beginnings: dict[int, str] = {}
        self._documents = self._missed = 0

    def add(self, key: int, text: str) -> None:
        """Count a document; equal texts have equal keys."""
        self._documents += 1
        if key in self._counts:
            self._counts[key] += 1
        elif len(self._counts) < COUNTED:
            self._counts[key], self._beginnings[key] = 1, text[:SHOWN]
        else:
            # One document of each of COUNTED + 1 texts cancels out: no count is low by more than the number of such
            # rounds, which is below documents / COUNTED.
            self._missed += 1
            self._counts = {key: count - 1 for key, count in self._counts.items() if count > 1}
            self._beginnings = {key: self._beginnings[key] for key in self._counts}

    def notable(self) -> tuple[Repeated, ...]:
        """Return the texts of at least MANY documents and more than NOTABLE of them, the most frequent first."""
        repeated = [
            Repeated(beginning=self._beginnings[key], documents=count, share=count / self._documents)
            for key, count in self._counts.items()
            if count >= MANY and count + self._missed > NOTABLE * self._documents
        ]
        return tuple(sorted(repeated, key=lambda text: (-text.documents, text.beginning)))
