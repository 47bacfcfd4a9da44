"""Text files as a stream: UTF-8, in blocks or in lines, with a name for what is not text."""

import codecs
import io
from collections.abc import Iterator
from typing import NamedTuple

from edlm.config import ConfigurationError
from edlm.data.encodings import not_text, not_utf8

BLOCK = 1 << 18  # bytes that are read at a time
HEAD = 1 << 16  # bytes at the start of a file that are looked at to see whether it is text
PART = 1 << 18  # characters of a line that come at a time where lines may be of any length
MOST = 32 << 20  # characters in a line that is needed whole, a row of JSON or CSV: 3 times its size is in memory


class Line(NamedTuple):
    """A line of text, or a part of one that is longer than the reader's bound."""

    number: int
    """From 1; parts of a line share it."""
    text: str
    """With the end of the line, a line feed."""
    blank: bool
    """Whether the line up to the end of this part is white space."""


def blocks(file: io.BufferedReader, name: str) -> Iterator[str]:
    """Return the text of a file, some hundred thousand characters at a time.

    A byte order mark is dropped, and so is a carriage return before a line feed. Raises ConfigurationError naming line
    and byte where the file is not UTF-8 text, with what it seems to be and how to convert it.
    """
    head = file.peek(HEAD)[:HEAD]
    if fault := not_text(head):
        raise ConfigurationError(f"{name} {fault}")
    offset = len(file.read(len(codecs.BOM_UTF8))) if head.startswith(codecs.BOM_UTF8) else 0
    decoder = codecs.getincrementaldecoder("utf-8")()  # a block may end within a character
    lines, held = 0, ""
    while True:
        raw = file.read(BLOCK)
        try:
            text = held + decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            start, wrong = error.start, error.object
            at = offset - (len(wrong) - len(raw)) + start  # what was held back of a character comes before `raw`
            line = 1 + lines + wrong.count(b"\n", 0, start)
            raise ConfigurationError(
                f"{name} is not UTF-8: byte {at}, in line {line}, is 0x{wrong[start]:02x}; "
                f"{not_utf8(head if at < len(head) else wrong)}"
            ) from error
        offset += len(raw)
        held = "\r" if raw and text.endswith("\r") else ""  # the line feed may be in the next block
        text = text.removesuffix(held).replace("\r\n", "\n")
        lines += text.count("\n")
        if text:
            yield text
        if not raw:
            return


def lines(file: io.BufferedReader, name: str, most: int = PART) -> Iterator[Line]:
    """Return the lines of a text file, those of more than `most` characters in parts; errors as in `blocks`."""
    number, blank = 1, True
    held, size = [], 0
    for block in blocks(file, name):
        *ends, rest = block.split("\n")
        for end in ends:
            text = "".join((*held, end, "\n"))
            held, size = [], 0  # before the line is used: it may be large
            yield Line(number, text, blank and text.isspace())
            number, blank = number + 1, True
        held.append(rest)
        size += len(rest)
        if size > most:
            text = "".join(held)
            held, size = [], 0
            blank = blank and text.isspace()
            yield Line(number, text, blank)
    if size:
        text = "".join(held)
        yield Line(number, text, blank and text.isspace())


def whole_lines(file: io.BufferedReader, name: str) -> Iterator[Line]:
    """Return the lines of a text file, each whole; ConfigurationError for one of more than MOST characters, too."""
    last = 0
    for line in lines(file, name, MOST):
        if line.number == last or len(line.text) > MOST:
            raise ConfigurationError(
                f"{name}:{line.number}: a line of more than {MOST:,} characters; cut it into several rows, "
                "or check corpus.format"
            )
        last = line.number
        yield line
