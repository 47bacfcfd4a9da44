"""Decoding in context: the text that tokens add to the text of preceding tokens, complete or incremental.

Tokens may decode differently alone than after others: a leading space is dropped, and half a character is none. A
completion is therefore decoded with its prompt, and its text is what follows the longest common prefix of the joint
text and the prompt's text. That prefix is the whole text of the prompt, unless the completion changes it: if a prompt
given as tokens ends in half a character, the whole character belongs to the completion.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from edlm.data.tokenizer import Tokenizer


class CompletionDecoder:
    """Text that tokens add to the text of the tokens `before` them."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._before = tokenizer, list(before)

    def whole(self, tokens: Sequence[int]) -> str:
        """Return the text that all `tokens` add, when no token follows them."""
        return self._split(self._decode(tokens))[1]

    def stable_prefix(self, tokens: Sequence[int]) -> str:
        """Return the prefix of the added text that no later token can change."""
        return self._split(self._stable_prefix(tokens))[1]

    def echoed(self, tokens: Sequence[int], text: str) -> str:
        """Return `text`, the text that `tokens` add or a prefix of it, preceded by the shared text."""
        return self._split(self._decode(tokens))[0] + text

    def stable_parts(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Return the stable prefix of the joint text, split into the shared and the added text."""
        return self._split(self._stable_prefix(tokens))

    def count(self, text: str, tokens: Sequence[int]) -> int:
        """Return the number of tokens that it takes to add `text`, a prefix of what all of them add."""
        # Certain texts grow, so bisection applies; for a decoder that shortens a text (" ." to "."), the number may be
        # off by the tokens concerned. A text that is present but not stable began where the stable prefix last grew.
        full = len(text)
        grown = bisect_left(range(len(tokens)), full, key=lambda count: len(self.stable_prefix(tokens[:count])))
        least = len(self.stable_prefix(tokens[: grown - 1])) if grown else 0
        first = bisect_left(range(grown), least, key=lambda count: len(self.stable_prefix(tokens[:count])))
        return next(
            (count for count in range(first, grown) if self.whole(tokens[:count]).startswith(text)),
            grown,
        )

    @cached_property
    def _text(self) -> str:
        return self._tokenizer.decode(self._before)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._before, *tokens])

    def _stable_prefix(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.stable_prefix([*self._before, *tokens])

    def _split(self, text: str) -> tuple[str, str]:
        """Return `text` split at the end of the prefix that it shares with the text of the preceding tokens."""
        before = self._text
        shared = len(before)
        if not text.startswith(before):
            pairs = enumerate(zip(text, before, strict=False))
            shared = next((i for i, (new, old) in pairs if new != old), len(text))
        return text[:shared], text[shared:]
