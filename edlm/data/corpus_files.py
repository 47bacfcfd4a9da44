"""File corpora: expansion of paths to files, and the format of each file."""

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import pydantic
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from edlm.config import ConfigurationError, Positive, config
from edlm.data.compressed_files import COMPRESSIONS, opened, uncompressed
from edlm.data.corpus_formats import (
    SkippedNulls,
    csv_rows,
    json_lines,
    json_rows,
    parquet_rows,
    row_documents,
    text_documents,
)
from edlm.data.document import LONGEST, Document
from edlm.data.file_part import FilePart, state_of
from edlm.data.pairs import Prompts, require_one_form
from edlm.data.remote_files import PROGRAMMING_ERRORS, UnreadableError
from edlm.file_systems import file_system

Format = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"]
ENDINGS: dict[str, Format] = {
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
PART_BYTES = 4_000_000  # from a tenth of a second to some of one core, so that a kill loses little
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_WILD = "*?["


@config
class Files:
    """Text files at any fsspec URI, plain or compressed (.gz, .bz2, .xz, .zst), in the order given.

    A glob expands to its matches, and a folder to the files below it with the suffix of a known format; both are sorted
    and exclude hidden files.
    """

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """Paths, URIs, globs or folders."""
    format: Literal["auto", "txt", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    """Format of the files; auto selects it by each name's suffix. json is one array of objects, or JSON lines."""
    text_field: str = "text"
    """JSON field, or csv, tsv or parquet column, that holds the text."""
    skip_nulls: bool = False
    """Skip rows whose text is null and log their number; otherwise the first one is an error."""
    prompts: Prompts | None = None
    """Prompts to which the texts are answers: only the answers are learnt, each row of the files is one pair, and no
    pair is divided between rows of training. None: the texts stand alone."""
    messages_field: str | None = None
    """Field that holds conversations, lists of messages with `role` and `content`, in place of the text field. Each is
    a pair: the last message, the assistant's, is learnt, given those before it as the chat template of the tokenizer
    (kind: huggingface) writes them."""
    cut: Literal["file", "paragraph", "line"] = "file"
    """Unit of a txt file that forms one document; paragraphs are separated by blank lines."""
    longest: Positive = LONGEST
    """Maximum characters per document; longer documents are split, after white space if there is any. The parts of a
    row belong to one split; those of a txt document are documents of their own."""

    def __post_init__(self) -> None:
        require_one_form(self.prompts, self.messages_field)

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all files except blank ones; those split by `longest` are named `name[at]`.

        Files are streamed: memory holds one piece of a text document, or one row. Raises ConfigurationError naming the
        path that is missing or matches nothing, or the file, with line or byte, whose content does not fit its format.
        A remote file whose reading fails is reopened at the same byte (`RemoteFile`): no row is lost or repeated.
        """
        last, nulls = "none", SkippedNulls() if self.skip_nulls else None
        for system, path, name in self._files():
            try:
                for document in self._read(system, path, name, nulls):
                    last = document.name
                    yield document
            except UnreadableError as error:
                raise ConfigurationError(f"{error}; the last document read was {last}") from error
        if nulls is not None:
            nulls.report(self._fields()[-1])

    def parts(self) -> list[FilePart] | None:
        """Return parts that can be read alone, whose documents follow one another; None if there are none.

        Only large local files of JSON lines, not compressed, are divided. Rows that may be null, and conversations, are
        read by one process, because what is said of them later on names their lines.
        """
        if self.skip_nulls or self.messages_field is not None:
            return None
        files = self._files()
        if not all(isinstance(system, LocalFileSystem) for system, _, _ in files):
            return None
        formats = {_format(name) if self.format == "auto" else self.format for _, _, name in files}
        paths = [path for _, path, _ in files]
        if formats != {"jsonl"} or any(uncompressed(path)[1] is not None for path in paths):
            return None
        states = [state_of(path) for path in paths]
        sizes = [state[0] if state else 0 for state in states]
        if sum(sizes) < len(sizes) * PART_BYTES:  # of many small files, a part would be less than a task is worth
            return None
        return [
            FilePart(path, state, start, min(start + PART_BYTES, size), self.text_field, self.longest, self.prompts)
            for path, state, size in zip(paths, states, sizes, strict=True)
            for start in range(0, size, PART_BYTES)
        ]

    def version(self) -> str:
        """Return a digest that changes when a file does; raise ConfigurationError if a file is missing."""
        return stamp(self._files())

    def _files(self) -> list[tuple[AbstractFileSystem, str, str]]:
        """Return file system, path and full name of every file; all are located before the first one is read."""
        files = []
        for location in self.paths:
            try:
                system, path = file_system(location)
            except ValueError as error:
                raise ConfigurationError(f"corpus.paths: cannot reach {location!r}: {error}") from error
            try:
                expanded = self._expanded(system, path, location)
            except (ConfigurationError, *PROGRAMMING_ERRORS):
                raise
            except Exception as error:  # every file system raises exceptions of its own
                raise ConfigurationError(
                    f"corpus.paths: cannot reach {location!r}: {type(error).__name__}: {error}"
                ) from error
            files += [(system, match, system.unstrip_protocol(match).removeprefix("file://")) for match in expanded]
        return files

    def _expanded(self, system: AbstractFileSystem, path: str, location: str) -> list[str]:
        """Return the files that a path stands for."""
        if system.isfile(path):
            return [path]
        if system.isdir(path):
            return _in_folder(system, path, location, self.format)
        if not any(character in path for character in _WILD):
            raise ConfigurationError(f"corpus.paths: there is no file {location!r}; check the path")
        matches = _visible(path, (str(match) for match in system.glob(path) if system.isfile(match)))
        if not matches:
            raise ConfigurationError(f"corpus.paths: the glob {location!r} matches no file; check the path")
        return matches

    def _read(self, system: AbstractFileSystem, path: str, name: str, nulls: SkippedNulls | None) -> Iterator[Document]:
        format = _format(name) if self.format == "auto" else self.format
        with opened(system, path, name) as file:
            match format:
                case "txt":
                    if self.prompts is not None or self.messages_field is not None:
                        setting = "prompts" if self.messages_field is None else "messages_field"
                        raise ConfigurationError(
                            f"corpus.{setting}: {name} is a txt file, which has no fields; make it .jsonl with the "
                            f"fields {', '.join(map(repr, self._fields()))}"
                        )
                    yield from text_documents(file, name, self.cut, self.longest)
                    return
                case "jsonl":
                    rows = json_lines(file, name)
                case "json":
                    rows = json_rows(file, name)
                case "csv":
                    rows = csv_rows(file, name, ",")
                case "tsv":
                    rows = csv_rows(file, name, "\t")
                case "parquet":
                    rows = parquet_rows(file, name, self._fields(), packed=uncompressed(path)[1] is not None)
            yield from row_documents(rows, self.text_field, nulls, self.longest, self.prompts, self.messages_field)

    def _fields(self) -> list[str]:
        """Return the fields of a row that are read."""
        if self.messages_field is not None:
            return [self.messages_field]
        return [self.text_field] if self.prompts is None else [self.prompts.field, self.text_field]


def stamp(files: list[tuple[AbstractFileSystem, str, str]]) -> str:
    """Return a digest of the files' names and of their storage metadata, such as time and size."""
    states = [f"{name} {system.ukey(path)}" for system, path, name in files]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def _in_folder(system: AbstractFileSystem, folder: str, given: str, format: str) -> list[str]:
    """Return the files that a folder expands to: those with a known suffix, or all if the format is given."""
    visible = _visible(f"{folder.rstrip('/')}/*", system.find(folder))
    if any(path.rpartition("/")[2] in ("dataset_dict.json", "state.json") for path in visible):
        raise ConfigurationError(
            f"corpus.paths: {given!r} is a folder of `save_to_disk`; read it with "
            f"corpus: {{kind: huggingface, name: {given!r}}}"
        )
    if format != "auto" and visible:
        return visible
    formats: dict[Format, list[str]] = {}
    for path in visible:
        if _ending(path) in ENDINGS:
            formats.setdefault(ENDINGS[_ending(path)], []).append(path)
    if not formats:
        raise ConfigurationError(
            f"corpus.paths: the folder {given!r} holds no file that ends with {', '.join(ENDINGS)}; "
            "name its files, for example by a glob, and set corpus.format"
        )
    if len(formats) > 1:  # usually because of a README beside the data
        counts = ", ".join(f"{kind} ({len(paths)}, such as {paths[0]})" for kind, paths in sorted(formats.items()))
        raise ConfigurationError(
            f"corpus.paths: the folder {given!r} holds files of several formats: {counts}; name those that are meant, "
            f"for example: {given.rstrip('/')}/**/*{_ending(max(formats.values(), key=len)[0])}"
        )
    return next(iter(formats.values()))


def _visible(pattern: str, paths: Iterable[str]) -> list[str]:
    """Return the paths matching the pattern, sorted, without hidden ones unless the pattern names hidden files."""
    root = pattern.rfind("/", 0, min(pattern.find(wild) for wild in _WILD if wild in pattern)) + 1
    names_hidden = _hidden(pattern[root:])
    return sorted(path for path in paths if names_hidden or not _hidden(path[root:]))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _ending(path: str) -> str:
    """Return the suffix of a file's name in lower case, ignoring a compression suffix."""
    return posixpath.splitext(uncompressed(path)[0])[1].lower()


def _format(name: str) -> Format:
    ending = _ending(name)
    if ending in ENDINGS:
        return ENDINGS[ending]
    if ending in _ARCHIVES:
        raise ConfigurationError(
            f"corpus.paths: {name} is an archive; unpack it and name the folder, or for .zip: zip://*.txt::{name}"
        )
    raise ConfigurationError(
        f"corpus.paths: cannot tell the format of {name} by its ending; known are {', '.join(ENDINGS)}, "
        f"each also with {', '.join(COMPRESSIONS)}; or set corpus.format"
    )
