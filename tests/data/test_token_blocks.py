"""Tokens that are fetched from a store are those of the file, and a part of it that is damaged is refused."""

import hashlib
import io
import re
import uuid

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.token_blocks import BLOCK_BYTES, DIGEST_BYTES, BlockWriter, StoredTokens
from edlm.file_systems import file_system
from edlm.storage import write_bytes
from edlm.storage_errors import StorageError


def content_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def stored(count: int, number: str) -> tuple[StoredTokens, np.ndarray]:
    """Tokens in a store, and the same in memory."""
    raw, uri = content_of(count * np.dtype(number).itemsize), f"memory://{uuid.uuid4().hex}/train.bin"
    write_bytes(uri, raw)
    writer = BlockWriter(io.BytesIO())
    writer.write(memoryview(raw))
    digests = np.frombuffer(writer.finish(), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    return StoredTokens(uri, *file_system(uri), count, np.dtype(number), digests), np.frombuffer(raw, dtype=number)


@pytest.fixture
def ranges(monkeypatch) -> list[tuple[int, int]]:
    """The ranges of bytes that are asked for."""
    asked, real = [], MemoryFileSystem.cat_ranges

    def cat_ranges(self, paths, starts, ends, **options):
        asked.extend(zip(starts, ends, strict=True))
        return real(self, paths, starts, ends, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", cat_ranges)
    return asked


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=6))
def test_the_file_and_its_digests_do_not_depend_on_how_it_is_written(sizes):
    raw, file = content_of(sum(sizes)), io.BytesIO()
    writer, start = BlockWriter(file), 0
    for size in sizes:
        writer.write(memoryview(raw)[start : start + size])
        start += size
    digests = writer.finish()
    assert file.getvalue() == raw
    blocks = [raw[at : at + BLOCK_BYTES] for at in range(0, len(raw), BLOCK_BYTES)]
    assert digests == b"".join(hashlib.sha256(block).digest() for block in blocks)


@settings(max_examples=30)
@given(st.data(), st.sampled_from(["<u2", "<u4"]), st.integers(1, 80_000), st.integers(0, 600), st.integers(0, 3))
def test_any_tokens_are_those_of_the_file(draw, number, count, rows, length):
    tokens, expected = stored(count, number)
    seed = draw.draw(st.integers(0, 2**31))
    indices = np.random.default_rng(seed).integers(0, count, size=(rows, length))
    found = tokens.at(indices)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected[indices])


def test_only_the_blocks_that_hold_a_token_are_fetched_each_once(ranges):
    tokens, _ = stored(5 * BLOCK_BYTES // 2 - 10, "<u2")
    tokens.at(
        np.array([[0, 1], [BLOCK_BYTES // 2 - 1, BLOCK_BYTES // 2], [2, 3], [tokens.count - 2, tokens.count - 1]])
    )
    size = tokens.count * 2
    assert ranges == [(0, BLOCK_BYTES), (BLOCK_BYTES, 2 * BLOCK_BYTES), (4 * BLOCK_BYTES, size)]


def test_a_damaged_block_is_refused_by_its_bytes_and_the_others_are_read():
    tokens, expected = stored(3 * BLOCK_BYTES // 2, "<u2")
    raw = bytearray(expected.tobytes())
    raw[BLOCK_BYTES] ^= 1
    write_bytes(tokens.uri, bytes(raw))
    assert tokens.at(np.array([[0]])) == expected[0]
    message = f"{re.escape(tokens.uri)}: bytes 65,536 to 131,072 have SHA-256 .*, expected .*; restore the file"
    with pytest.raises(StorageError, match=message):
        tokens.at(np.array([[0, BLOCK_BYTES // 2]]))


def test_a_file_that_became_shorter_or_went_missing_is_refused():
    tokens, expected = stored(3 * BLOCK_BYTES // 2, "<u2")
    write_bytes(tokens.uri, expected.tobytes()[: BLOCK_BYTES + 7])
    with pytest.raises(StorageError, match="bytes 65,536 to 131,072 have SHA-256"):
        tokens.at(np.array([[BLOCK_BYTES // 2]]))
    MemoryFileSystem().rm(tokens.uri.removeprefix("memory:/"))
    with pytest.raises(StorageError, match=r"train\.bin is missing though its folder is committed"):
        tokens.at(np.array([[0]]))
