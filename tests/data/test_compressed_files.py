import bz2
import gzip
import io
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from edlm.config import ConfigurationError
from edlm.data.corpus import Files

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the program zstd does
}
endings = pytest.mark.parametrize("ending", PACK)


def texts(path):
    return [document.text for document in Files(paths=(str(path),)).documents()]


@endings
@pytest.mark.parametrize("upper", [False, True])
def test_every_format_is_read_out_of_every_compression(tmp_path, ending, upper):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": ["one", "two"]}), sink)
    rows = [{"text": "one"}, {"text": "two"}]
    formats = {
        "a.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "a.json": json.dumps(rows).encode(),
        "a.csv": b"text\none\ntwo\n",
        "a.parquet": sink.getvalue(),
    }
    for name, data in formats.items():
        path = tmp_path / (f"{name}{ending}".upper() if upper else f"{name}{ending}")
        path.write_bytes(PACK[ending](data))
        assert texts(path) == ["one", "two"]


@endings
def test_members_one_after_another_are_one_file(tmp_path, ending):
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(PACK[ending](b"one ") + PACK[ending](b"two"))
    assert texts(path) == ["one two"]


@endings
@pytest.mark.parametrize("format", ["txt", "jsonl", "json", "csv", "parquet"])
def test_a_truncated_or_damaged_file_is_refused_by_name(tmp_path, ending, format):
    text = random.Random(1).randbytes(100_000).hex()
    match format:
        case "txt":
            data = text.encode()
        case "csv":
            data = f"text\n{text}\n".encode()
        case "parquet":
            sink = io.BytesIO()
            pyarrow.parquet.write_table(pa.table({"text": [text]}), sink)
            data = sink.getvalue()
        case _:
            data = json.dumps([{"text": text}] if format == "json" else {"text": text}).encode()
    packed = PACK[ending](data)
    middle = len(packed) // 2
    wrong = {
        "truncated": packed[:middle],
        "without its end": packed[:-3],
        "damaged": packed[:middle] + bytes(64) + packed[middle + 64 :],
        "plain": data,
    }
    for name, content in wrong.items():
        path = tmp_path / f"{name}.{format}{ending}"
        path.write_bytes(content)
        with pytest.raises(
            ConfigurationError, match=rf"{name}\.{format}{ending} is no \w+ file, or is truncated or dam"
        ):
            texts(path)


def test_a_file_that_may_not_be_read_is_refused_by_name(monkeypatch):
    class Broken(MemoryFile):
        def read(self, size=-1):
            raise PermissionError(f"not these {size} bytes")

    system = MemoryFileSystem()
    monkeypatch.setitem(system.store, "/compressed-test.txt", Broken(system, "/compressed-test.txt", b"text"))
    with pytest.raises(ConfigurationError, match=r"memory://.*test\.txt cannot be read from byte 0 on .*not these"):
        texts("memory://compressed-test.txt")
