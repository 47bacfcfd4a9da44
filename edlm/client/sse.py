"""Server-sent events: from the bytes of a stream, in pieces of any size, to the data of one event after the other."""


class Events:
    """A reader that is fed what arrives.

    Lines end with a line feed alone (after a carriage return or none): what Python's own splitting takes for the end of
    a line besides, U+2028 for one, is a character of a text here.
    """

    def __init__(self) -> None:
        self._rest, self._data = b"", []

    def feed(self, piece: bytes) -> list[str]:
        """The data of every event that is complete now; ValueError where it is not UTF-8."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                found.append(b"\n".join(self._data).decode("utf-8"))
                self._data = []
        return found
