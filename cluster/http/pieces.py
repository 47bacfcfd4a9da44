"""Pieces: the text of single tokens, each looked up once."""

from edlm.continuation import Continuation
from edlm.tokenizer import Tokenizer


class Pieces:
    """The text that each token adds to a document's end, with the space that it brings; U+FFFD for parts of letters.

    Where nothing ends a document, the text of the token by itself.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = Continuation(tokenizer, [] if tokenizer.separator is None else [tokenizer.separator])
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._text.whole([token])
        return self._known[token]
