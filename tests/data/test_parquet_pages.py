"""The sizes of parquet's pages, from their headers."""

import io
import random

import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.data.parquet_pages import Page, pages

TEXTS = [random.Random(row).randbytes(500).hex() for row in range(2000)]


def column_pages(table, **settings):
    """The pages of the only column, and its chunk."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **settings)
    column = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0)
    return list(pages(file, column)), column


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("write_statistics", [True, False])
def test_all_pages_are_found_with_their_values_and_sizes(version, compression, write_statistics):
    actual, column = column_pages(
        pa.table({"text": TEXTS}),
        use_dictionary=False,
        compression=compression,
        data_page_version=version,
        write_statistics=write_statistics,
        data_page_size=100_000,
        write_batch_size=10,
    )
    assert len(actual) > 10
    assert sum(page.values for page in actual) == column.num_values == 2000
    headers = 60 * len(actual) + (4000 * len(actual) if write_statistics else 0)
    total = column.total_uncompressed_size + column.total_compressed_size
    assert total - 2 * headers <= sum(page.bytes for page in actual) < total


def test_a_dictionary_counts_twice_because_its_values_are_copied():
    actual, _ = column_pages(pa.table({"text": TEXTS}), compression="none", dictionary_pagesize_limit=1 << 30)
    plain = sum(len(text) + 4 for text in TEXTS)
    assert actual[0] == Page(2000, 3 * plain)
    assert sum(page.values for page in actual[1:]) == 2000


def test_a_page_grows_with_the_rows_written_at_once_and_not_only_by_its_size():
    """The way in which pages of hundreds of megabytes come about, and the advice against them."""
    table = pa.table({"text": [text * 20 for text in TEXTS[:200]]})
    first, _ = column_pages(table, use_dictionary=False, compression="none", data_page_size=1 << 16)
    assert [page.values for page in first] == [200]
    many, _ = column_pages(table, use_dictionary=False, compression="none", data_page_size=1 << 16, write_batch_size=1)
    assert max(page.bytes for page in many) < 2 * ((1 << 16) + 21_000)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x15",
        b"\x15\x00\x00",
        b"\x15\x00" + b"\x15" + b"\xff" * 11,
        b"\x1c" * 5000,
        b"\x18\xff\xff\xff\x7f",
        b"\x1e",
    ],
    ids=["nothing", "cut off", "too few fields", "an endless number", "endless nesting", "endless bytes", "type 14"],
)
def test_what_is_no_page_header_is_an_error(header):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": TEXTS}), file, use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0)
    with pytest.raises(OSError, match="page header"):
        list(pages(io.BytesIO(b"PAR1" + header), column))


def test_a_page_of_negative_size_is_an_error_and_not_read_forever():
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": TEXTS}), file, use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0)
    header = b"\x15\x00\x15\x02\x15\x0f\x2c\x15\x02\x00\x00"  # type 0, sizes 1 and -8, one value
    with pytest.raises(OSError, match="negative size"):
        list(pages(io.BytesIO(b"PAR1" + header), column))
