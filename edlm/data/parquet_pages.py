"""Parquet pages: how much of a column is read at once.

A page is the smallest part of a parquet file that can be read. Its size stands only in its own header, which pyarrow
does not show: a struct in Thrift's compact protocol. Source: https://parquet.apache.org/docs/file-format/data-pages/
and https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet

DICTIONARY_PAGE = 2
LONGEST_FIELD = 16 << 20  # bytes: the least and the greatest value of a page may stand in its header


class Page(NamedTuple):
    """Size of a page: its values, and the bytes that it takes in memory while it is read."""

    values: int
    bytes: int


def pages(file: io.BufferedIOBase, column: pyarrow.parquet.ColumnChunkMetaData) -> Iterator[Page]:
    """Yield the pages of a column chunk in the file's order, reading nothing but their headers.

    The bytes are those as stored and those decompressed; of a dictionary, the latter twice, because its values are
    copied. Raises OSError where there is no page header.
    """
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < at:  # some writers say 0 for none
        at = column.dictionary_page_offset
    end = at + column.total_compressed_size
    while at < end:
        file.seek(at)
        try:
            header = _struct(file)
            kind, decompressed, stored = header[1], header[2], header[3]
            values = next(header[part][1] for part in (5, 7, 8) if part in header)
        except (KeyError, TypeError, StopIteration, RecursionError) as error:
            raise OSError(f"no page header at byte {at:,}") from error
        if decompressed < 0 or stored < 0:
            raise OSError(f"the page at byte {at:,} has a negative size")
        yield Page(values, stored + decompressed * (2 if kind == DICTIONARY_PAGE else 1))
        at = file.tell() + stored


def _struct(file: io.BufferedIOBase) -> dict[int, Any]:
    """Return the fields of a struct by their numbers."""
    fields: dict[int, Any] = {}
    number = 0
    while head := _bytes(file, 1)[0]:
        number = number + (head >> 4) if head >> 4 else _integer(file)
        fields[number] = _value(file, head & 15)
    return fields


def _value(file: io.BufferedIOBase, kind: int) -> Any:
    match kind:
        case 1 | 2:  # a boolean, which is its own type
            return kind == 1
        case 3:
            return _bytes(file, 1)
        case 4 | 5 | 6:
            return _integer(file)
        case 7:
            return _bytes(file, 8)
        case 8:
            return _bytes(file, _unsigned(file))
        case 12:
            return _struct(file)
    raise OSError(f"a page header has a field of the unknown type {kind}")


def _integer(file: io.BufferedIOBase) -> int:
    value = _unsigned(file)
    return (value >> 1) ^ -(value & 1)


def _unsigned(file: io.BufferedIOBase) -> int:
    value = 0
    for shift in range(0, 70, 7):  # the longest is of 64 bits
        byte = _bytes(file, 1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise OSError("a page header has a number of more than 64 bits")


def _bytes(file: io.BufferedIOBase, count: int) -> bytes:
    content = file.read(count) if count <= LONGEST_FIELD else b""
    if len(content) < count:
        raise OSError("a page header is cut off, or has a field without end")
    return content
