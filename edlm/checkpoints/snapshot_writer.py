"""Snapshots written in the background: training stops while its state is copied to host memory, and no longer.

No collective runs in the thread. Each rank leaves a record beside its part, and rank 0 waits for the records of all
before it commits the snapshot.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pydantic
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from edlm.checkpoints.lease import LeaseLost
from edlm.checkpoints.snapshot_manifest import (
    MANIFEST,
    Manifest,
    PartRecord,
    SavedTensor,
    SnapshotPart,
    listed,
    merged,
    part_name,
    require_parts,
    write_manifest,
)
from edlm.checkpoints.snapshot_retention import Retention, retain, snapshot_folder
from edlm.checkpoints.state_slices import StateSlice
from edlm.checkpoints.tensor_files import DIGEST, NAMES, header_of, write_safetensors
from edlm.config import parse, plain
from edlm.file_systems import file_system
from edlm.storage import StorageError, join, read_text, write_text

PATIENCE = 600.0  # seconds
FIRST_PAUSE = 1.0  # second
LONGEST_PAUSE = 30.0  # seconds, between two attempts at the store, and between two lines that say what is waited for
log = logging.getLogger(__name__)


def host_memory(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return memory of the host for copies of the tensors."""
    pinned = any(one.is_cuda for one in tensors)
    return [torch.empty(one.shape, dtype=one.dtype, pin_memory=pinned) for one in tensors]


class SnapshotWriter:
    """Writer of the snapshots of one rank, at most one at a time."""

    def __init__(
        self,
        workspace: str,
        attempt: str,
        rank: int = 0,
        world_size: int = 1,
        *,
        retention: Retention | None = None,
        patience: float = PATIENCE,
        facts: Mapping[str, pydantic.JsonValue] | None = None,
        before_commit: Callable[[], None] = lambda: None,
        kept: int | None = None,
        room: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
    ) -> None:
        """`patience`: seconds for which a store that refuses is tried again, and the parts of others are waited for.

        `before_commit` is called on rank 0, in the thread, immediately before each attempt to write the manifest, and
        again while it raises an error and patience lasts; but LeaseLost ends the saving, and `wait` raises it.
        `kept`: the step whose snapshot later ones do not replace.
        `room` makes tensors on the host like those that are given, for copies. None: in memory.
        """
        self._before_commit = before_commit
        self._workspace, self._attempt, self._rank, self._world_size = workspace, attempt, rank, world_size
        self._retention, self._patience, self._facts = retention or Retention(), patience, dict(facts or {})
        self._kept, self._room = kept, room or host_memory
        self._host: list[Tensor] = []  # kept: allocating memory takes as long as copying to it
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._step = 0

    def save(self, slices: Sequence[StateSlice], step: int) -> None:
        """Copy this rank's slices of the state after `step` steps to host memory, and write them in a thread.

        The slices of all ranks must be the whole state, each element once. Call `wait` before, and at the end.
        """
        assert self._thread is None, "wait for the snapshot before"
        self._copy([one.values for one in slices])
        copies = [
            StateSlice(one.name, one.shape, one.offset, host) for one, host in zip(slices, self._host, strict=True)
        ]
        self._step = step
        # A daemon: a store that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(copies, step), name=f"snapshot-{step}", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the last snapshot is written; on rank 0, committed. Raise StorageError if it is not, or LeaseLost.

        Wait at most `seconds`, or until patience with the store and with other ranks must have ended.
        """
        if self._thread is None:
            return
        until = time.monotonic() + (2 * self._patience + LONGEST_PAUSE if seconds is None else seconds)
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(min(LONGEST_PAUSE, max(0.0, until - time.monotonic())))
            if self._thread.is_alive():
                log.warning("training waits for the checkpoint after step %d to be written", self._step)
        stuck, self._thread = self._thread.is_alive(), None
        if stuck:
            self._host = []  # which the thread still reads
            raise StorageError(f"{self._failed()}: it is not written yet, {self._workspace} is slow or does not answer")
        error, self._error = self._error, None
        if isinstance(error, LeaseLost):
            raise error
        if error is not None:
            raise StorageError(f"{self._failed()}: {error}") from error

    def _failed(self) -> str:
        return f"rank {self._rank} cannot write the checkpoint after step {self._step}; the one before is still there"

    def _copy(self, tensors: Sequence[Tensor]) -> None:
        if [(host.shape, host.dtype) for host in self._host] != [(one.shape, one.dtype) for one in tensors]:
            self._host = []
            self._host = self._room(tensors)
        for host, one in zip(self._host, tensors, strict=True):
            host.copy_(one, non_blocking=True)
        if any(one.is_cuda for one in tensors):
            torch.cuda.synchronize()

    def _run(self, slices: Sequence[StateSlice], step: int) -> None:
        try:
            uri = join(self._workspace, snapshot_folder(step, self._attempt))
            self._persist(lambda: write_part(uri, self._rank, slices))
            if self._rank == 0:
                self._await(uri, _record_files(self._world_size))
                self._persist(
                    lambda: commit(uri, step, self._attempt, self._world_size, self._facts, self._before_commit)
                )
                self._remove_old(uri)
            else:
                self._await(uri, [MANIFEST])  # so that no rank waits for rank 0 in a collective, which has a time-out
        except Exception as error:  # of many classes: each store's client has its own
            log.warning("%s: %s", self._failed(), error)  # now: training hears of it at the next checkpoint
            self._error = error

    def _persist(self, write: Callable[[], None]) -> None:
        """Write, and try again while the store refuses, for as long as patience lasts."""
        until, pause = time.monotonic() + self._patience, FIRST_PAUSE
        while True:
            try:
                return write()
            except StorageError:
                raise  # what is there is wrong, and stays so
            except Exception as error:
                if time.monotonic() + pause > until:
                    raise
                log.warning(
                    "the checkpoint after step %d could not be written (%s: %s); next attempt in %.0f s",
                    self._step, type(error).__name__, error, pause,
                )  # fmt: skip
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _await(self, uri: str, files: Sequence[str]) -> None:
        """Return when these files are there, which other ranks write."""
        until, pause, logged = time.monotonic() + self._patience, 0.05, time.monotonic()
        while missing := sorted(set(files) - self._present(uri)):
            if time.monotonic() > until:
                raise StorageError(f"after {self._patience:.0f} s {missing[0]} is not written ({len(missing)} missing)")
            if time.monotonic() - logged > LONGEST_PAUSE:
                logged = time.monotonic()
                log.warning("the checkpoint after step %d waits for %d files: %s", self._step, len(missing), missing[0])
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _present(self, uri: str) -> set[str]:
        try:
            return set(listed(uri))
        except Exception as error:  # an outage, which may pass while there is patience
            log.warning("%s cannot be listed (%s: %s)", uri, type(error).__name__, error)
            return set()

    def _remove_old(self, uri: str) -> None:
        try:
            retain(self._workspace, uri, self._retention, self._kept)
        except Exception as error:  # the snapshot is committed; the next one removes what this one could not
            log.warning("old checkpoints in %s stay for now (%s: %s)", self._workspace, type(error).__name__, error)


def commit(
    uri: str,
    step: int,
    attempt: str,
    world_size: int,
    facts: Mapping[str, pydantic.JsonValue] | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Write the manifest of the snapshot `uri`, whose parts are all there. Raise StorageError if they are not whole.

    `before` is called immediately before it is written; what that raises keeps the snapshot from counting.
    """
    texts = {name: read_text(join(uri, name)) for name in _record_files(world_size)}
    tensors, parts = merged([parse(PartRecord, json.loads(text), join(uri, name)) for name, text in texts.items()])
    require_parts(uri, parts)
    before()
    write_manifest(
        uri,
        Manifest(
            step=step, attempt=attempt, world_size=world_size, tensors=tensors, parts=parts, facts=dict(facts or {})
        ),
    )


def write_part(uri: str, rank: int, slices: Sequence[StateSlice]) -> None:
    """Write one rank's part of the snapshot `uri`, on the CPU: the tensors, the digests of their chunks, the record.

    On a local disk an error leaves nothing of it: a half-written part would be the rest of a disk that is full.
    """
    try:
        _write_part(uri, rank, slices)
    except Exception:
        system, path = file_system(join(uri, part_name(rank)))
        for suffix in (".json", ".sha256", ".safetensors") if isinstance(system, LocalFileSystem) else ():
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise


def _write_part(uri: str, rank: int, slices: Sequence[StateSlice]) -> None:
    name = part_name(rank)
    slices = [one for one in slices if one.values.numel()]
    slices.sort(key=lambda one: -one.values.element_size())  # keeps every tensor of the file aligned
    tensors = [(_key(one), one.values) for one in slices]
    system, path = file_system(join(uri, f"{name}.safetensors"))
    digests = write_safetensors(system, path, tensors)
    start = len(header_of(tensors))
    saved = {
        one.name: SavedTensor(name=one.name, dtype=NAMES[one.values.dtype], shape=tuple(one.shape)) for one in slices
    }
    indices = {tensor: i for i, tensor in enumerate(saved)}
    text = _lines(digests)
    write_text(join(uri, f"{name}.sha256"), text)
    part = SnapshotPart(
        name=name,
        bytes=start + sum(tensor.nbytes for _, tensor in tensors),
        start=start,
        digests=hashlib.sha256(text.encode()).hexdigest(),
        slices=tuple((indices[one.name], one.offset, one.values.numel()) for one in slices),
    )
    write_text(join(uri, f"{name}.json"), json.dumps(plain(PartRecord(tensors=tuple(saved.values()), part=part))))


def _record_files(world_size: int) -> list[str]:
    return [f"{part_name(rank)}.json" for rank in range(world_size)]


def _key(one: StateSlice) -> str:
    """Return the name of a slice in the file; of a whole tensor, the tensor's."""
    count = one.values.numel()
    return one.name if count == one.shape.numel() else f"{one.name}[{one.offset}:{one.offset + count}]"


def _lines(digests: bytes) -> str:
    """Return the digests in hexadecimal, one chunk per line."""
    return "".join(digests[i : i + DIGEST].hex() + "\n" for i in range(0, len(digests), DIGEST))
