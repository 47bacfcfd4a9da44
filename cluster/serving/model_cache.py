"""Model cache: verified copies of registered models on this machine, by digest, usable without the storage.

A copy is never trusted: every file of it is read and compared with the digest each time a replica starts.
"""

import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from cluster.tracking.model_version import ModelVersion
from edlm.config import ConfigurationError
from edlm.storage import INTENT, committed, fetch, user_folder, verify

KEPT = 4  # models; a rollback does not need the storage for the previous ones
log = logging.getLogger(__name__)


def cache_folder(folder: str | None) -> Path:
    """Return the folder of the copies: the configured one, or one of this user below the folder for temporary files.

    It is never that of `edlm.storage.local_copy`, because files that a training reads must not be evicted.
    """
    return Path(folder) if folder else user_folder("edlm-models")


def cached_model(version: ModelVersion, folder: Path) -> Path:
    """Return the local folder of this version; read the version's URI only if there is no valid copy.

    Raises ValueError if the URI holds nothing, or something else than was registered, and ConfigurationError if other
    users of this machine may write to the cache.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_private(folder)
    copy = folder / version.digest
    if not _is_intact(copy, version.digest):
        _copy(version, folder, copy)
    os.utime(copy)
    _clear(folder, copy)
    return copy


def require_private(folder: Path) -> None:
    """Raise ConfigurationError unless the folder belongs to this user with mode 0700.

    A user with write access could replace a verified file before it is read.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    other_owners = {folder.stat().st_uid, folder.lstat().st_uid} - {os.getuid()}  # of the folder or a link to it
    if other_owners:
        raise ConfigurationError(
            f"serving.cache: {folder} belongs to user {other_owners.pop()}, but this process runs as user "
            f"{os.getuid()}; "
            "name another folder, or remove that one"
        )
    if mode & 0o077:
        raise ConfigurationError(
            f"serving.cache: {folder} has mode {mode:o}, so that other users can access it; "
            f"run `chmod 700 {folder}`, or name another folder"
        )


def _is_intact(folder: Path, digest: str) -> bool:
    """Return whether a complete copy exists; remove a damaged one: it costs a second copy, never a wrong answer."""
    if not folder.is_dir():
        return False
    try:
        marker = committed(str(folder))
        if marker is None or marker.digest != digest:
            raise ValueError(f"{folder} does not match the digest in its name")
        verify(folder, marker.files)
    except ValueError as error:
        log.warning("the cached copy is replaced: %s", error)
        shutil.rmtree(folder)
        return False
    return True


def _copy(version: ModelVersion, folder: Path, target: Path) -> None:
    """Copy the content of the version's URI to `target`."""
    marker = committed(version.uri)
    if marker is None or marker.digest != version.digest:
        held = "no committed output" if marker is None else f"digest {marker.digest}"
        raise ValueError(
            f"version {version.version} was registered with digest {version.digest}, and {version.uri} holds {held}; "
            "register it again"
        )
    source = fetch(version.uri, folder)
    if source == target:
        return
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder) as temporary:
        partial = Path(temporary) / "folder"
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(INTENT))
        verify(partial, marker.files)
        try:
            os.replace(partial, target)
        except OSError:  # another replica on this machine was faster
            verify(target, marker.files)


def _clear(folder: Path, used: Path) -> None:
    """Evict all but the most recently used models. Loaded models no longer need their files."""
    copies = sorted((path for path in folder.iterdir() if len(path.name) == 64), key=last_used)
    for path in copies[:-KEPT]:
        if path != used:
            shutil.rmtree(path, ignore_errors=True)  # another replica may be removing it, too


def last_used(copy: Path) -> float:
    """Return the time at which the copy was last used; 0 if another replica has removed it since."""
    try:
        return copy.stat().st_mtime
    except FileNotFoundError:
        return 0.0
