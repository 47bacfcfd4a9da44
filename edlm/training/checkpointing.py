"""Checkpoints of one training: resume from the newest, save in the background, on every rank alike."""

import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import pydantic
import torch
from torch import Tensor

from edlm.checkpoints.lease import LeaseLost
from edlm.checkpoints.snapshot_retention import Retention, sweep
from edlm.checkpoints.snapshot_writer import PATIENCE, SnapshotWriter
from edlm.checkpoints.state_slices import StateSource
from edlm.checkpoints.training_state import NoValidSnapshot, new_attempt, newest_snapshot, open_snapshot
from edlm.storage import StorageError
from edlm.training.interfaces import Engine

ENDING = 60.0  # seconds for which a training that ends with an error waits for its last checkpoint
log = logging.getLogger(__name__)


def raise_on_all(engine: Engine, error: Exception | None) -> None:
    """Raise the error of any rank on every rank, on others as a StorageError that names it. All ranks call it.

    A rank that raised alone would leave the others waiting in their next collective.
    """
    failed = torch.nonzero(engine.gather(torch.tensor(float(error is not None))).flatten()).flatten().tolist()
    if error is not None:
        log.warning("rank %d: %s", engine.rank, error)
        raise error
    if failed:
        raise StorageError(f"rank {failed[0]} of {engine.world_size} failed to read or write its part, see its log")


def wait_on_all(engine: Engine, writer: SnapshotWriter) -> None:
    """Wait for this rank's last snapshot. Raise StorageError on all ranks if any could not write it. All ranks call it.

    Rank 0 raises LeaseLost at once and alone: the others wait for a manifest that does not come, and as long as a
    collective may take; the end of rank 0 ends them.
    """
    error = None
    try:
        writer.wait()
    except LeaseLost:
        raise
    except StorageError as failure:
        error = failure
    raise_on_all(engine, error)


class Checkpointing:
    """Checkpoints of a training in a workspace, which one launch of it at a time may use. All ranks call its methods.

    As a context manager it waits, at the end, for the last checkpoint to be written.
    """

    def __init__(
        self,
        engine: Engine,
        workspace: str,
        *,
        from_rank_0: Callable[[Any], Any] = lambda value: value,
        retention: Retention | None = None,
        patience: float = PATIENCE,
        facts: Mapping[str, pydantic.JsonValue] | None = None,
        before_commit: Callable[[], None] = lambda: None,
        kept: int | None = None,
        room: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
    ) -> None:
        """`from_rank_0` returns, on every rank, what it was called with on rank 0; `facts` go into the manifests.

        What killed launches left is removed. `patience`: seconds for which a store that refuses is tried again.
        `before_commit` is called on rank 0, in the background, before each snapshot counts.
        `kept`: the step whose snapshot later ones do not replace. `room`: as in `SnapshotWriter`.
        """
        self._engine, self._workspace, self._from_rank_0 = engine, workspace, from_rank_0
        self.attempt = from_rank_0(new_attempt())
        """Name of this launch, unlike those of all others."""
        if engine.rank == 0:
            sweep(workspace, self.attempt)
        self._writer = SnapshotWriter(
            workspace, self.attempt, engine.rank, engine.world_size,
            retention=retention, patience=patience, facts=facts, before_commit=before_commit, kept=kept,
            room=room,
        )  # fmt: skip

    def resume(self, start: tuple[str, int] | None = None) -> tuple[str, int] | None:
        """Load the newest intact snapshot, or `start` if the workspace has none; return its (URI, step).

        One whose content is damaged, or is of another network, is passed over by all ranks. Raise NoValidSnapshot on
        all ranks if snapshots were committed and none can be loaded.
        """
        rejected: dict[str, str] = {}
        while True:
            chosen = self._from_rank_0(self._newest(rejected) if self._engine.rank == 0 else None)
            if isinstance(chosen, NoValidSnapshot):
                raise chosen
            chosen = chosen or start
            if chosen is None:
                return None
            try:
                self._engine.load(self._open(chosen[0]), chosen[1])
            except ValueError as error:
                if chosen == start:
                    raise
                rejected[chosen[0]] = str(error)
                continue
            return chosen

    def _newest(self, rejected: Mapping[str, str]) -> tuple[str, int] | NoValidSnapshot | None:
        try:
            return newest_snapshot(self._workspace, rejected)
        except NoValidSnapshot as error:
            return error

    def _open(self, uri: str) -> StateSource:
        state, error = None, None
        try:
            state = open_snapshot(uri)
        except ValueError as failure:
            error = failure
        raise_on_all(self._engine, error)
        assert state is not None
        return state

    def save(self, engine: Engine) -> None:
        """Save the state of the engine: training may go on as soon as it is copied to host memory.

        Raise StorageError on all ranks if any could not write the checkpoint before (`wait_on_all`).
        """
        self.finish()
        self._writer.save(engine.part(), engine.step)

    def finish(self) -> None:
        """Wait for the last checkpoint. Raise StorageError on all ranks if any could not write it."""
        wait_on_all(self._engine, self._writer)

    def __enter__(self) -> "Checkpointing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        try:
            self._writer.wait(ENDING)  # without the others, which may not get here
        except StorageError as failure:
            log.warning("%s", failure)
