"""Repeats: texts that make up a notable part of many documents, found in bounded memory."""

from edlm.config import Fraction, Positive, config

NOTABLE = 0.01  # of the documents
MANY = 10  # documents: fewer copies are no boilerplate, whatever their part of a small split
COUNTED = 10_000  # texts: counts are then short by less than 0.01 % of the documents
SHOWN = 60  # characters


@config
class Repeated:
    """A text that fills a notable part of a split, as a deleted page's notice does."""

    beginning: str
    """Its first 60 characters."""
    documents: Positive
    """How many documents are this text: exact up to 10,000 different texts, else short by at most 0.01 % of all."""
    share: Fraction
    """The part of the documents that they are."""


class Repeats:
    """Counts of the texts that are most frequent among the documents added so far (Misra and Gries 1982)."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._beginnings: dict[int, str] = {}
        self._documents = self._missed = 0

    def add(self, key: int, text: str) -> None:
        """Count a document; `key` is equal for equal texts."""
        self._documents += 1
        if key in self._counts:
            self._counts[key] += 1
        elif len(self._counts) < COUNTED:
            self._counts[key], self._beginnings[key] = 1, text[:SHOWN]
        else:
            # One document of each of COUNTED + 1 texts is set off against the others: no count is short by more than
            # the number of such rounds, which is below documents / COUNTED.
            self._missed += 1
            self._counts = {key: count - 1 for key, count in self._counts.items() if count > 1}
            self._beginnings = {key: self._beginnings[key] for key in self._counts}

    def notable(self) -> tuple[Repeated, ...]:
        """Every text that is MANY documents or more and more than NOTABLE of them, the most frequent first."""
        found = [
            Repeated(beginning=self._beginnings[key], documents=count, share=count / self._documents)
            for key, count in self._counts.items()
            if count >= MANY and count + self._missed > NOTABLE * self._documents
        ]
        return tuple(sorted(found, key=lambda text: (-text.documents, text.beginning)))
