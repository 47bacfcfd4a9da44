"""The text that is certain so far: what a client may be told of a text on its way, each letter once and for good."""

from collections.abc import Sequence

from edlm.inference.continuation import Continuation
from edlm.inference.stop_strings import cut, settled


class IncrementalText:
    """Says what is new of a text whose tokens come in any order, up to the first that is still missing.

    A token once revealed never changes, so letters that were said stand. Kept back is what may still change
    (`Continuation.certain`), and an end that may be the beginning of a stop string.
    """

    def __init__(self, text: Continuation, ends: Sequence[int | None], stops: Sequence[str], echo: bool) -> None:
        """`ends`: the mask and the separator. `echo`: the text begins with that of the tokens before it."""
        self._text, self._ends, self._stops, self._echo = text, ends, stops, echo
        self._count, self._said = -1, ""

    def more(self, tokens: Sequence[int]) -> str:
        """What is new, given the tokens as they are now (the mask where there is none yet)."""
        count = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        if count == self._count:
            return ""
        self._count = count
        shared, text = self._text.certain_parts(tokens[:count])
        end = cut(text, self._stops)
        text = text[: settled(text, self._stops) if end is None else end]
        return self._say(shared + text if self._echo else text)

    def rest(self, text: str) -> str:
        """What was not said yet of the finished text."""
        return self._say(text)

    def _say(self, text: str) -> str:
        assert text.startswith(self._said), "a text that was certain has changed"
        new, self._said = text[len(self._said) :], text
        return new
