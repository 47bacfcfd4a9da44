"""Lost characters: how much of a corpus its tokenizer passes over."""

from collections import Counter
from collections.abc import Iterable

from edlm.config import Fraction, Positive, config
from edlm.data.tokenizer import Tokenizer

NOTABLE = 0.01  # of the characters
SAMPLED = 10_000  # characters of each batch of documents that are looked at
NAMED = 10  # characters


@config
class Lost:
    """What a tokenizer loses of a corpus, where it is a notable part.

    Lost are letters and digits that no token stands for but white space, and whatever the unknown token stands for.
    Punctuation, symbols and accents are not: an alphabet without them is made to leave them out.
    """

    share: Fraction
    """Of the characters that are no white space."""
    examples: tuple[str, ...]
    """The most frequent ones, at most ten."""
    sample: Positive
    """Characters that were looked at: the first 10,000 of each batch of documents."""


class Losses:
    """Counts of what `tokenizer` loses of the texts that it is shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lost: Counter[str] = Counter()
        self._sample = 0

    def look(self, texts: Iterable[str]) -> None:
        """Count what is lost of the first SAMPLED characters of a batch of documents."""
        left = SAMPLED
        for text in texts:
            piece = text[:left]
            self._lost.update(self._tokenizer.lost(piece))
            self._sample += sum(not letter.isspace() for letter in piece)
            left -= len(piece)
            if left == 0:
                return

    def notable(self) -> Lost | None:
        """What is lost, where it is more than NOTABLE of the characters."""
        if self._lost.total() <= NOTABLE * self._sample:
            return None
        examples = tuple(letter for letter, _ in self._lost.most_common(NAMED))
        return Lost(share=self._lost.total() / self._sample, examples=examples, sample=self._sample)
