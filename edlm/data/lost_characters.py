"""Lost characters: the share of a corpus that its tokenizer drops."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from edlm.config import Fraction, Positive, config
from edlm.data.tokenizer import Tokenizer

NOTABLE = 0.01  # share of the characters
SAMPLED = 10_000  # characters inspected per batch of documents
NAMED = 10  # characters listed as examples


@config
class Lost:
    """Characters of a corpus that its tokenizer loses, if they are a notable share.

    Letters and digits represented by no token except white space count as lost, and so does everything that the unknown
    token represents. Punctuation, symbols and accents do not: an alphabet without them drops them by design.
    """

    share: Fraction
    """Share of the characters that are not white space."""
    examples: tuple[str, ...]
    """Most frequent lost characters, at most ten."""
    sample: Positive
    """Characters inspected, without white space, among the first 10,000 of each batch of documents."""


@dataclass
class Losses:
    """Counts of the characters that a tokenizer loses in the inspected texts."""

    lost: Counter[str] = field(default_factory=Counter)
    sample: int = 0
    """Characters inspected, without white space."""

    def look(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        """Count the characters that `tokenizer` loses among the first SAMPLED of a batch of documents."""
        remaining = SAMPLED
        for text in texts:
            piece = text[:remaining]
            self.lost.update(tokenizer.lost(piece))
            self.sample += sum(map(len, piece.split()))
            remaining -= len(piece)
            if remaining == 0:
                return

    def add(self, other: "Losses") -> None:
        """Add the counts of texts that follow these: of equal counts, the first seen is named first."""
        self.lost.update(other.lost)
        self.sample += other.sample

    def notable(self) -> Lost | None:
        """Return the losses if they exceed NOTABLE of the characters, else None."""
        if self.lost.total() <= NOTABLE * self.sample:
            return None
        examples = tuple(letter for letter, _ in self.lost.most_common(NAMED))
        return Lost(share=self.lost.total() / self.sample, examples=examples, sample=self.sample)
