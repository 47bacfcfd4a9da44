"""Result of a training: the weights to keep, as a snapshot in a folder of the workspace, by the rules of checkpoints.

It is in the parts that its workers wrote, unique to their launch, and counts from its manifest on.
"""

from collections.abc import Callable, Mapping, Sequence

import pydantic
from torch import Tensor

from edlm.checkpoints.snapshot_retention import Retention, sweep
from edlm.checkpoints.snapshot_writer import PATIENCE, SnapshotWriter
from edlm.checkpoints.state_slices import StateSource
from edlm.checkpoints.training_state import NoValidSnapshot, newest_snapshot, open_snapshot, snapshot_facts
from edlm.storage import join
from edlm.training.checkpointing import wait_on_all
from edlm.training.interfaces import Engine

RESULT = "result"


def write_result(
    engine: Engine,
    workspace: str,
    attempt: str,
    facts: Mapping[str, pydantic.JsonValue],
    patience: float = PATIENCE,
    before_commit: Callable[[], None] = lambda: None,
    room: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
) -> None:
    """Write the engine's weights to keep, each rank its part, and commit them in place of others. All ranks call it.

    A store that refuses is tried again for `patience` seconds. `before_commit` is called on rank 0 before they count.
    `room`: as in `SnapshotWriter`.
    Raise StorageError on all ranks if any could not write (`wait_on_all`).
    """
    writer = SnapshotWriter(
        join(workspace, RESULT), attempt, engine.rank, engine.world_size,
        retention=Retention(keep=1), patience=patience, facts=facts, before_commit=before_commit, room=room,
    )  # fmt: skip
    writer.save(engine.exported_part(), engine.step)
    wait_on_all(engine, writer)


def sweep_results(workspace: str, attempt: str) -> None:
    """Remove what killed attempts left of results, but not those of `attempt`."""
    sweep(join(workspace, RESULT), attempt)


def training_facts(workspace: str) -> dict[str, pydantic.JsonValue] | None:
    """Return facts about a finished training: the steps taken, the lowest validation loss if there is one, and how many
    parameters train if not all do. None if it is not finished, or its result is damaged and is made again from the last
    checkpoint; raise NoValidSnapshot if there is none to make it from.
    """
    uri = _intact(workspace)
    return None if uri is None else dict(snapshot_facts(uri))


def read_result(workspace: str) -> StateSource:
    """Return the weights of a finished training, unsharded; they are read, and verified, when they are accessed."""
    uri = _intact(workspace)
    assert uri is not None, "the training is not finished"
    return open_snapshot(uri)


def _intact(workspace: str) -> str | None:
    """Return the URI of the result, None if there is none that can be read."""
    try:
        newest = newest_snapshot(join(workspace, RESULT))
    except NoValidSnapshot:
        if newest_snapshot(workspace) is None:
            raise
        return None  # `newest_snapshot` has said why
    return None if newest is None else newest[0]
