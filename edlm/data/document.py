"""What a corpus is made of: documents, none of them longer than a bound."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Characters of a document, of which few have more: a byte of its UTF-8 takes about 150 while it is tokenised, so that
# one of letters of four bytes takes 150 MB.
LONGEST = 250_000


@dataclass(frozen=True)
class Document:
    """One text, never blank, and where it was found."""

    text: str
    name: str


def pieces(parts: Iterable[str], name: str, longest: int) -> Iterator[Document]:
    """Return the text that `parts` make up as one document, or as several where it has more than `longest` characters.

    A piece ends after the last white space in its last tenth or, where there is none, at `longest` characters; it is
    named `name[at]`, by the place of its first character in the text. Together the pieces are the text, except that
    blank ones are left out. The memory is that of a piece and a part.
    """
    held, size, at = [], 0, 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size <= longest:
            continue
        text, start = "".join(held), 0
        while len(text) - start > longest:
            end = _end(text, start, longest)
            yield from _document(text[start:end], f"{name}[{at + start}]")
            start = end
        held, size, at = [text[start:]], len(text) - start, at + start
    yield from _document("".join(held), f"{name}[{at}]" if at else name)


def _end(text: str, start: int, longest: int) -> int:
    """Where the piece that begins at `start` ends."""
    end = start + longest
    tail = text[end - longest // 10 : end]
    if not tail or tail[-1].isspace():
        return end
    word = tail.rsplit(maxsplit=1)[-1]
    return end if len(word) == len(tail) else end - len(word)


def _document(text: str, name: str) -> Iterator[Document]:
    if text and not text.isspace():
        yield Document(text, name)
