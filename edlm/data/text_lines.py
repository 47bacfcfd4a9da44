"""Streamed text files: UTF-8, in blocks or lines, with a diagnosis of what is not text."""

import codecs
import io
from collections.abc import Iterator
from typing import NamedTuple

from edlm.config import ConfigurationError
from edlm.data.encodings import not_text, not_utf8

BLOCK = 1 << 18  # bytes read at a time
HEAD = 1 << 16  # bytes inspected at the start of a file to detect whether it is text
PART = 1 << 18  # bytes per part of a line, where lines may have any length
MOST = 16 << 20  # bytes of a row of JSON or CSV, which is needed whole: reading it takes up to 14 times as much


class Line(NamedTuple):
    """Line of text, or a part of a line that is longer than the reader's bound."""

    number: int
    """Line number, from 1; parts of a line share it."""
    text: str
    """Text, including the line feed at the end of the line."""
    blank: bool
    """Whether the line is white space up to the end of this part."""


class LineOrigin(NamedTuple):
    """Where a part of a file begins, of which the beginning of a line is known."""

    byte: int = 0
    line: int = 1


FILE = LineOrigin()  # the beginning of a file


def blocks(file: io.BufferedReader, name: str, origin: LineOrigin = FILE) -> Iterator[str]:
    """Yield the text of a file, or of its part from `origin` on, some hundred thousand characters at a time.

    A byte order mark and carriage returns before line feeds are dropped. Raises ConfigurationError naming line and byte
    if the file is not UTF-8 text, with its likely format and how to convert it.
    """
    head, offset = b"", origin.byte
    if origin == FILE:
        head = file.peek(HEAD)[:HEAD]
        if fault := not_text(head):
            raise ConfigurationError(f"{name} {fault}")
        offset = len(file.read(len(codecs.BOM_UTF8))) if head.startswith(codecs.BOM_UTF8) else 0
    decoder = codecs.getincrementaldecoder("utf-8")()  # a block may end within a character
    lines, carried = origin.line - 1, ""
    while True:
        raw = file.read(BLOCK)
        try:
            text = carried + decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            start, undecoded = error.start, error.object
            byte_index = offset - (len(undecoded) - len(raw)) + start  # bytes of an incomplete character precede `raw`
            line = 1 + lines + undecoded.count(b"\n", 0, start)
            raise ConfigurationError(
                f"{name} is not UTF-8: byte {byte_index}, in line {line}, is 0x{undecoded[start]:02x}; "
                f"{not_utf8(head if byte_index < len(head) else undecoded)}"
            ) from error
        offset += len(raw)
        carried = "\r" if raw and text.endswith("\r") else ""  # the line feed may be in the next block
        text = text.removesuffix(carried)
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        lines += text.count("\n")
        if text:
            yield text
        if not raw:
            return


def byte_count(text: str) -> int:
    """Return the length of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def lines(file: io.BufferedReader, name: str, most: int = PART, origin: LineOrigin = FILE) -> Iterator[Line]:
    """Yield the lines of a text file, those of more than `most` bytes in parts; errors as in `blocks`."""
    number, blank = origin.line, True
    parts, size = [], 0
    for block in blocks(file, name, origin):
        *ends, rest = block.split("\n")
        for end in ends:
            text = "".join((*parts, end, "\n"))
            parts, size = [], 0  # free before the yield: the line may be large
            yield Line(number, text, blank and text.isspace())
            number, blank = number + 1, True
        parts.append(rest)
        size += byte_count(rest)
        if size > most:
            text = "".join(parts)
            parts, size = [], 0
            blank = blank and text.isspace()
            yield Line(number, text, blank)
    if size:
        text = "".join(parts)
        yield Line(number, text, blank and text.isspace())


def whole_lines(file: io.BufferedReader, name: str, origin: LineOrigin = FILE) -> Iterator[Line]:
    """Yield the lines of a text file, each whole; also raise ConfigurationError for more than MOST bytes."""
    last = 0
    for line in lines(file, name, MOST, origin):
        if line.number == last or byte_count(line.text) > MOST:
            raise ConfigurationError(
                f"{name}:{line.number}: a line of more than {MOST:,} bytes; cut it into several rows, "
                "or check corpus.format"
            )
        last = line.number
        yield line
