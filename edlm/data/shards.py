"""Shards: encoded parts of a corpus, each committed as one file, so that a killed preparation goes on.

Tasks read parts of files on their own where they can. Of other corpora one reader hands them the documents.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeVar

import numpy as np
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from edlm.atomic_file import put
from edlm.config import plain
from edlm.data.byte_level_bpe import ByteLevelBPE
from edlm.data.chat_template import ChatTemplate
from edlm.data.encoded_documents import DocumentBatch, DocumentEncoder, EncodedBatch, EncodedDocument
from edlm.data.file_part import FilePart
from edlm.data.lost_characters import Losses
from edlm.data.packed_documents import ERRORS, PackedDocuments
from edlm.data.tokenizer import DocumentTokenizer, Tokenizer
from edlm.storage import join, local_path, read_bytes, read_text, write_bytes, write_text
from edlm.storage_errors import StorageError

FORMAT = "4"  # of a shard's file; another one has other names
CHARACTERS = 4_000_000  # of a shard: from a fifth of a second to some of one core, so that a kill loses little
DIGEST_BYTES = SIZE_BYTES = 16  # so that ids are aligned

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
    documents: PackedDocuments | FilePart | None
    """None: the file is there, and intact."""
    tokenizer: str
    """URI of the tokenizer.json, whose name holds its digest."""
    bulk: str | None
    """URI of the tokenizer's encoder in bulk; None if it has none."""
    chat: ChatTemplate | None


@dataclass(frozen=True)
class CommittedShard:
    """File of a shard, and whether an earlier preparation has made it."""

    uri: str
    reused: bool


@dataclass(frozen=True)
class Shards:
    """Folder of shards, as a URI that tasks can reach and that outlives a killed preparation, and how tasks are run.

    The name of a shard is a digest of its documents (or of the state of the file that they are in), of the tokenizer
    and of the chat template: a preparation of other texts or with other ones finds none of them. Their size has no
    influence on what is prepared.
    """

    folder: str
    run: OrderedMap = map
    characters: int = CHARACTERS
    one_machine: bool = False
    """Whether tasks run on the machine of this process, and reach its files."""

    def encoded(
        self, documents: Iterable[DocumentBatch | FilePart], tokenizer: Tokenizer, chat: ChatTemplate | None
    ) -> Iterator[tuple[EncodedBatch, bool]]:
        """Yield the encoded documents of each shard, in order, and whether the shard was reused.

        A part of a file is a shard; batches of documents are grouped.
        """
        uri, bulk = (join(self.folder, f"{kind}-{tokenizer.digest}.json") for kind in ("tokenizer", "bulk"))
        write_text(uri, tokenizer.text)
        if tokenizer.bulk is not None:  # a task opens it in a tenth of the tokenizer's time
            write_text(bulk, tokenizer.bulk.text)
        for shard in self.run(encode_shard, self._tasks(documents, uri, bulk if tokenizer.bulk else None, chat)):
            batch = read_shard(shard.uri)
            if batch is None:
                raise StorageError(
                    f"{shard.uri} is missing or damaged, and a task has just written it; give a storage that all "
                    "machines reach, and run the stage again"
                )
            yield batch, shard.reused

    def _tasks(
        self,
        documents: Iterable[DocumentBatch | FilePart],
        tokenizer: str,
        bulk: str | None,
        chat: ChatTemplate | None,
    ) -> Iterator[ShardTask]:
        about = [FORMAT, tokenizer.rpartition("/")[2], None if chat is None else plain(chat)]
        for content, source in self._sources(documents):
            name = hashlib.sha256(json.dumps([*about, content]).encode()).hexdigest()
            uri = join(self.folder, f"{name}.shard")
            yield ShardTask(uri, None if read_shard(uri) else source, tokenizer, bulk, chat)

    def _sources(
        self, documents: Iterable[DocumentBatch | FilePart]
    ) -> Iterator[tuple[list, PackedDocuments | FilePart]]:
        """Yield the documents of each shard, and what determines its content, except the code.

        Consecutive batches have `characters` together; the last ones have fewer.
        """
        group: list[DocumentBatch] = []
        size = 0
        for batch in documents:
            if isinstance(batch, FilePart):
                yield plain(batch), batch
                continue
            group.append(batch)
            size += sum(len(document.text) for document in batch)
            if size >= self.characters:
                yield _packed(group)
                group, size = [], 0
        if group:
            yield _packed(group)


def encode_shard(task: ShardTask) -> CommittedShard:
    """Encode the documents of a shard, and commit it: readers see the whole file or none."""
    if task.documents is not None:
        encoder, shard = DocumentEncoder(_opened(task.tokenizer, task.bulk), task.chat), EncodedBatch()
        for batch in task.documents.batches():
            shard.add(encoder(batch))
        write_shard(task.uri, shard)
    return CommittedShard(task.uri, reused=task.documents is None)


@functools.lru_cache(maxsize=1)
def _opened(uri: str, bulk: str | None) -> Tokenizer:
    """Return a tokenizer; a process that runs many tasks opens it once."""
    text = read_text(uri)
    return Tokenizer(text) if bulk is None else DocumentTokenizer(text, ByteLevelBPE.of_text(read_text(bulk)))


def write_shard(uri: str, batch: EncodedBatch) -> None:
    """Write encoded documents: a digest (XXH3 of 128 bits), the size of their ids in bytes, the ids, and JSON."""
    documents = batch.documents
    ids = np.concatenate([np.zeros(0, dtype=np.int32), *(document.ids for document in documents)])
    if ids.max(initial=0) <= np.iinfo(np.uint16).max:  # half the bytes to hash, write and read
        ids = ids.astype(np.uint16)
    facts = {
        "number": ids.dtype.str,
        "documents": [(len(of_document), *others) for of_document, *others in documents],
        "characters": batch.characters,
        "lost": batch.losses.lost,
        "sample": batch.losses.sample,
    }
    text = json.dumps(facts, ensure_ascii=False).encode("utf-8", ERRORS)
    content = b"".join((ids.nbytes.to_bytes(SIZE_BYTES), ids.data, text))
    raw = b"".join((xxh3_128_digest(content), content))
    if (path := local_path(uri)) is not None:
        put(path, raw)  # if the power fails, the digest says so
    else:
        write_bytes(uri, raw)


def read_shard(uri: str) -> EncodedBatch | None:
    """Return the encoded documents of a shard; None if there is no such file, or it is damaged."""
    try:
        raw = memoryview(read_bytes(uri))
    except FileNotFoundError:
        return None
    content = raw[DIGEST_BYTES:]
    if xxh3_128_digest(content) != raw[:DIGEST_BYTES]:
        return None
    end = SIZE_BYTES + int.from_bytes(content[:SIZE_BYTES])
    facts = json.loads(str(content[end:], "utf-8", ERRORS))
    ids = np.frombuffer(content[SIZE_BYTES:end], dtype=facts["number"])
    ends = accumulate(size for size, *_ in facts["documents"])
    documents = [
        EncodedDocument(ids[end - size : end], *others)
        for end, (size, *others) in zip(ends, facts["documents"], strict=True)
    ]
    losses = Losses(Counter(facts["lost"]), facts["sample"])
    return EncodedBatch(documents, facts["characters"], losses)


def _packed(batches: Sequence[DocumentBatch]) -> tuple[list, PackedDocuments]:
    """Return batches of documents as a task receives them, and what determines the content of their shard.

    Of the texts it is XXH3, which is quick: two shards of one corpus share 128 bits by intention only.
    """
    packed = PackedDocuments.of(batches)
    # Where batches end decides which characters are inspected for losses.
    about = [[[one.whole_key, one.part, one.given, one.turns, len(one.text)] for one in batch] for batch in batches]
    return [xxh3_128_hexdigest(packed.utf8.data), about], packed
