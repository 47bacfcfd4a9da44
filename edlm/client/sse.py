"""Server-sent events: from the bytes of a stream, in chunks of any size, to the data of successive events."""


class Events:
    """Incremental parser of an event stream.

    Only a line feed ends a line (with an optional carriage return before it): the other line boundaries of
    `str.splitlines`, such as U+2028, are characters of a text here.
    """

    def __init__(self) -> None:
        self._rest, self._data = b"", []

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of every event that `piece` completes. Raise ValueError if it is not UTF-8."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data).decode("utf-8"))
                self._data = []
        return events
