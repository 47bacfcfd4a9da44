"""Progress lines while a corpus is read."""

import time
from collections.abc import Callable

CHARACTERS = 20_000_000  # between two lines
SECONDS = 10.0  # after which a line is due, however little was read


class ReadingProgress:
    """Reporter that passes the number of characters read so far, and their `purpose`, to `say`."""

    def __init__(self, say: Callable[[str], None], purpose: str) -> None:
        self._say, self._purpose = say, purpose
        self._read = self._reported = 0
        self._time = time.monotonic()

    def add(self, characters: int) -> None:
        """Count the characters read; report if CHARACTERS or SECONDS have passed since the last line."""
        self._read += characters
        if self._read - self._reported >= CHARACTERS or time.monotonic() - self._time >= SECONDS:
            self._tell()

    def finish(self) -> None:
        """Report the total if anything was read since the last line."""
        if self._read > self._reported:
            self._tell()

    def _tell(self) -> None:
        self._say(f"{self._read:,} characters {self._purpose}")
        self._reported, self._time = self._read, time.monotonic()
