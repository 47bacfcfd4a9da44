"""Training checkpoints: the whole state in safetensors, committed with its digests, for any number of workers."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pydantic
from safetensors.torch import load_file, save_file
from torch import Tensor

from edlm.storage import StorageError, committed, file_system, join, local_copy, publish

STATE = "state.safetensors"
KEPT = 2
PREFIX = "step-"
log = logging.getLogger(__name__)


def save_snapshot(
    workspace: str, state: Mapping[str, Tensor], step: int, facts: Mapping[str, pydantic.JsonValue] | None = None
) -> None:
    """Commit the state after `step` steps to the workspace, and remove all but the snapshot before it.

    `facts` go into its marker. Later snapshots are deleted, too: resuming skipped them as damaged.
    """
    saved = f"{PREFIX}{step:08d}"
    with tempfile.TemporaryDirectory(prefix="edlm-snapshot-") as folder:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / STATE)
        publish(Path(folder), join(workspace, saved), facts={**(facts or {}), "step": step})
    earlier = [name for name in snapshots(workspace) if name < saved]
    _keep(workspace, {saved, *earlier[1 - KEPT :]})


def keep_final(workspace: str, step: int | None) -> None:
    """Remove all snapshots of a finished training but that of the last `step`, or all."""
    _keep(workspace, set() if step is None else {f"{PREFIX}{step:08d}"})


def _keep(workspace: str, names: set[str]) -> None:
    system, _ = file_system(workspace)
    for name in {*snapshots(workspace)} - names:
        system.rm(system._strip_protocol(join(workspace, name)), recursive=True)


def newest_snapshot(workspace: str, verified: bool = True) -> tuple[str, int] | None:
    """Return (URI, step) of the newest intact snapshot; skip damaged ones with a warning that names them.

    Without `verified` only its marker is read: its content may be damaged, and nothing is written to the cache.
    """
    for name in reversed(snapshots(workspace)):
        uri = join(workspace, name)
        try:
            if verified:
                local_copy(uri)
            marker = committed(uri)
            if marker is None:
                raise StorageError("it is not committed")
        except ValueError as error:
            log.warning("checkpoint %s is not whole, going back to the one before: %s", uri, error)
            continue
        return uri, int(str(marker.facts["step"]))
    return None


def open_snapshot(uri: str) -> dict[str, Tensor]:
    """Return the state in a snapshot after verifying it."""
    return load_file(local_copy(uri) / STATE)


def snapshots(workspace: str) -> list[str]:
    """Return the names of all snapshots, oldest first, without verifying them."""
    system, root = file_system(workspace)
    if not system.exists(root):
        return []
    names = [path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False)]
    return sorted(name for name in names if name.startswith(PREFIX))
