"""The text that is certain so far: what a client may be told of a text on its way, each letter once and for good."""

from collections.abc import Sequence

from cluster.http.refusal import Refused
from edlm.stop import cut, settled
from edlm.tokenizer import Tokenizer


class CertainText:
    """Says what is new of a text whose tokens come in any order, up to the first that is still missing.

    A token once revealed never changes, so letters that were said stand. Kept back is what may still change: a
    character of which bytes are missing, and an end that may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, mask: int, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ends = (mask, tokenizer.separator)
        self._count, self._said = 0, ""

    def more(self, tokens: Sequence[int]) -> str:
        """What is new, given the tokens as they are now (the mask where there is none yet)."""
        before = self._count
        while self._count < len(tokens) and tokens[self._count] not in self._ends:
            self._count += 1
        if self._count == before:
            return ""
        text = self._tokenizer.decode(tokens[: self._count])
        end = cut(text, self._stops)
        return self._say(text[: settled(text, self._stops) if end is None else end])

    def rest(self, text: str) -> str:
        """What was not said yet of the finished text."""
        return self._say(text)

    def _say(self, text: str) -> str:
        if not text.startswith(self._said):
            # Only a tokenizer made elsewhere does this: one whose text of some tokens is no beginning of that of more.
            message = "this model's tokenizer changes its text as tokens are added; ask without stream"
            raise Refused(400, message, "stream", "unsupported_parameter")
        new, self._said = text[len(self._said) :], text
        return new
