"""Parts of a large local file of JSON lines, each of which any process of the machine can read alone."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from edlm.config import ConfigurationError
from edlm.data.compressed_files import BUFFER, opened
from edlm.data.corpus_formats import json_lines, row_documents
from edlm.data.document import Document
from edlm.data.encoded_documents import DocumentBatch
from edlm.data.line_range import LineRange
from edlm.data.pairs import Prompts
from edlm.data.text_batches import batched
from edlm.data.text_lines import LineOrigin


@dataclass(frozen=True)
class FilePart:
    """Lines of a file that begin in a range of its bytes. All fields together determine the documents."""

    path: str
    state: tuple[int, ...]
    """`state_of` the file."""
    start: int
    stop: int
    text_field: str
    longest: int
    prompts: Prompts | None

    def batches(self) -> Iterator[DocumentBatch]:
        """Yield the documents in batches, as they are encoded."""
        return batched(self.documents(), lambda document: document.text)

    def documents(self) -> Iterator[Document]:
        """Yield the documents, named by their lines from the beginning of the part.

        Errors are those of `Files.documents`, with lines from the beginning of the file, for which it is read again.
        Raises ConfigurationError also if the file is not in this state any more.
        """
        try:
            yield from self._read(f"{self.path}, from byte {self.start:,}", 1)
        except ConfigurationError:
            self._require_unchanged()
            for _ in self._read(self.path, self._first_line()):
                pass
            raise
        self._require_unchanged()

    def _read(self, name: str, line: int) -> Iterator[Document]:
        with self._range(self.start, self.stop) as file:
            rows = json_lines(io.BufferedReader(file, BUFFER), name, LineOrigin(file.first, line))
            yield from row_documents(rows, self.text_field, None, self.longest, self.prompts)

    def _first_line(self) -> int:
        with self._range(0, self.start) as file:
            return 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(BUFFER), b""))

    @contextmanager
    def _range(self, start: int, stop: int) -> Iterator[LineRange]:
        with opened(LocalFileSystem(), self.path, self.path) as file:
            yield LineRange(file, start, stop)

    def _require_unchanged(self) -> None:
        if state_of(self.path) != self.state:
            raise ConfigurationError(f"{self.path} has changed while it was read; prepare the data again")


def state_of(path: str) -> tuple[int, ...]:
    """Return what changes when a local file is written to or replaced; empty if there is none."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino
