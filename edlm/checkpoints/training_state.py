"""Training checkpoints ("snapshots") in a workspace: which can be resumed from, opening and verifying one.

Each is in safetensors, committed by a manifest, and independent of how many workers saved it or load it. Snapshots of
earlier versions, gathered in one file, are read, too.
"""

import logging
import secrets
from collections.abc import Mapping
from typing import Any

import pydantic
from safetensors.torch import load_file
from torch import Tensor

from edlm.checkpoints.snapshot_manifest import read_manifest, require_parts
from edlm.checkpoints.snapshot_retention import (
    Retention,
    committed_at,
    remove,
    retain,
    snapshot_folder,
    snapshots,
    step_of,
)
from edlm.checkpoints.snapshot_state import SnapshotState
from edlm.checkpoints.snapshot_writer import commit, write_part
from edlm.checkpoints.state_slices import GatheredState, StateSource, whole
from edlm.local_copies import local_copy
from edlm.storage import StorageError, committed, join

GATHERED = "state.safetensors"  # the only file of a snapshot of earlier versions
log = logging.getLogger(__name__)


class NoValidSnapshot(StorageError):
    """Error for a workspace whose snapshots are all damaged: training does not begin again unasked."""


def save_snapshot(
    workspace: str, state: Mapping[str, Tensor], step: int, facts: Mapping[str, pydantic.JsonValue] | None = None
) -> None:
    """Commit a gathered state after `step` steps, and remove all but the snapshot before it; return when it is there.

    `facts` go into its manifest.
    """
    attempt = new_attempt()
    uri = join(workspace, snapshot_folder(step, attempt))
    write_part(uri, 0, [whole(name, tensor.contiguous()) for name, tensor in state.items()])
    commit(uri, step, attempt, 1, facts)
    retain(workspace, uri, Retention())


def new_attempt() -> str:
    """Return a name for one launch of a training, unlike those of all others."""
    return secrets.token_hex(4)


def newest_snapshot(workspace: str, rejected: Mapping[str, str] | None = None) -> tuple[str, int] | None:
    """Return (URI, step) of the newest snapshot that is complete, or None if there is none; log what is passed over.

    Its manifest is verified, and that its files are there with their sizes; their content is when it is read
    (`StateSource.fill`). `rejected` are snapshots whose content was found damaged, with the reason.
    Raise NoValidSnapshot if snapshots were committed and none of them is complete.
    """
    reasons = {}
    for name in reversed(snapshots(workspace)):
        uri = join(workspace, name)
        try:
            if rejected is not None and uri in rejected:
                raise StorageError(rejected[uri])
            if _complete(uri):
                return uri, step_of(name)
        except ValueError as error:
            reasons[name] = str(error)
            log.warning("checkpoint %s is passed over: %s", uri, error)
        else:
            log.warning("checkpoint %s is passed over: it was not written to its end", uri)
    if reasons:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise NoValidSnapshot(
            f"none of the checkpoints in {workspace} can be resumed from ({listed}); restore one of them from a copy, "
            "or delete these folders to begin again at step 0"
        )
    return None


def open_snapshot(uri: str) -> StateSource:
    """Return the state in a snapshot; its tensors are read, and verified, when they are accessed."""
    manifest = read_manifest(uri)
    return GatheredState(load_file(local_copy(uri) / GATHERED)) if manifest is None else SnapshotState(uri, manifest)


def verify_snapshot(uri: str) -> None:
    """Read all of a snapshot. Raise ValueError if it is not what was saved."""
    state = open_snapshot(uri)
    if isinstance(state, SnapshotState):
        state.verify()


def snapshot_facts(uri: str) -> Mapping[str, Any]:
    """Return the facts that were saved with a committed snapshot."""
    manifest = read_manifest(uri) or committed(uri)
    assert manifest is not None
    return manifest.facts


def keep_final(workspace: str, step: int | None) -> None:
    """Remove all snapshots of a finished training but that of the last `step`, or all."""
    names = snapshots(workspace)
    of_step = [name for name in names if step_of(name) == step and committed_at(workspace, name) is not None]
    remove(workspace, set(names) - set(of_step[-1:]))


def _complete(uri: str) -> bool:
    """Return whether a snapshot is committed and has its files. Raise ValueError if it is committed and lacks some."""
    if (manifest := read_manifest(uri)) is not None:
        require_parts(uri, manifest.parts)
        return True
    if committed(uri) is None:
        return False
    local_copy(uri)
    return True
