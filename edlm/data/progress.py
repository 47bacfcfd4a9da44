"""Progress lines while a corpus is read."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

CHARACTERS = 20_000_000  # between two lines
SECONDS = 10.0  # after which a line is due, however little was read


class ReadingProgress:
    """Reporter that passes the number of characters read so far, their `purpose` and perhaps the speed to `say`.

    Within a `with` block, a thread also reports while no text arrives: the reader may be passing over millions of blank
    or null rows, or waiting for a file. `say` is called by one thread at a time.
    """

    def __init__(self, say: Callable[[str], None], purpose: str) -> None:
        self._say, self._purpose = say, purpose
        self._read = self._reported = self._computed_bytes = 0
        self._started = self._time = time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reading progress", daemon=True)

    def __enter__(self) -> "ReadingProgress":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread; report the total if anything was read since the last line, unless the reading failed."""
        self._ended.set()
        self._thread.join()
        if error is None:
            self.finish()

    def add(self, characters: int, computed_bytes: int = 0) -> None:
        """Count the characters read; report if CHARACTERS or SECONDS have passed since the last line.

        `computed_bytes` of their text took time, and are counted in the speed.
        """
        with self._lock:
            self._read += characters
            self._computed_bytes += computed_bytes
            if self._read - self._reported >= CHARACTERS or self._due():
                self._tell()

    def finish(self) -> None:
        """Report the total if anything was read since the last line."""
        if self._read > self._reported:
            self._tell()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            with self._lock:
                if self._due():
                    self._tell()

    def _due(self) -> bool:
        return time.monotonic() - self._time >= SECONDS

    def _tell(self) -> None:
        idle = "; no text since the last line" if self._read == self._reported else ""
        speed = self._computed_bytes / 1e6 / (time.monotonic() - self._started)
        rate = f", {speed:.1f} MB/s" if self._computed_bytes else ""
        self._say(f"{self._read:,} characters {self._purpose}{rate}{idle}")
        self._reported, self._time = self._read, time.monotonic()
