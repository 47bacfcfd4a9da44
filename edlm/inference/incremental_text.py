"""Incremental text for streaming: characters are sent once no later token can change them."""

from collections.abc import Sequence

from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.stop_strings import cut, stop_free_length


class IncrementalText:
    """Incremental text of a sequence unmasked in any order, up to its first masked position.

    An unmasked token never changes, so characters that were returned stay valid. Characters that may still change
    (`CompletionDecoder.stable_prefix`) and a suffix that may be the start of a stop string are held back.
    """

    def __init__(self, text: CompletionDecoder, ends: Sequence[int | None], stops: Sequence[str], echo: bool) -> None:
        """`ends`: the mask and the separator. `echo`: start with the text of the tokens before it."""
        self._text, self._ends, self._stops, self._echo = text, ends, stops, echo
        self._count, self._emitted, self._added = -1, "", ""

    def more(self, tokens: Sequence[int]) -> str:
        """Return the new characters, given the current tokens (the mask at masked positions)."""
        count = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        if count == self._count:
            return ""
        self._count = count
        shared, text = self._text.stable_parts(tokens[:count])
        end = cut(text, self._stops)
        text = text[: stop_free_length(text, self._stops) if end is None else end]
        stable = shared + text if self._echo else text
        # A decoder that shortens the text ("a ." to "a.") may make less of it stable than before.
        if self._emitted.startswith(stable):
            return ""
        self._added = text
        return self._new_part(stable)

    def rest(self, text: str) -> str:
        """Return the part of the finished text that was not returned yet."""
        return self._new_part(text)

    def count(self, tokens: Sequence[int]) -> int:
        """Return how many tokens, of those last given to `more`, the returned characters are made of."""
        return self._text.count(self._added, tokens[: max(0, self._count)])

    def _new_part(self, text: str) -> str:
        assert text.startswith(self._emitted), "a stable prefix has changed"
        new, self._emitted = text[len(self._emitted) :], text
        return new
