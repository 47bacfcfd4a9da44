"""Decoding in context: the text that tokens add to the text of the tokens before them, whole or as they come.

Tokens by themselves may say something else than after others: a first space is left out, half a letter is none. So a
completion is decoded with its prompt, and its text is what the text of both has after the longest beginning that it
shares with the prompt's. That is all of the prompt's text, unless the completion changes it: where a prompt given as
tokens ends in half a letter, the whole letter belongs to the completion.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from edlm.data.tokenizer import Tokenizer


class Continuation:
    """What tokens add to the text of those `before` them."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._before = tokenizer, list(before)

    def whole(self, tokens: Sequence[int]) -> str:
        """Return what all the tokens add: nothing follows them."""
        return self._split(self._decode(tokens))[1]

    def certain(self, tokens: Sequence[int]) -> str:
        """Return the beginning of what the tokens add that no token after them can change."""
        return self._split(self._certain(tokens))[1]

    def echoed(self, tokens: Sequence[int], text: str) -> str:
        """Return `text`, which the tokens add or which is the beginning of that, behind the text before it."""
        return self._split(self._decode(tokens))[0] + text

    def certain_parts(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Return the certain beginning of the text of all, parted into the shared text and the added."""
        return self._split(self._certain(tokens))

    def count(self, text: str, tokens: Sequence[int]) -> int:
        """Return how many of the tokens it takes to add `text`, a beginning of what all of them add."""
        # Certain texts only grow, so they can be searched by halves. A text that is there, but not for certain, began
        # where the certain one grew last.
        full = len(text)
        grown = bisect_left(range(len(tokens)), full, key=lambda count: len(self.certain(tokens[:count])))
        least = len(self.certain(tokens[: grown - 1])) if grown else 0
        first = bisect_left(range(grown), least, key=lambda count: len(self.certain(tokens[:count])))
        return next(
            (count for count in range(first, grown) if self.whole(tokens[:count]).startswith(text)),
            grown,
        )

    @cached_property
    def _text(self) -> str:
        return self._tokenizer.decode(self._before)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._before, *tokens])

    def _certain(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.certain([*self._before, *tokens])

    def _split(self, text: str) -> tuple[str, str]:
        """Return the text parted where it parts from that of the tokens before."""
        before = self._text
        shared = len(before)
        if not text.startswith(before):
            pairs = enumerate(zip(text, before, strict=False))
            shared = next((i for i, (one, other) in pairs if one != other), len(text))
        return text[:shared], text[shared:]
