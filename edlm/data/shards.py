"""Shards: encoded parts of a corpus, each committed as one file, so that a killed preparation goes on.

One reader reads the corpus, assigns the splits and hands the documents to tasks: reading is cheap beside tokenization.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow

from edlm.atomic_file import put
from edlm.config import plain
from edlm.data.chat_template import ChatTemplate
from edlm.data.encoded_documents import DocumentBatch, DocumentEncoder, EncodedBatch, EncodedDocument
from edlm.data.lost_characters import Losses
from edlm.data.packed_documents import PackedDocuments
from edlm.data.tokenizer import Tokenizer
from edlm.storage import join, local_path, read_bytes, read_text, write_bytes, write_text
from edlm.storage_errors import StorageError

FORMAT = "2"  # of a shard's file; another one has other names
CHARACTERS = 4_000_000  # of a shard: with GPT-2's BPE seconds of one core, so that a kill loses little
DIGEST_BYTES = 32
COLUMNS = {
    "split": pyarrow.string(),
    "characters": pyarrow.int64(),
    "bytes": pyarrow.int64(),
    "key": pyarrow.uint64(),
    "beginning": pyarrow.string(),
    "part": pyarrow.string(),
    "given": pyarrow.int64(),
}
"""Fields of `EncodedDocument` in their order, except its ids, which are the second."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class OrderedMap(Protocol):
    """The builtin `map`, or one that computes several items at once, in other processes.

    Results come in the order of the items, which are taken as they are needed.
    """

    def __call__(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]: ...


@dataclass(frozen=True)
class ShardTask:
    """One shard: its file, and the documents to encode."""

    uri: str
    documents: PackedDocuments | None
    """None: the file is there, and intact."""
    tokenizer: str
    """URI of the tokenizer.json, whose name holds its digest."""
    chat: ChatTemplate | None


@dataclass(frozen=True)
class CommittedShard:
    """File of a shard, and whether an earlier preparation has made it."""

    uri: str
    reused: bool


@dataclass(frozen=True)
class Shards:
    """Folder of shards, as a URI that tasks can reach and that outlives a killed preparation, and how tasks are run.

    The name of a shard is a digest of its documents and their splits, of the tokenizer and of the chat template: a
    preparation of other data or settings finds none of them. Their size has no influence on what is prepared.
    """

    folder: str
    run: OrderedMap = map
    characters: int = CHARACTERS

    def encoded(
        self, batches: Iterable[DocumentBatch], tokenizer: Tokenizer, chat: ChatTemplate | None
    ) -> Iterator[tuple[EncodedBatch, bool]]:
        """Yield the encoded documents of each shard, in order, and whether the shard was reused."""
        uri = join(self.folder, f"tokenizer-{tokenizer.digest}.json")
        write_text(uri, tokenizer.text)
        for shard in self.run(encode_shard, self._tasks(batches, uri, chat)):
            batch = read_shard(shard.uri)
            if batch is None:
                raise StorageError(
                    f"{shard.uri} is missing or damaged, and a task has just written it; give a storage that all "
                    "machines reach, and run the stage again"
                )
            yield batch, shard.reused

    def _tasks(
        self, batches: Iterable[DocumentBatch], tokenizer: str, chat: ChatTemplate | None
    ) -> Iterator[ShardTask]:
        for group in self._groups(batches):
            packed = PackedDocuments.of(group)
            uri = join(self.folder, f"{_digest(group, packed, tokenizer, chat)}.shard")
            yield ShardTask(uri, None if read_shard(uri) else packed, tokenizer, chat)

    def _groups(self, batches: Iterable[DocumentBatch]) -> Iterator[tuple[DocumentBatch, ...]]:
        """Yield consecutive batches that have `characters` together; the last group has fewer."""
        group, size = [], 0
        for batch in batches:
            group.append(batch)
            size += sum(len(document.text) for document, _ in batch)
            if size >= self.characters:
                yield tuple(group)
                group, size = [], 0
        if group:
            yield tuple(group)


def encode_shard(task: ShardTask) -> CommittedShard:
    """Encode the documents of a shard, and commit it: readers see the whole file or none."""
    if task.documents is not None:
        encoder, shard = DocumentEncoder(_opened(task.tokenizer), task.chat), EncodedBatch()
        for batch in task.documents.batches():
            shard.add(encoder(batch))
        write_shard(task.uri, shard)
    return CommittedShard(task.uri, reused=task.documents is None)


@functools.lru_cache(maxsize=1)
def _opened(uri: str) -> Tokenizer:
    """Return a tokenizer; a process that runs many tasks opens it once."""
    return Tokenizer(read_text(uri))


def write_shard(uri: str, batch: EncodedBatch) -> None:
    """Write encoded documents as an Arrow file, behind its SHA-256."""
    documents = batch.documents
    ids = np.concatenate([np.zeros(0, dtype=np.int32), *(document.ids for document in documents)])
    if ids.max(initial=0) <= np.iinfo(np.uint16).max:  # half the bytes to hash, write and read
        ids = ids.astype(np.uint16)
    ids_type = pyarrow.large_list(pyarrow.from_numpy_dtype(ids.dtype))
    offsets = np.cumsum([0, *(len(document.ids) for document in documents)])
    columns = {
        "ids": pyarrow.LargeListArray.from_arrays(offsets, ids),
        **{name: [getattr(document, name) for document in documents] for name in COLUMNS},
    }
    facts = {
        "dropped": batch.dropped,
        "characters": batch.characters,
        "lost": batch.losses.lost,
        "sample": batch.losses.sample,
    }
    schema = pyarrow.schema({"ids": ids_type, **COLUMNS}, metadata={"facts": json.dumps(facts)})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, schema) as file:
        file.write(pyarrow.record_batch(columns, schema=schema))
    content = memoryview(sink.getvalue())
    raw = b"".join((hashlib.sha256(content).digest(), content))
    if (path := local_path(uri)) is not None:
        put(path, raw)  # if the power fails, the digest says so
    else:
        write_bytes(uri, raw)


def read_shard(uri: str) -> EncodedBatch | None:
    """Return the encoded documents of a shard; None if there is no such file, or it is damaged."""
    try:
        raw = read_bytes(uri)
    except FileNotFoundError:
        return None
    content = memoryview(raw)[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != raw[:DIGEST_BYTES]:
        return None
    file = pyarrow.ipc.open_file(pyarrow.py_buffer(content))
    rows, facts = file.get_batch(0), json.loads(file.schema.metadata[b"facts"])
    ids, offsets = rows.column("ids").values.to_numpy(), rows.column("ids").offsets.to_numpy()
    columns = [rows.column(name).to_pylist() for name in COLUMNS]
    documents = [
        EncodedDocument(split, ids[start:end], *others)
        for start, end, split, *others in zip(offsets, offsets[1:], *columns, strict=False)
    ]
    losses = Losses(Counter(facts["lost"]), facts["sample"])
    return EncodedBatch(documents, facts["dropped"], facts["characters"], losses)


def _digest(
    batches: Iterable[DocumentBatch], packed: PackedDocuments, tokenizer: str, chat: ChatTemplate | None
) -> str:
    """Return a digest of all that determines the content of a shard, except the code."""
    name = tokenizer.rpartition("/")[2]
    # Where batches end decides which characters are inspected for losses.
    about = [[[split, one.part, one.given, one.turns, len(one.text)] for one, split in batch] for batch in batches]
    facts = [FORMAT, name, None if chat is None else plain(chat), about]
    return hashlib.sha256(hashlib.sha256(packed.utf8.data).digest() + json.dumps(facts).encode()).hexdigest()
