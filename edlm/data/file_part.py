"""Parts of a large file of JSON lines, each of which can be read alone, by any process that reaches the file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from edlm.config import ConfigurationError
from edlm.data.compressed_files import BUFFER, opened
from edlm.data.corpus_formats import json_lines, row_documents
from edlm.data.document import Document
from edlm.data.encoded_documents import DocumentBatch
from edlm.data.line_range import LineRange
from edlm.data.pairs import Prompts
from edlm.data.remote_files import UnreadableError
from edlm.data.text_batches import batched
from edlm.data.text_lines import LineOrigin
from edlm.file_systems import file_system


@dataclass(frozen=True)
class FilePart:
    """Lines of a file that begin in a range of its bytes. All fields together determine the documents."""

    name: str
    """Path or URI of the file."""
    state: str
    """Digest of what is known of the file without reading it."""
    start: int
    stop: int
    text_field: str
    longest: int
    prompts: Prompts | None

    @property
    def is_local(self) -> bool:
        """Whether the file is on a disk of this machine, which others may not have."""
        return isinstance(file_system(self.name)[0], LocalFileSystem)

    def batches(self) -> Iterator[DocumentBatch]:
        """Yield the documents in batches, as they are encoded."""
        return batched(self.documents(), lambda document: document.text)

    def documents(self) -> Iterator[Document]:
        """Yield the documents, named by their lines from the beginning of the part.

        Errors are those of `Files.documents`, with lines from the beginning of the file, for which it is read again.
        Raises ConfigurationError also if the file is not in this state any more.
        """
        try:
            yield from naming_the_last(self._read(f"{self.name}, from byte {self.start:,}", 1))
        except ConfigurationError as error:
            if isinstance(error.__cause__, UnreadableError):  # it was tried often enough
                raise
            for _ in naming_the_last(self._read(self.name, self._first_line())):
                pass
            raise

    def _read(self, name: str, line: int) -> Iterator[Document]:
        with self._range(self.start, self.stop) as file:
            rows = json_lines(io.BufferedReader(file, BUFFER), name, LineOrigin(file.first, line))
            yield from row_documents(rows, self.text_field, None, self.longest, self.prompts)

    def _first_line(self) -> int:
        with self._range(0, self.start) as file:
            return 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(BUFFER), b""))

    @contextmanager
    def _range(self, start: int, stop: int) -> Iterator[LineRange]:
        system, path = file_system(self.name)
        with opened(system, path, self.name) as file:
            yield LineRange(file, start, stop)
        if system.ukey(path) != self.state:
            raise ConfigurationError(f"{self.name} has changed while it was read; prepare the data again")


def naming_the_last(documents: Iterator[Document]) -> Iterator[Document]:
    """Yield the documents; the error of a file that cannot be read any further names the last one."""
    last = "none"
    try:
        for document in documents:
            last = document.name
            yield document
    except UnreadableError as error:
        raise ConfigurationError(f"{error}; the last document read was {last}") from error
