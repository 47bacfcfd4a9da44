"""Ranges of lines: the part of a file whose lines begin in a range of bytes."""

import io
from typing import Any

SEARCHED = 1 << 16  # bytes read at a time in search of the end of a line


class LineRange(io.RawIOBase):
    """Lines of a file that begin at bytes `start` to `stop`, exclusive, as a file of its own.

    Ranges that follow one another have every line of the file once.

    Examples:
        >>> text = b"one\\ntwo\\nthree"
        >>> [LineRange(io.BufferedReader(io.BytesIO(text)), start, start + 4).readall() for start in (0, 4, 8, 12)]
        [b'one\\n', b'two\\n', b'three', b'']
    """

    def __init__(self, file: io.BufferedReader, start: int, stop: int) -> None:
        self._file, self._stop = file, stop
        self._at = start
        if start > 0:
            file.seek(start - 1)
            self._at = start - 1 + self._pass_line()
        self.first = self._at
        """Byte at which the first line begins."""
        self._rest = self._at < stop

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into `buffer` and return their number, 0 at the end."""
        if not self._rest:
            return 0
        within = self._stop - self._at
        content = self._file.read(min(within, len(buffer))) if within > 0 else self._file.readline(len(buffer))
        # The range ends with the line that its last byte is in.
        ended = len(content) >= within and content.endswith(b"\n")
        self._rest = bool(content) and not ended
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _pass_line(self) -> int:
        """Pass over the rest of a line, and return its length."""
        passed = 0
        while content := self._file.readline(SEARCHED):
            passed += len(content)
            if content.endswith(b"\n"):
                break
        return passed
