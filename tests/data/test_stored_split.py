"""Of a large split in a store the rows that are read are fetched; a small one is copied. The rows are the same."""

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from edlm.data.batches import Batches, whole_rows
from edlm.data.corpus import Files
from edlm.data.local_splits import local_split
from edlm.data.pairs import Prompts
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares, Split
from edlm.data.stored_split import StoredSplit, open_split
from edlm.data.token_blocks import BLOCK_BYTES
from edlm.data.token_file import INDEX, TokenFile, read_summary
from edlm.data.tokenizer_kinds import Bytes
from edlm.local_cache import LocalCache
from edlm.storage import StorageError, publish

LENGTH = 32
SPLIT: Split = "train"


@pytest.fixture(scope="module", params=[False, True], ids=["texts", "pairs"])
def prepared(request, tmp_path_factory) -> Path:
    """A split of several blocks, whose rows hold prompts or do not."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = ({"prompt": f"{i} plus 1", "answer": f"is {i + 1}, which is {i} and 1"} for i in range(4000))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = Prompts(field="prompt", template="{prompt}: ") if request.param else None
    corpus = Files(paths=(str(folder / "rows.jsonl"),), text_field="answer", prompts=prompts)
    data = Data(corpus=corpus, tokenizer=Bytes(), length=LENGTH, shares=Shares(validation=0.1))
    prepare(data, folder / "data", lambda _: None)
    assert (folder / "data/train.bin").stat().st_size > 2 * BLOCK_BYTES
    return folder / "data"


def all_rows(tokens) -> int:
    return tokens.count // LENGTH


def test_every_row_and_loss_mask_of_a_training_is_that_of_the_file(prepared, stored, cache):
    file, fetched = TokenFile.open(prepared, SPLIT), StoredSplit.open(stored, SPLIT, cache)
    ours, theirs = (Batches(tokens, LENGTH, batch=all_rows(file) // 2, seed=3) for tokens in (fetched, file))
    for step in range(3):
        mine, yours = (batches.rows(step, 0, batches.batch) for batches in (ours, theirs))
        assert torch.equal(mine.tokens, yours.tokens)
        assert (mine.loss_mask is None) == (yours.loss_mask is None) == (file.given is None)
        if mine.loss_mask is not None:
            assert torch.equal(mine.loss_mask, yours.loss_mask)
    evenly, expected = (whole_rows(tokens, LENGTH, 10, step=0) for tokens in (fetched, file))
    assert torch.equal(evenly.tokens, expected.tokens)


def test_a_split_is_fetched_where_fewer_bytes_are_than_a_copy_has(prepared, stored, cache):
    size = sum((prepared / f"train{name}.bin").stat().st_size for name in ("", ".documents"))
    few = size // (BLOCK_BYTES + LENGTH * np.dtype(read_summary(prepared).number).itemsize)
    assert isinstance(open_split(stored, SPLIT, few, cache), StoredSplit)
    assert not any(cache.folder.rglob("train.bin"))
    many = open_split(stored, SPLIT, 4 * few + 4, cache)
    assert isinstance(many, TokenFile)
    assert len(list(cache.folder.rglob("train.bin"))) == 1


def test_a_split_larger_than_the_cache_is_fetched_however_much_is_read(stored, tmp_path):
    small = LocalCache(tmp_path / "small", limit_bytes=BLOCK_BYTES)
    assert isinstance(open_split(stored, SPLIT, 10**9, small), StoredSplit)


def test_a_copy_that_is_there_and_a_local_folder_are_read(prepared, stored, cache, tmp_path):
    local_split(stored, SPLIT, cache)
    assert isinstance(open_split(stored, SPLIT, 1, cache), TokenFile)
    folder = tmp_path / "data"
    publish(prepared, str(folder))
    assert isinstance(open_split(str(folder), SPLIT, 1, LocalCache(tmp_path / "another")), TokenFile)


def test_a_damaged_block_stops_the_step_that_reads_it(prepared, stored, cache):
    tokens = StoredSplit.open(stored, SPLIT, cache)
    content = bytearray((prepared / "train.bin").read_bytes())
    content[BLOCK_BYTES + 5] ^= 1
    MemoryFileSystem().pipe_file(f"{stored.removeprefix('memory:/')}/train.bin", bytes(content))
    batches = Batches(tokens, LENGTH, batch=all_rows(tokens), seed=0)
    with pytest.raises(StorageError, match=r"train\.bin: bytes 65,536 to 131,072 have SHA-256"):
        batches.rows(0, 0, batches.batch)


def test_digests_that_are_damaged_in_the_store_are_refused(prepared, stored, cache):
    content = bytearray((prepared / "train.digests.bin").read_bytes())
    content[0] ^= 1
    MemoryFileSystem().pipe_file(f"{stored.removeprefix('memory:/')}/train.digests.bin", bytes(content))
    with pytest.raises(StorageError, match=r"'train.digests.bin' has SHA-256"):
        StoredSplit.open(stored, SPLIT, cache)


def test_a_split_that_the_data_lacks_and_data_of_an_earlier_version_are_named(prepared, stored, cache, tmp_path):
    with pytest.raises(ValueError, match="has no split 'judge', only train, validation"):
        open_split(stored, "judge", 1, cache)
    folder = tmp_path / "earlier"
    publish(prepared, str(folder))
    summary = json.loads((folder / INDEX).read_text())
    summary["splits"]["train"]["sha256"] = summary["splits"]["train"].pop("digests_sha256")
    (folder / INDEX).write_text(json.dumps(summary))
    uri = f"memory://{uuid.uuid4().hex}/data"
    publish(folder, uri)
    with pytest.raises(ValueError, match=r"digests_sha256: missing(.|\n)*another version of edlm prepared the data"):
        open_split(uri, SPLIT, 1, cache)
