"""Training checkpoints: the whole state in safetensors, committed with its digests, for any number of workers."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import fsspec.core
from safetensors.torch import load_file, save_file
from torch import Tensor

from edlm.storage import committed, join, local_copy, publish

STATE = "state.safetensors"
KEPT = 2
PREFIX = "step-"
log = logging.getLogger(__name__)


def save_snapshot(workspace: str, state: Mapping[str, Tensor], step: int) -> None:
    """Afterwards the state after `step` steps is committed in the workspace; of older ones the newest is kept."""
    with tempfile.TemporaryDirectory(prefix="edlm-snapshot-") as folder:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / STATE)
        publish(Path(folder), join(workspace, f"{PREFIX}{step:08d}"), facts={"step": step})
    system, _ = fsspec.core.url_to_fs(workspace)
    for name in snapshots(workspace)[:-KEPT]:
        system.rm(system._strip_protocol(join(workspace, name)), recursive=True)


def newest_snapshot(workspace: str) -> tuple[str, int] | None:
    """(URI, step) of the newest snapshot that is whole; one that is not is named in a warning and passed over."""
    for name in reversed(snapshots(workspace)):
        uri = join(workspace, name)
        try:
            local_copy(uri)
            marker = committed(uri)
        except ValueError as error:
            log.warning("checkpoint %s is not whole, going back to the one before: %s", uri, error)
            continue
        assert marker is not None
        return uri, int(str(marker.facts["step"]))
    return None


def open_snapshot(uri: str) -> dict[str, Tensor]:
    """The state in a snapshot, verified."""
    return load_file(local_copy(uri) / STATE)


def snapshots(workspace: str) -> list[str]:
    """Names of all snapshots, oldest first; whether they are whole is not looked at."""
    system, root = fsspec.core.url_to_fs(workspace)
    if not system.exists(root):
        return []
    names = [path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False)]
    return sorted(name for name in names if name.startswith(PREFIX))
