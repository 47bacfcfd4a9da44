"""Of prepared data in a store only the split that is read is copied and verified, each file of it once."""

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from edlm.data.corpus import Files
from edlm.data.local_splits import local_index, local_split
from edlm.data.pairs import Prompts
from edlm.data.preparation import Data, prepare
from edlm.data.splits import SPLITS, Shares
from edlm.data.token_file import TokenFile, read_summary
from edlm.data.tokenizer import open_tokenizer
from edlm.data.tokenizer_kinds import Bytes
from edlm.storage import MARKER, StorageError, publish

COMMON = {"index.json", "tokenizer.json"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Three splits of pairs, so that each has a file of given tokens."""
    folder = tmp_path_factory.mktemp("splits")
    pairs = ({"prompt": f"{i} plus 1", "answer": f"{i + 1}"} for i in range(60))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompts = Prompts(field="prompt", template="{prompt}: ")
    corpus = Files(paths=(str(folder / "pairs.jsonl"),), text_field="answer", prompts=prompts)
    data = Data(corpus=corpus, tokenizer=Bytes(), length=24, shares=Shares(validation=0.2, judge=0.2))
    prepare(data, folder / "data", lambda _: None)
    return folder / "data"


@pytest.fixture
def transfers(monkeypatch) -> list[str]:
    """Names of the files that are copied from the store, in this order."""
    names, real = [], MemoryFileSystem.get_file

    def get_file(self, source, target, **options):
        names.append(source.rpartition("/")[2])
        return real(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return names


def files_of(split: str) -> set[str]:
    return {f"{split}.bin", f"{split}.documents.bin", f"{split}.given.bin"}


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_is_copied_without_the_others_and_is_that_of_the_whole_folder(
    prepared, stored, cache, transfers, split
):
    copy = local_split(stored, split, cache)
    assert {path.name for path in copy.iterdir()} == {*COMMON, *files_of(split), MARKER}
    assert sorted(transfers) == sorted(COMMON | files_of(split))
    ours, theirs = TokenFile.open(copy, split), TokenFile.open(prepared, split)
    for name in ("tokens", "documents", "given"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_another_split_costs_its_own_files_and_the_same_one_none(stored, cache, transfers):
    local_split(stored, "train", cache)
    transfers.clear()
    local_split(stored, "train", cache)
    assert transfers == []
    local_split(stored, "validation", cache)
    assert sorted(transfers) == sorted(COMMON | files_of("validation"))


def test_the_index_comes_without_tokens(prepared, stored, cache, transfers):
    copy = local_index(stored, cache)
    assert set(transfers) == COMMON
    assert read_summary(copy) == read_summary(prepared)
    assert open_tokenizer(copy).digest == open_tokenizer(prepared).digest


def test_a_damaged_copy_of_a_split_is_replaced(prepared, stored, cache):
    damage(local_split(stored, "train", cache) / "train.bin")
    assert (local_split(stored, "train", cache) / "train.bin").read_bytes() == (prepared / "train.bin").read_bytes()


def test_a_split_that_is_damaged_in_the_store_is_refused_where_it_is_read(prepared, stored, cache):
    content = (prepared / "judge.bin").read_bytes()
    MemoryFileSystem().pipe_file(f"{stored.removeprefix('memory:/')}/judge.bin", content[:-2] + b"\0\0")
    local_split(stored, "train", cache)
    with pytest.raises(StorageError, match=r"'judge.bin' has SHA-256"):
        local_split(stored, "judge", cache)


def test_on_a_local_disk_the_folder_is_used_in_place_and_the_split_alone_verified(prepared, tmp_path, cache):
    folder = tmp_path / "data"
    publish(prepared, str(folder))
    damage(folder / "judge.bin")
    assert local_split(str(folder), "train", cache) == folder
    assert local_index(str(folder), cache) == folder
    with pytest.raises(StorageError, match=r"'judge.bin' has SHA-256"):
        local_split(str(folder), "judge", cache)
    (folder / "stranger").touch()
    with pytest.raises(StorageError, match="unexpected file 'stranger'"):
        local_split(str(folder), "train", cache)


def test_a_split_that_the_data_lacks_is_named_when_it_is_opened(tmp_path, cache):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i}" for i in range(60)))
    corpus = Files(paths=(str(tmp_path / "lines.txt"),), cut="line")
    data = Data(corpus=corpus, tokenizer=Bytes(), length=24, shares=Shares(validation=0.2))
    prepare(data, tmp_path / "data", lambda _: None)
    uri = f"memory://{uuid.uuid4().hex}/data"
    publish(tmp_path / "data", uri)
    with pytest.raises(ValueError, match=r"has no split 'judge', only train, validation"):
        TokenFile.open(local_split(uri, "judge", cache), "judge")
