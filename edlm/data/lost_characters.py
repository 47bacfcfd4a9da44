"""Lost characters: the share of a corpus that its tokenizer drops."""

from collections import Counter
from collections.abc import Iterable

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


class Losses:
    """Counts of the characters that `tokenizer` loses in the inspected texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lost: Counter[str] = Counter()
        self._sample = 0

    def look(self, texts: Iterable[str]) -> None:
        """Count the characters lost among the first SAMPLED of a batch of documents."""
        remaining = SAMPLED
        for text in texts:
            piece = text[:remaining]
            self._lost.update(self._tokenizer.lost(piece))
            self._sample += sum(not letter.isspace() for letter in piece)
            remaining -= len(piece)
            if remaining == 0:
                return

    def notable(self) -> Lost | None:
        """Return the losses if they exceed NOTABLE of the characters, else None."""
        if self._lost.total() <= NOTABLE * self._sample:
            return None
        examples = tuple(letter for letter, _ in self._lost.most_common(NAMED))
        return Lost(share=self._lost.total() / self._sample, examples=examples, sample=self._sample)
