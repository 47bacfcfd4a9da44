"""Local copies of committed folders: of what lies in a store, in the cache of this machine, verified once."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fsspec import AbstractFileSystem

from edlm.config import plain
from edlm.file_systems import file_system
from edlm.local_cache import LocalCache, default_cache
from edlm.storage import MARKER, Marker, committed, local_path, verify, write_text
from edlm.storage_errors import StorageError


@dataclass(frozen=True)
class PublishedFolder:
    """Committed folder at a URI, as the source of a local copy of the files that `marker` names."""

    uri: str
    marker: Marker
    besides: frozenset[str] = frozenset()
    """Files that the folder may hold, too."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.marker.files)

    def copy_to(self, folder: Path) -> None:
        """Copy the files that the marker names, and the marker."""
        system, root = file_system(self.uri)
        for file in self.marker.files:
            _download(system, f"{root.rstrip('/')}/{file.path}", folder / file.path, f"{self.uri}/{file.path}")
        write_text(str(folder / MARKER), json.dumps(plain(self.marker)))

    def check(self, folder: Path) -> None:
        """Raise StorageError unless a folder holds exactly these files, with their sizes and digests, and a marker."""
        marker = committed(str(folder))
        if marker is None or marker.digest != self.marker.digest:
            raise StorageError(f"{folder} does not have the marker of {self.uri}")
        verify(folder, self.marker.files, named=self.uri)


def local_copy(uri: str, cache: LocalCache | None = None, files: Collection[str] | None = None) -> Path:
    """Return a local folder with exactly the committed content of `uri`, every digest checked.

    With `files`, those of them that are there are copied and checked, and no others. A local folder is used in place.
    From any other URI, the files are copied once to the cache (None: `default_cache`), and stay there until this
    process has ended. What was verified once on this machine is read again only after a file of it has changed. Raises
    StorageError naming the file, what was expected and what was found.
    """
    source = _published(uri, files)
    if (folder := _in_place(source, cache)) is not None:
        return folder
    return (cache or default_cache()).hold(source.marker.digest, source)


def bytes_to_copy(uri: str, cache: LocalCache, files: Collection[str]) -> int:
    """Return how many bytes `local_copy` would copy: none of a local folder, and of what is in the cache already."""
    source = _published(uri, files)
    return 0 if local_path(uri) is not None or cache.holds(source.marker.digest) else source.bytes


@contextmanager
def borrowed_copy(uri: str, cache: LocalCache | None = None) -> Iterator[Path]:
    """Yield the `local_copy` of `uri`, which may be evicted from the cache when the context ends."""
    source = _published(uri)
    if (folder := _in_place(source, cache)) is not None:
        yield folder
        return
    with (cache or default_cache()).entry(source.marker.digest, source) as copy:
        yield copy


def _published(uri: str, names: Collection[str] | None = None) -> PublishedFolder:
    marker = committed(uri)
    if marker is None:
        raise StorageError(f"{uri} is not committed (no {MARKER}); run the stage that writes it to its end")
    files = tuple(file for file in marker.files if names is None or file.path in names)
    return PublishedFolder(uri, replace(marker, files=files), frozenset(file.path for file in marker.files))


def _in_place(source: PublishedFolder, cache: LocalCache | None) -> Path | None:
    """Return a local folder, verified; None if the source is elsewhere."""
    folder = local_path(source.uri)
    if folder is not None:
        check = partial(verify, files=source.marker.files, besides=source.besides)
        (cache or default_cache()).require(folder, source.marker.digest, check)
    return folder


def _download(system: AbstractFileSystem, source: str, target: Path, named: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        system.get_file(source, str(target))
    except FileNotFoundError as error:
        raise StorageError(f"{named} is missing though its folder is committed; run the stage again") from error
