"""Corpora: where text comes from, as documents in an order that is always the same."""

import gzip
import hashlib
import json
import platform
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Annotated, Any, Literal, cast

import fsspec
import fsspec.core
import pyarrow
import pyarrow.parquet
import pydantic
from fsspec import AbstractFileSystem

from edlm.config import ConfigurationError, Positive, config
from edlm.document import Document
from edlm.sources import Agree, HiddenMarkov, Markov

Format = Literal["txt", "jsonl", "parquet"]


@config
class Embedded:
    """The English text that Python itself ships: 79 chapters of its language reference, 465 kB. Needs no network."""

    kind: Literal["embedded"] = "embedded"

    def documents(self) -> Iterator[Document]:
        """The chapters by name; ConfigurationError on a Python that was built without its documentation."""
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ConfigurationError(
                "corpus.kind embedded: this Python ships no pydoc_data.topics; use another Python, or kind: files"
            ) from error
        for name in sorted(topics):
            yield Document(topics[name], f"pydoc_data.topics:{name}")

    def version(self) -> str:
        """Changes with the Python whose text it is."""
        return platform.python_version()


@config
class Files:
    """Text files at any fsspec URI, plain or gzip (`.gz`), in the order given; a glob stands for its sorted matches."""

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """Paths, URIs or globs."""
    format: Literal["auto", "txt", "jsonl", "parquet"] = "auto"
    """How they are read; auto goes by each name's ending."""
    text_field: str = "text"
    """The field of jsonl and the column of parquet that holds the text."""
    cut: Literal["file", "paragraph", "line"] = "file"
    """What is one document of a txt file; paragraphs are separated by blank lines."""
    longest: Positive | None = None
    """Documents with more characters are cut at this many: for a text8, which is one line of 100 million."""

    def documents(self) -> Iterator[Document]:
        """The documents of all files, blank ones left out.

        Raises ConfigurationError naming the path that is missing or matches nothing, or the file, with line or byte,
        that is not what its format says.
        """
        for system, path, name in self._files():
            for document in self._read(system, path, name):
                yield from _cut(document, self.longest)

    def version(self) -> str:
        """Changes when a file does: the files' names and what their storage says of them, such as time and size.
        Raises ConfigurationError as `documents` does where a file is missing.
        """
        known = [f"{name} {system.ukey(path)}" for system, path, name in self._files()]
        return hashlib.sha256("\n".join(known).encode()).hexdigest()

    def _files(self) -> list[tuple[AbstractFileSystem, str, str]]:
        """File system, path and full name of every file: all are looked for before the first one is read."""
        files = []
        for given in self.paths:
            try:
                system, path = fsspec.core.url_to_fs(given)
            except (ValueError, ImportError) as error:
                raise ConfigurationError(f"corpus.paths: cannot reach {given!r}: {error}") from error
            if any(character in path for character in "*?["):
                found = sorted(match for match in system.glob(path) if system.isfile(match))
                if not found:
                    raise ConfigurationError(f"corpus.paths: the glob {given!r} matches no file; check the path")
            elif system.isfile(path):
                found = [path]
            elif system.isdir(path):
                raise ConfigurationError(f"corpus.paths: {given!r} is a folder; name its files: {given.rstrip('/')}/*")
            else:
                raise ConfigurationError(f"corpus.paths: there is no file {given!r}; check the path")
            files += [(system, match, system.unstrip_protocol(match).removeprefix("file://")) for match in found]
        return files

    def _read(self, system: AbstractFileSystem, path: str, name: str) -> Iterator[Document]:
        format = _format(name) if self.format == "auto" else self.format
        with _open(system, path) as file:
            match format:
                case "txt":
                    yield from _texts(file, name, self.cut)
                case "jsonl":
                    yield from _json_lines(file, name, self.text_field)
                case "parquet":
                    yield from _parquet(file, name, self.text_field)


@config
class HuggingFace:
    """A data set read by Hugging Face `datasets`: a name on the hub, or a folder or builder of files that it knows."""

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """For example `Salesforce/wikitext`, or `json` with `data_files`."""
    config: str | None = None
    """Its configuration, for example `wikitext-103-raw-v1`."""
    revision: str | None = None
    """Its commit or tag on the hub; without it, whatever the hub holds on that day."""
    data_files: tuple[str, ...] | None = None
    """The files of the data set to read; without it, those of `split`."""
    split: str = "train"
    text_field: str = "text"
    streaming: bool = False
    """Read over the network as it is needed, instead of storing it first."""

    def documents(self) -> Iterator[Document]:
        """The rows of the split in its order, blank ones left out.

        Raises ConfigurationError where there is no such data set, configuration, split or field of text.
        """
        import datasets  # takes seconds, and only this corpus needs it
        from datasets.exceptions import DatasetsError

        try:
            rows = datasets.load_dataset(
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                data_files=list(self.data_files) if self.data_files else None,
                streaming=self.streaming,
            )
        except (DatasetsError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"corpus.name {self.name!r} (config {self.config!r}, split {self.split!r}) cannot be read: {error}"
            ) from error
        for number, row in enumerate(rows):
            name = f"{self.name}:{self.split}:{number}"
            yield from _cut(Document(_text_of(row, self.text_field, name), name), None)

    def version(self) -> str:
        """The revision that was asked for: without one, what the hub holds may change unseen."""
        return self.revision or "unpinned"


CorpusConfig = Embedded | Files | HuggingFace | Markov | Agree | HiddenMarkov


def _format(name: str) -> Format:
    ending = name.removesuffix(".gz").rpartition(".")[2]
    for known in ("txt", "jsonl", "parquet"):
        if ending == known:
            return known
    raise ConfigurationError(
        f"corpus.paths: cannot tell the format of {name} by its ending; "
        "known are .txt, .jsonl and .parquet, each also with .gz; or set corpus.format"
    )


@contextmanager
def _open(system: AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its name ends with .gz."""
    with system.open(path, "rb") as raw:
        packed = cast(IO[bytes], raw)
        if not path.endswith(".gz"):
            yield packed
            return
        with gzip.GzipFile(fileobj=packed) as unpacked:
            yield cast(IO[bytes], unpacked)


def _cut(document: Document, longest: int | None) -> Iterator[Document]:
    """The document, or its pieces of at most `longest` characters; nothing where it is blank."""
    text = document.text
    if longest is None or len(text) <= longest:
        pieces = [document]
    else:
        pieces = [Document(text[at : at + longest], f"{document.name}[{at}]") for at in range(0, len(text), longest)]
    yield from (piece for piece in pieces if piece.text and not piece.text.isspace())


def _texts(file: IO[bytes], name: str, cut: Literal["file", "paragraph", "line"]) -> Iterator[Document]:
    if cut == "file":
        yield Document("".join(line for _, line in _lines(file, name)), name)
        return
    first, paragraph = 1, []
    for number, line in _lines(file, name):
        blank = not line.strip()
        if paragraph and (blank or cut == "line"):
            yield Document("".join(paragraph), f"{name}:{first}")
            paragraph = []
        if not blank:
            first = first if paragraph else number
            paragraph.append(line)
    yield Document("".join(paragraph), f"{name}:{first}")


def _json_lines(file: IO[bytes], name: str, field: str) -> Iterator[Document]:
    for number, line in _lines(file, name):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{where}: not a line of JSON ({error}); mend or remove the line") from error
        if not isinstance(row, dict):
            raise ConfigurationError(f"{where}: a JSON {type(row).__name__}, not an object with the field {field!r}")
        yield Document(_text_of(row, field, where), where)


def _parquet(file: IO[bytes], name: str, field: str) -> Iterator[Document]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise ConfigurationError(f"{name} is no parquet file, or is damaged: {error}") from error
    if field not in table.schema_arrow.names:
        raise ConfigurationError(f"{name}: {_no_field(field, table.schema_arrow.names)}")
    number = 0
    for batch in table.iter_batches(columns=[field]):
        for row in batch.to_pylist():
            number += 1
            yield Document(_text_of(row, field, f"{name}:{number}"), f"{name}:{number}")


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1, ends included; a byte order mark and carriage returns are dropped."""
    offset = 0
    try:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigurationError(
                    f"{name} is not UTF-8: byte {offset + error.start}, in line {number}, is 0x{raw[error.start]:02x}; "
                    f"convert it, for example: iconv -f latin1 -t utf-8"
                ) from error
            offset += len(raw)
            yield number, line.replace("\r\n", "\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{name} is no gzip file, or is truncated ({error}); copy it again") from error


def _text_of(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise ConfigurationError(f"{where}: {_no_field(field, row)}")
    text = row[field]
    if not isinstance(text, str):
        raise ConfigurationError(f"{where}: the field {field!r} is of type {type(text).__name__}, not text")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell what is no character: half of a surrogate pair
            raise ConfigurationError(f"{where}: the field {field!r} is not Unicode text ({error}); mend it") from error
    return text


def _no_field(field: str, fields: Iterable[str]) -> str:
    return f"there is no field {field!r}; set corpus.text_field to one of: {', '.join(fields) or '(none)'}"
