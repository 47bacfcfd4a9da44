"""Shards: whatever makes them, and however often it was interrupted, the prepared files are those of one process."""

import json
import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.data import corpus_files, document, shards, splits, text_batches
from edlm.data.corpus import Files, Markov, Mixture
from edlm.data.encoded_documents import EncodedBatch, EncodedDocument
from edlm.data.file_part import FilePart
from edlm.data.mixture import Part
from edlm.data.packed_documents import PackedDocuments
from edlm.data.pairs import Prompts
from edlm.data.preparation import Data, prepare
from edlm.data.shards import Shards, read_shard, write_shard
from edlm.data.splits import Shares
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters, HuggingFaceTokenizer, Symbols
from tests.chats import write_chat_tokenizer

STORIES = [f"story {i % 50} of {'many ' * (i % 7)}я words\n" for i in range(90)]
SHARES = Shares(validation=0.2, judge=0.1)


def silent(_: str) -> None:
    pass


def lines(path: Path, rows: list[dict]) -> tuple[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return (str(path),)


def rows(folder: Path) -> Data:
    corpus = Files(paths=lines(folder / "rows.jsonl", [{"text": text} for text in STORIES]), longest=40)
    return Data(corpus=corpus, tokenizer=BPE(size=300), length=8, shares=SHARES)


def text_with_lost_letters(folder: Path) -> Data:
    (folder / "a.txt").write_text("".join(STORIES), encoding="utf-8")
    corpus = Files(paths=(str(folder / "a.txt"),), cut="line")
    return Data(corpus=corpus, tokenizer=Characters(), length=8, shares=SHARES)


def table_with_texts_held_out(folder: Path) -> Data:
    pyarrow.parquet.write_table(pa.table({"text": STORIES}), folder / "a.parquet")
    held = Files(paths=lines(folder / "held.jsonl", [{"text": text} for text in STORIES[:20]]))
    corpus = Files(paths=(str(folder / "a.parquet"),))
    return Data(corpus=corpus, validation=held, tokenizer=Bytes(), length=8, shares=Shares(validation=0))


def pairs(folder: Path) -> Data:
    pairs = [{"prompt": f"{i} plus {i % 7}", "answer": f"{i + i % 7}" + "!" * (i % 31)} for i in range(80)]
    corpus = Files(paths=lines(folder / "pairs.jsonl", pairs), text_field="answer", prompts=Prompts(field="prompt"))
    return Data(corpus=corpus, tokenizer=Bytes(), length=24, shares=SHARES)


def mixture(folder: Path) -> Data:
    first = Files(paths=lines(folder / "first.jsonl", [{"text": text} for text in STORIES]), longest=30)
    second = Files(paths=lines(folder / "second.jsonl", [{"text": f"{i} other"} for i in range(90)]))
    corpus = Mixture(parts=(Part(corpus=first, weight=1.0, name="stories"), Part(corpus=second, weight=2.0)))
    return Data(corpus=corpus, tokenizer=Bytes(), length=8, shares=SHARES)


def source(_: Path) -> Data:
    return Data(corpus=Markov(symbols=3, length=5, sequences=400), tokenizer=Symbols(size=3), length=5, shares=SHARES)


def conversations(folder: Path) -> Data:
    chats = [
        {"messages": [{"role": "user", "content": f"{i} <|im_end|>"}, {"role": "assistant", "content": "!" * (i % 9)}]}
        for i in range(40)
    ]
    corpus = Files(paths=lines(folder / "chats.jsonl", chats), messages_field="messages")
    tokenizer = HuggingFaceTokenizer(uri=str(write_chat_tokenizer(folder / "chat")), separator="<|im_end|>")
    return Data(corpus=corpus, tokenizer=tokenizer, length=96, shares=Shares(validation=0.2))


CORPORA = [rows, text_with_lost_letters, table_with_texts_held_out, pairs, mixture, source, conversations]


def tasks(count: int):
    """Return a map that computes `count` items at a time, the last first, from what processes send to one another."""

    def run(work, items):
        remaining = iter(items)
        while taken := list(islice(remaining, count)):
            results = [work(pickle.loads(pickle.dumps(item))) for item in reversed(taken)]
            yield from reversed(results)

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Settings of each kind of corpus, and the files that one process prepares, in small batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_batches, "BYTES", 120)
        patch.setattr(corpus_files, "PART_BYTES", 300)
        known = {}
        for corpus in CORPORA:
            folder = tmp_path_factory.mktemp(corpus.__name__)
            data = corpus(folder)
            prepare(data, folder / "data", silent)
            known[corpus] = (data, content(folder / "data"))
        yield known


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.__name__)
@settings(max_examples=3)
@given(count=st.integers(1, 5), characters=st.integers(1, 1500), one_machine=st.booleans())
def test_the_files_are_those_of_one_process_whatever_the_tasks_and_the_shards(
    prepared, tmp_path_factory, corpus, count, characters, one_machine
):
    data, expected = prepared[corpus]
    folder = tmp_path_factory.mktemp("tasks")
    prepare(data, folder / "data", silent, Shards(str(folder / "shards"), tasks(count), characters, one_machine))
    assert content(folder / "data") == expected


def test_texts_of_a_large_corpus_are_hashed_by_the_tasks(tmp_path, monkeypatch):
    """One process reads for all tasks: what it need not do itself is done by them."""
    monkeypatch.setattr(splits, "FEW", 3)

    def never(_: str) -> int:
        raise AssertionError("the reader hashes a text")

    def run(work, tasks):
        with monkeypatch.context() as reader:
            reader.setattr(document, "text_key", never)
            tasks = list(tasks)
        yield from map(work, tasks)

    data = text_with_lost_letters(tmp_path)
    prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards"), run, characters=200))
    prepare(data, tmp_path / "expected", silent)
    assert content(tmp_path / "data") == content(tmp_path / "expected")


def test_a_document_that_is_left_out_is_never_encoded(tmp_path):
    chats = [[{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "!"}] for i in range(9)]
    strange = [{"role": "strange", "content": "3"}, {"role": "assistant", "content": "!"}]
    held, corpus = (
        Files(paths=lines(tmp_path / f"{name}.jsonl", [{"messages": chat} for chat in rows]), messages_field="messages")
        for name, rows in (("held", chats[:4]), ("corpus", [*chats[4:], strange]))
    )
    tokenizer = HuggingFaceTokenizer(uri=str(write_chat_tokenizer(tmp_path / "chat")), separator="<|im_end|>")
    data = Data(corpus=corpus, validation=held, tokenizer=tokenizer, length=8, shares=Shares(validation=0))
    assert prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards"), tasks(2))).dropped == 1


def test_tasks_read_files_of_lines_on_their_own_where_they_reach_them(prepared, tmp_path):
    data, expected = prepared[rows]
    sources = []

    def run(work, tasks):
        for task in tasks:
            sources.append(type(task.documents))
            yield work(task)

    for one_machine, source in ((True, FilePart), (False, PackedDocuments)):
        sources.clear()
        prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / f"{one_machine}"), run, 500, one_machine))
        assert set(sources) == {source}
        assert len(sources) > 3
        assert content(tmp_path / "data") == expected


def test_an_empty_file_of_lines_is_an_empty_corpus(tmp_path):
    for text in ("", "\n \n"):
        (tmp_path / "a.jsonl").write_text(text)
        data = Data(corpus=Files(paths=(str(tmp_path / "a.jsonl"),)), tokenizer=Bytes(), length=8, shares=SHARES)
        with pytest.raises(ConfigurationError, match="the corpus holds no text"):
            prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards"), one_machine=True))


class KilledPreparation(BaseException):
    pass


@pytest.mark.parametrize("one_machine", [False, True])
def test_a_killed_preparation_encodes_no_committed_shard_again(prepared, tmp_path, monkeypatch, one_machine):
    data, expected = prepared[rows]
    encoded = []
    shards_of_it = Shards(str(tmp_path / "shards"), characters=200, one_machine=one_machine)
    write = shards.write_shard

    def write_and_die(uri, batch):
        write(uri, batch)
        encoded.append(uri)
        if len(encoded) in (1, 2, 4, 7, 8):
            raise KilledPreparation

    monkeypatch.setattr(shards, "write_shard", write_and_die)
    for _ in range(5):
        with pytest.raises(KilledPreparation):
            prepare(data, tmp_path / "data", silent, shards_of_it)
    output: list[str] = []
    prepare(data, tmp_path / "data", output.append, shards_of_it)
    assert content(tmp_path / "data") == expected
    assert len(encoded) == len(set(encoded)) > 10
    assert any(line.endswith("characters were tokenised already") for line in output)
    committed = {path for path in (tmp_path / "shards").iterdir() if path.suffix == ".shard"}
    assert committed == set(map(Path, encoded))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:40] + b"?" + raw[41:], lambda _: b""])
def test_a_damaged_shard_is_made_again(prepared, tmp_path, damage):
    data, expected = prepared[rows]
    prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards"), characters=500))
    damaged, *_ = (tmp_path / "shards").glob("*.shard")
    before = damaged.read_bytes()
    damaged.write_bytes(damage(before))
    prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards"), characters=500))
    assert content(tmp_path / "data") == expected
    assert damaged.read_bytes() == before


@pytest.mark.parametrize("largest", [None, 0, 2**16 - 1, 2**16, 2**31 - 1])
def test_a_shard_keeps_ids_of_any_vocabulary(tmp_path, largest):
    ids = [] if largest is None else [largest, 0]
    encoded = EncodedDocument(np.array(ids, dtype=np.int32), characters=3, bytes=3, key=5, piece_key=6, beginning="one")
    write_shard(str(tmp_path / "a.shard"), EncodedBatch([encoded, encoded]))
    batch = read_shard(str(tmp_path / "a.shard"))
    assert batch is not None
    assert [one.ids.tolist() for one in batch.documents] == [ids, ids]


def test_a_shard_is_written_without_a_look_at_the_others(tmp_path, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("1 TB of text has 250,000 shards in this folder")

    monkeypatch.setattr(os, "scandir", never)
    write_shard(str(tmp_path / "a.shard"), EncodedBatch())
    assert read_shard(str(tmp_path / "a.shard")) == EncodedBatch()


def test_a_shard_of_other_texts_or_another_tokenizer_is_not_taken_and_one_of_other_splits_is(tmp_path):
    def names(shares=SHARES, tokenizer=Bytes(), texts=STORIES):  # noqa: B008
        corpus = Files(paths=lines(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
        data = Data(corpus=corpus, tokenizer=tokenizer, length=8, shares=shares)
        prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards")))
        return {path.name for path in (tmp_path / "shards").glob("*.shard")}

    (first,) = names()
    assert names() == {first}
    assert names(shares=Shares(validation=0.3, judge=0.1)) == {first}
    assert len(names(tokenizer=BPE(size=300))) == 2
    assert len(names(texts=[*STORIES[:-1], STORIES[-1] + "."])) == 3


def test_an_error_in_a_task_is_the_users(tmp_path):
    chats = [{"messages": [{"role": role, "content": f"{i}"} for role in ("strange", "assistant")]} for i in range(3)]
    corpus = Files(paths=lines(tmp_path / "a.jsonl", chats), messages_field="messages")
    tokenizer = HuggingFaceTokenizer(uri=str(write_chat_tokenizer(tmp_path / "chat")), separator="<|im_end|>")
    data = Data(corpus=corpus, tokenizer=tokenizer, length=8, shares=Shares(validation=0.2))
    with pytest.raises(ConfigurationError, match="a message has the role 'strange'"):
        prepare(data, tmp_path / "data", silent, Shards(str(tmp_path / "shards"), tasks(2)))
