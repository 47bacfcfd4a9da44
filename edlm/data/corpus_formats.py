"""File formats: readers that turn one file into documents, with at most one row or piece of it in memory."""

import codecs
import csv
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, groupby
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from edlm.config import ConfigurationError
from edlm.data.conversations import MESSAGES_FIELD, conversation
from edlm.data.document import Document, documents, pieces
from edlm.data.pairs import Prompts, pair
from edlm.data.parquet_pages import pages
from edlm.data.text_lines import BLOCK, FILE, HEAD, MOST, LineOrigin, blocks, byte_count, lines, whole_lines

PARQUET_BYTES = 8 << 20  # of text decoded at a time, estimated from the mean row size of the row group
PARQUET_ROWS = 64  # upper bound: repeated text is stored once, so the mean row size says little
PARQUET_PAGE_BYTES = 128 << 20  # of a page as stored and decompressed: pyarrow reads pages whole
PARQUET_TEXT_BYTES = 48 << 20  # of a page with one text, which is copied and decoded as well
TEXT_FIELD, PROMPT_FIELD = "corpus.text_field", "corpus.prompts.field"  # settings that name fields

log = logging.getLogger(__name__)

Cut = Literal["file", "paragraph", "line"]


class Row(NamedTuple):
    """Table row or JSON object, and its location."""

    name: str
    fields: dict[str, Any]


class SkippedNulls:
    """Counter of the rows that one reading of a corpus skips because their text is null."""

    def __init__(self) -> None:
        self.rows, self.last = 0, ""

    def add(self, name: str) -> None:
        """Count the row of this name."""
        self.rows, self.last = self.rows + 1, name

    def report(self, field: str) -> None:
        """Log the number, if there are any."""
        if self.rows:
            log.warning("left out %s rows whose field %r is null; the last was %s", f"{self.rows:,}", field, self.last)


def row_documents(
    rows: Iterable[Row],
    field: str,
    nulls: SkippedNulls | None,
    longest: int,
    prompts: Prompts | None = None,
    messages: str | None = None,
) -> Iterator[Document]:
    """Yield the documents in the text field of the rows; the pieces of a row of more than `longest` share its key.

    With `prompts`, each document is a pair: the prompt and, from the text field, the answer. With `messages`, each is
    the conversation in that field.
    Raises ConfigurationError naming the row if a field is missing or is not text, or if a pair has more than `longest`
    characters. A null is an error, too, unless there is a counter: then its row is skipped and counted.
    """
    sources = [(field, TEXT_FIELD)] if prompts is None else [(prompts.field, PROMPT_FIELD), (field, TEXT_FIELD)]
    sources = sources if messages is None else [(messages, MESSAGES_FIELD)]
    for name, fields in rows:
        values = [_value_of(fields, each, name, setting) for each, setting in sources]
        if None in values:
            if nulls is None:
                missing, _ = sources[values.index(None)]
                raise ConfigurationError(
                    f"{name}: the field {missing!r} is null; set corpus.skip_nulls: true to leave such rows out"
                )
            nulls.add(name)
        elif messages is not None:
            yield from conversation(values[0], name, longest)
        else:
            texts = [_text(value, each, name) for value, (each, _) in zip(values, sources, strict=True)]
            if prompts is None:
                yield from documents(texts[0], name, longest)
            else:
                yield from pair(prompts.fill(texts[0]), texts[1], name, longest)


def text_documents(file: io.BufferedReader, name: str, cut: Cut, longest: int) -> Iterator[Document]:
    """Yield a text file as one document, or its paragraphs or lines, which are named `name:line`."""
    match cut:
        case "file":
            yield from pieces(blocks(file, name), name, longest)
        case "line":
            for number, parts in groupby(lines(file, name), key=lambda line: line.number):
                yield from pieces((line.text for line in parts), f"{name}:{number}", longest)
        case "paragraph":
            for blank, parts in groupby(lines(file, name), key=lambda line: line.blank):
                if not blank:
                    first = next(parts)
                    texts = chain([first.text], (line.text for line in parts))
                    yield from pieces(texts, f"{name}:{first.number}", longest)


def json_lines(file: io.BufferedReader, name: str, origin: LineOrigin = FILE) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; raise ConfigurationError naming a line that is not an object."""
    for line in whole_lines(file, name, origin):
        if not line.blank:
            where = f"{name}:{line.number}"
            try:
                value = json.loads(line.text)
            except (ValueError, RecursionError) as error:  # syntax, too long a number, or too many brackets
                raise ConfigurationError(f"{where}: not a line of JSON ({error}); mend or remove the line") from error
            yield Row(where, _object(value, where))


def json_rows(file: io.BufferedReader, name: str) -> Iterator[Row]:
    """Yield the objects of a JSON file: of one array, numbered from 1, or of JSON lines."""
    head = file.peek(HEAD).removeprefix(codecs.BOM_UTF8).lstrip()
    return _json_array(file, name) if head.startswith(b"[") else json_lines(file, name)


def _json_array(file: io.BufferedReader, name: str) -> Iterator[Row]:
    texts = blocks(file, name)
    text, at = _significant("", 0, texts, name)  # at the opening bracket
    text, at = _significant(text, at + 1, texts, name)
    number = 0
    while text[at] != "]":
        number += 1
        value, text, at = _element(text, at, texts, f"{name}:{number}")
        yield Row(f"{name}:{number}", _object(value, f"{name}:{number}"))
        text, at = _significant(text, at, texts, name)
        if text[at] == ",":
            text, at = _significant(text, at + 1, texts, name)
        elif text[at] != "]":
            raise ConfigurationError(
                f"{name}:{number}: neither a comma nor a bracket follows this object of the array; put one there, or "
                "write one object per line, as JSON lines"
            )
    if text[at + 1 :].strip() or any(rest.strip() for rest in texts):
        raise ConfigurationError(f"{name}: there is more after the array; make it one array, or JSON lines")


def _significant(text: str, at: int, texts: Iterator[str], name: str) -> tuple[str, int]:
    """Return the text, or its continuation, and the index in it of the first non-space character from `at` on."""
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at < len(text):
            return text, at
        text, at = _longer("", texts), 0
        if not text:
            raise ConfigurationError(f"{name}: the array of JSON has no end; the file is truncated: copy it again")


def _element(text: str, at: int, texts: Iterator[str], where: str) -> tuple[Any, str, int]:
    """Return the value that begins at `at`, the text extended as far as needed, and the index after the value."""
    while True:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            return value, text, end
        except json.JSONDecodeError as error:
            longer = _longer(text[at:], texts) if byte_count(text[at:]) <= MOST else ""
            if len(longer) <= len(text) - at:
                raise ConfigurationError(
                    f"{where}: not an object of JSON ({error.msg}), or one of more than {MOST:,} bytes; mend it, or "
                    "cut its text into several rows"
                ) from error
            text, at = longer, 0
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{where}: not an object of JSON ({error}); mend or remove it") from error


def _longer(text: str, texts: Iterator[str]) -> str:
    """Return the text extended by at least its own length, as far as more text follows and MOST allows."""
    parts, size, present = [text], 0, byte_count(text)
    enough = max(BLOCK, min(present, MOST - present))
    for part in texts:
        parts.append(part)
        size += byte_count(part)
        if size >= enough:
            break
    return "".join(parts)


def csv_rows(file: io.BufferedReader, name: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table with a header, named by the line in which they end."""
    csv.field_size_limit(MOST)  # process-wide; the default of 131,072 characters is shorter than a document may be
    size = 0  # bytes of the row so far, which may have several lines

    def texts() -> Iterator[str]:
        nonlocal size
        for line in whole_lines(file, name):
            size += byte_count(line.text)
            if size > MOST:
                raise ConfigurationError(
                    f"{name}:{line.number}: a row of more than {MOST:,} bytes; cut its text into several rows, or "
                    "check its quotes"
                )
            yield line.text

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            size = 0
            where = f"{name}:{reader.line_num}"
            if values and len(values) != len(header):
                raise ConfigurationError(
                    f"{where}: {len(values)} fields, but the header has {len(header)}; quote fields that hold "
                    f"{delimiter!r}, quotes or line ends"
                )
            if values:
                yield Row(where, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise ConfigurationError(f"{name}:{reader.line_num}: not a row of CSV ({error}); mend or remove it") from error


def parquet_rows(file: io.BufferedReader, name: str, fields: Sequence[str], packed: bool) -> Iterator[Row]:
    """Yield the rows of a parquet file, numbered from 1, with only `fields`.

    The columns are streamed and decoded in batches of about PARQUET_BYTES. A compressed file is decompressed to disk
    first, because parquet is read from its end. Raises ConfigurationError if the file is not parquet or is damaged, or
    if a page takes more than PARQUET_PAGE_BYTES, of a single text more than PARQUET_TEXT_BYTES.
    """
    with tempfile.TemporaryFile() if packed else nullcontext(file) as seekable:
        if packed:
            shutil.copyfileobj(file, seekable)
        try:
            table = pyarrow.parquet.ParquetFile(seekable, buffer_size=BLOCK, pre_buffer=False)
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigurationError(f"{name} is no parquet file, or is damaged: {error}") from error
        for field in fields:
            if field not in table.schema_arrow.names:
                raise ConfigurationError(f"{name}: {_no_field(field, table.schema_arrow.names)}")
        number, field = 0, fields[0]
        try:
            for values in _parquet_values(table, seekable, name, fields):
                number += 1
                row = {}
                for field, value in zip(fields, values, strict=True):
                    row[field] = value.as_py()
                yield Row(f"{name}:{number}", row)
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{name}:{number}: the field {field!r} is not UTF-8 ({error}); mend it") from error
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigurationError(
                f"{name} is damaged after row {number:,} ({error}); copy it again, or write it anew"
            ) from error


def _parquet_values(
    table: pyarrow.parquet.ParquetFile, file: io.BufferedIOBase, name: str, fields: Sequence[str]
) -> Iterator[tuple[pyarrow.Scalar, ...]]:
    for group in range(table.num_row_groups):
        group_metadata = table.metadata.row_group(group)
        columns = [group_metadata.column(i) for i in range(group_metadata.num_columns)]
        columns = [column for column in columns if column.path_in_schema.split(".")[0] in fields]
        size = sum(column.total_uncompressed_size for column in columns)
        for column in columns:
            _check_pages(file, column, f"{name}, row group {group + 1}, column {column.path_in_schema.split('.')[0]!r}")
        rows = max(1, min(PARQUET_ROWS, PARQUET_BYTES * group_metadata.num_rows // max(1, size)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=list(fields), use_threads=False):
            yield from zip(*(batch.column(field) for field in fields), strict=True)


def _check_pages(file: io.BufferedIOBase, column: pyarrow.parquet.ColumnChunkMetaData, where: str) -> None:
    """Raise ConfigurationError if a page takes more than PARQUET_PAGE_BYTES, of a single text PARQUET_TEXT_BYTES."""
    bound = min(PARQUET_TEXT_BYTES, PARQUET_PAGE_BYTES)
    if 3 * column.total_uncompressed_size <= bound:  # no page takes more, and no header is read
        return
    for page in pages(file, column):
        if page.values == 1 and page.bytes > PARQUET_TEXT_BYTES:
            raise ConfigurationError(
                f"{where}: a text takes {page.bytes >> 20:,} MiB to read; at most {PARQUET_TEXT_BYTES >> 20} MiB are "
                "allowed. Cut it into several rows"
            )
        if page.values > 1 and page.bytes > PARQUET_PAGE_BYTES:
            raise ConfigurationError(
                f"{where}: a page of {page.values:,} rows takes {page.bytes >> 20:,} MiB to read, and pages are read "
                f"whole; at most {PARQUET_PAGE_BYTES >> 20} MiB are allowed. Write the file again with smaller pages: "
                "pyarrow.parquet.write_table(table, path, use_dictionary=False, write_batch_size=1)"
            )


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{where}: a JSON {type(value).__name__}, not an object with a field of text; "
            "write each row as an object, and name its field of text in corpus.text_field"
        )
    return value


def _value_of(fields: dict[str, Any], field: str, where: str, setting: str) -> Any:
    if field not in fields:
        raise ConfigurationError(f"{where}: {_no_field(field, fields, setting)}")
    return fields[field]


def _text(text: Any, field: str, where: str) -> str:
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{where}: the field {field!r} is of type {type(text).__name__}, not text; set corpus.text_field to a "
            "field that holds text in every row"
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can encode half of a surrogate pair, which is no character
            raise ConfigurationError(f"{where}: the field {field!r} is not Unicode text ({error}); mend it") from error
    return text


def _no_field(field: str, fields: Iterable[str], setting: str = TEXT_FIELD) -> str:
    return f"there is no field {field!r}; set {setting} to one of: {', '.join(fields) or '(none)'}"
