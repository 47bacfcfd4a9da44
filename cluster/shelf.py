"""The shelf: verified copies of registered models on this machine, by digest, which need nobody once they stand there.

A copy is never taken on trust: every file of it is read and compared with the digest each time a replica starts.
"""

import getpass
import logging
import os
import shutil
import tempfile
from pathlib import Path

from cluster.registry import ModelVersion
from edlm.storage import INTENT, committed, fetch, verify

KEPT = 4  # models; a rollback finds the previous ones without the storage
log = logging.getLogger(__name__)


def shelf(folder: str | None) -> Path:
    """The folder of the copies: the configured one, or one for this user among the temporary files."""
    return Path(folder) if folder else Path(tempfile.gettempdir()) / f"edlm-cache-{getpass.getuser()}"


def take(version: ModelVersion, shelf: Path) -> Path:
    """The folder of this version on this machine; only where it has no good copy is the version's URI read.

    Raises ValueError where the URI holds nothing, or something else than what was registered.
    """
    place = shelf / version.digest
    if not _is_good(place, version.digest):
        _bring(version, shelf, place)
    os.utime(place)
    _clear(shelf, place)
    return place


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


def _bring(version: ModelVersion, shelf: Path, place: Path) -> None:
    """Afterwards `place` is a whole copy of what the version's URI holds."""
    found = committed(version.uri)
    if found is None or found.digest != version.digest:
        holds = "nothing that is committed" if found is None else f"digest {found.digest}"
        raise ValueError(
            f"version {version.version} was registered with digest {version.digest}, and {version.uri} holds {holds}; "
            "register it again"
        )
    shelf.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = fetch(version.uri, shelf)
    if source == place:
        return
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=shelf) as temporary:
        partial = Path(temporary) / "folder"
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(INTENT))
        verify(partial, found.files)
        try:
            os.replace(partial, place)
        except OSError:  # another replica of this machine was faster
            verify(place, found.files)


def _clear(shelf: Path, used: Path) -> None:
    """Afterwards no more than the models used last are kept. Open ones do not need their files any more."""
    copies = sorted((path for path in shelf.iterdir() if len(path.name) == 64), key=lambda path: path.stat().st_mtime)
    for path in copies[:-KEPT]:
        if path != used:
            shutil.rmtree(path, ignore_errors=True)  # another replica may be removing it, too
