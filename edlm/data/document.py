"""Documents: the units of a corpus, with a bound on their length."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edlm.data.text_key import text_key

# Characters per document; few documents have more. Tokenization takes about 150 bytes of memory per byte of UTF-8, so
# a document of 4-byte characters takes 150 MB.
LONGEST = 250_000


@dataclass(frozen=True)
class Document:
    """One text, never blank, and its location."""

    text: str
    name: str
    whole_key: int | None = None
    """Key of the whole text that this one is a piece of; None if that text was not in memory, or if this is all of it.
    Of a pair, the key of its prompt: all answers to a prompt belong to one split."""
    part: str | None = None
    """Name of the part of a mixture that this is from; None for any other corpus."""
    given: int | None = None
    """Characters at the beginning that are a prompt: given to the model, not learnt; None if this is no pair."""
    turns: tuple[tuple[str, str], ...] | None = None
    """Roles and contents of the messages of a conversation, which a chat template writes; None for any other text."""

    @functools.cached_property
    def key(self) -> int:
        """Key of the whole text, which its copies share wherever they are cut."""
        return text_key(self.text) if self.whole_key is None else self.whole_key

    @property
    def piece_key(self) -> int:
        """Key of this text, even if it is a piece of another one."""
        return self.key if self.whole_key is None else text_key(self.text)


def documents(text: str, name: str, longest: int) -> Iterator[Document]:
    """Yield `text` as one document, or its `pieces`, which have the key of the whole."""
    key = text_key(text) if len(text) > longest else None
    for piece in pieces([text], name, longest):
        yield Document(piece.text, piece.name, key)


def pieces(parts: Iterable[str], name: str, longest: int) -> Iterator[Document]:
    """Yield the text formed by `parts` as one document, or as several if it has more than `longest` characters.

    A piece ends after the last white space in its last tenth or, without any, at `longest` characters; it is named
    `name[at]`, by the index of its first character in the text. The pieces concatenate to the text, except that blank
    ones are dropped. Memory holds one piece and one part. Each piece has a key of its own: copies of the text that are
    cut elsewhere have other keys.
    """
    buffer, size, offset = [], 0, 0
    for part in parts:
        buffer.append(part)
        size += len(part)
        if size <= longest:
            continue
        text, start = "".join(buffer), 0
        while len(text) - start > longest:
            end = _end(text, start, longest)
            yield from _document(text[start:end], f"{name}[{offset + start}]")
            start = end
        buffer, size, offset = [text[start:]], len(text) - start, offset + start
    yield from _document("".join(buffer), f"{name}[{offset}]" if offset else name)


def _end(text: str, start: int, longest: int) -> int:
    """Return the end of the piece that begins at `start`."""
    end = start + longest
    tail = text[end - longest // 10 : end]
    if not tail or tail[-1].isspace():
        return end
    word = tail.rsplit(maxsplit=1)[-1]
    return end if len(word) == len(tail) else end - len(word)


def _document(text: str, name: str) -> Iterator[Document]:
    if text and not text.isspace():
        yield Document(text, name)
