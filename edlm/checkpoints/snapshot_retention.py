"""Which snapshots of a workspace are kept, and the removal of others and of what killed attempts left."""

import re
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from edlm.checkpoints.snapshot_manifest import MANIFEST
from edlm.config import NonNegativeFloat, Positive, config
from edlm.file_systems import file_system
from edlm.storage import MARKER, join

NAME = re.compile(r"step-(\d{8,})(?:-(\w+))?")


@config
class Retention:
    """Which checkpoints of an unfinished training are kept."""

    keep: Positive = 2
    """Number of newest checkpoints that are kept: more than one, so that training can go back when the last is damaged.
    """
    keep_hours: NonNegativeFloat = 0.0
    """Hours for which each checkpoint is kept besides those; 0: none is."""


def snapshot_folder(step: int, attempt: str) -> str:
    """Return the name of the folder for a snapshot after `step` steps, of this attempt alone."""
    return f"step-{step:08d}-{attempt}"


def snapshots(workspace: str) -> list[str]:
    """Return the names of all snapshots, oldest step first, committed or not."""
    system, root = file_system(workspace)
    system.invalidate_cache()
    try:
        names = {path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False)}
    except FileNotFoundError:
        return []
    return sorted((name for name in names if NAME.fullmatch(name)), key=lambda name: (step_of(name), name))


def step_of(name: str) -> int:
    """Return the number of steps after which a snapshot was saved, from the name of its folder."""
    found = NAME.fullmatch(name)
    assert found is not None, name
    return int(found[1])


def retain(workspace: str, saved: str, retention: Retention, always: int | None = None) -> None:
    """Remove the snapshots that need not be kept now that the one in `saved` is committed.

    Of earlier steps the newest are kept, and the one after `always` steps. Later ones go, and others of the same step:
    this training skipped them as damaged, or it would not have come to this step again.
    """
    now = saved.rstrip("/").rpartition("/")[2]
    names = snapshots(workspace)
    times = {name: committed_at(workspace, name) for name in names if step_of(name) < step_of(now)}
    earlier = {name: time for name, time in times.items() if time is not None}
    since = datetime.now(UTC) - timedelta(hours=retention.keep_hours)
    newest = list(earlier)[::-1][: retention.keep - 1]
    kept = {now, *newest, *(name for name, time in earlier.items() if time > since or step_of(name) == always)}
    remove(workspace, set(names) - kept)


def sweep(workspace: str, attempt: str) -> None:
    """Remove uncommitted snapshots, which killed attempts left, but not those of `attempt`, the one that runs.

    A workspace has one attempt at a time.
    """
    names = [name for name in snapshots(workspace) if not name.endswith(f"-{attempt}")]
    remove(workspace, [name for name in names if committed_at(workspace, name) is None])


def remove(workspace: str, names: Collection[str]) -> None:
    """Remove snapshots; one whose removal is interrupted is left uncommitted, not damaged."""
    for name in sorted(names):
        system, root = file_system(join(workspace, name))
        for marker in (MANIFEST, MARKER):
            if system.exists(f"{root}/{marker}"):
                system.rm_file(f"{root}/{marker}")
        if system.exists(root):
            system.rm(root, recursive=True)


def committed_at(workspace: str, name: str) -> datetime | None:
    """Return when a snapshot was committed, whether or not it is intact; None if it was not.

    Raise OSError where that cannot be known: `exists` of a local disk would say no, and the snapshot be removed.
    """
    system, root = file_system(join(workspace, name))
    for marker in (MANIFEST, MARKER):
        with suppress(FileNotFoundError):
            return system.modified(f"{root}/{marker}")
    return None
