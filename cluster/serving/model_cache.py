"""The shelf: verified copies of registered models on this machine, by digest, which need nobody once they stand there.

A copy is never taken on trust: every file of it is read and compared with the digest each time a replica starts.
"""

import getpass
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from cluster.tracking.registry import ModelVersion
from edlm.config import ConfigurationError
from edlm.storage import INTENT, committed, fetch, verify

KEPT = 4  # models; a rollback finds the previous ones without the storage
log = logging.getLogger(__name__)


def cache_folder(folder: str | None) -> Path:
    """The folder of the copies: the configured one, or one for this user among the temporary files.

    Never that of `edlm.storage.local_copy`, for what a training reads must not be cleared.
    """
    return Path(folder) if folder else Path(tempfile.gettempdir()) / f"edlm-models-{getpass.getuser()}"


def cached_model(version: ModelVersion, folder: Path) -> Path:
    """The folder of this version on this machine; only where it has no good copy is the version's URI read.

    Raises ValueError where the URI holds nothing, or something else than what was registered; ConfigurationError where
    others of this machine may write to the shelf.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_own(folder)
    place = folder / version.digest
    if not _is_good(place, version.digest):
        _bring(version, folder, place)
    os.utime(place)
    _clear(folder, place)
    return place


def require_own(folder: Path) -> None:
    """Nothing where only this user may look into the folder, and write; ConfigurationError where others may.

    Whoever may write there could put another file in a checked one's place before it is read.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    strangers = {folder.stat().st_uid, folder.lstat().st_uid} - {os.getuid()}  # of the folder, or a link to it
    if strangers:
        raise ConfigurationError(
            f"serving.cache: {folder} belongs to user {strangers.pop()}, and this is user {os.getuid()}; "
            "name a folder of your own, or remove that one"
        )
    if mode & 0o077:
        raise ConfigurationError(
            f"serving.cache: {folder} has mode {mode:o}, so that others of this machine may reach it; "
            f"say `chmod 700 {folder}`, or name another folder"
        )


def _is_good(place: Path, digest: str) -> bool:
    """Whether the copy is there and whole; a damaged one is removed, for it costs a second copy, never a bad answer."""
    if not place.is_dir():
        return False
    try:
        marker = committed(str(place))
        if marker is None or marker.digest != digest:
            raise ValueError(f"{place} does not hold what its name says")
        verify(place, marker.files)
    except ValueError as error:
        log.warning("the copy is brought again: %s", error)
        shutil.rmtree(place)
        return False
    return True


def _bring(version: ModelVersion, folder: Path, place: Path) -> None:
    """Afterwards `place` is a whole copy of what the version's URI holds."""
    found = committed(version.uri)
    if found is None or found.digest != version.digest:
        holds = "nothing that is committed" if found is None else f"digest {found.digest}"
        raise ValueError(
            f"version {version.version} was registered with digest {version.digest}, and {version.uri} holds {holds}; "
            "register it again"
        )
    source = fetch(version.uri, folder)
    if source == place:
        return
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder) as temporary:
        partial = Path(temporary) / "folder"
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(INTENT))
        verify(partial, found.files)
        try:
            os.replace(partial, place)
        except OSError:  # another replica of this machine was faster
            verify(place, found.files)


def _clear(folder: Path, used: Path) -> None:
    """Afterwards no more than the models used last are kept. Open ones do not need their files any more."""
    copies = sorted((path for path in folder.iterdir() if len(path.name) == 64), key=last_used)
    for path in copies[:-KEPT]:
        if path != used:
            shutil.rmtree(path, ignore_errors=True)  # another replica may be removing it, too


def last_used(copy: Path) -> float:
    """When the copy was last taken; long ago, where another replica has removed it since."""
    try:
        return copy.stat().st_mtime
    except FileNotFoundError:
        return 0.0
