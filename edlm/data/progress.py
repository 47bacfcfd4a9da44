"""Progress: lines for the person who waits while a corpus is read."""

import time
from collections.abc import Callable

CHARACTERS = 20_000_000  # between two lines
SECONDS = 10.0  # after which there is a line, however little was read


class ReadingProgress:
    """Tells `say` how many characters were read so far, and `purpose`, what for."""

    def __init__(self, say: Callable[[str], None], purpose: str) -> None:
        self._say, self._purpose = say, purpose
        self._read = self._told = 0
        self._time = time.monotonic()

    def add(self, characters: int) -> None:
        """Count what was read; there is a line where CHARACTERS or SECONDS have passed since the last one."""
        self._read += characters
        if self._read - self._told >= CHARACTERS or time.monotonic() - self._time >= SECONDS:
            self._tell()

    def finish(self) -> None:
        """Tell the end, where anything was read since the last line."""
        if self._read > self._told:
            self._tell()

    def _tell(self) -> None:
        self._say(f"{self._read:,} characters {self._purpose}")
        self._told, self._time = self._read, time.monotonic()
