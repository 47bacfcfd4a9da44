"""Pieces: the text of single tokens, each looked up once."""

from edlm.tokenizer import Tokenizer


class Pieces:
    """The text of each token by itself; a token that is a part of a character shows the replacement character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._known = tokenizer, {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token])
        return self._known[token]
