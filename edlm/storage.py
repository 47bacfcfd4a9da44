"""Folders at any fsspec URI, committed by a marker that is written last and names every file with its digest."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated

import pydantic
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from edlm.atomic_file import replacing, sync
from edlm.config import NonNegative, config, parse, plain
from edlm.file_systems import file_system
from edlm.storage_errors import StorageError

MARKER = "_COMMITTED.json"
INTENT = "_PUBLISHING.json"  # lists what a publication may overwrite, so that a killed one can be repeated

Sha256 = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]


@config
class File:
    """One file of a folder: its path below the folder (with `/`), its size in bytes and its SHA-256."""

    path: str
    bytes: NonNegative
    sha256: Sha256

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        unsafe = not parts or self.path.startswith("/") or ".." in parts or "\\" in self.path or "\0" in self.path
        if unsafe or self.path != "/".join(parts) or parts[0] in (MARKER, INTENT):
            raise ValueError(f"file path {self.path!r} is not a plain path below the folder")


@config
class Marker:
    """Content of a committed folder: every file, and the writer's facts (for example a fingerprint)."""

    files: tuple[File, ...]
    facts: dict[str, pydantic.JsonValue] = pydantic.Field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [file.path for file in self.files]
        if len(names) != len(set(names)):
            raise ValueError(f"the marker names a file twice: {sorted({n for n in names if names.count(n) > 1})}")

    @property
    def digest(self) -> str:
        """SHA-256 of the content: paths, sizes and digests of all files, but not the facts."""
        return digest_of(self.files)


def absolute(uri: str) -> str:
    """Return a URI as it is, and a path of this machine absolute, because workers and jobs stand elsewhere."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    """Return the URI `parts` below `uri`; raise ValueError if a part is absolute or contains `..`."""
    for part in parts:
        if part.startswith("/") or "://" in part or ".." in PurePosixPath(part).parts:
            raise ValueError(f"{part!r} does not stay below {uri}; give a relative path without '..'")
    base = uri if uri.endswith("/") else uri + "/"
    return base + "/".join(part.strip("/") for part in parts)


def local_path(uri: str) -> Path | None:
    """Return the path of a URI on a disk of this machine; None for one in a store."""
    system, path = _open(uri)
    return Path(path) if isinstance(system, LocalFileSystem) else None


def read_text(uri: str) -> str:
    """Return the UTF-8 text at `uri`; raise FileNotFoundError if there is none."""
    return read_bytes(uri).decode("utf-8")


def read_bytes(uri: str) -> bytes:
    """Return the content of the file at `uri`; raise FileNotFoundError if there is none."""
    system, path = _open(uri)
    content = system.cat_file(path)
    return content.encode() if isinstance(content, str) else content


def write_text(uri: str, text: str) -> None:
    """Write `text` to `uri`; on a local disk and in object stores a reader never sees a partial text."""
    write_bytes(uri, text.encode("utf-8"))


def write_bytes(uri: str, content: bytes) -> None:
    """Write `content` to `uri`; on a local disk and in object stores a reader never sees a part of it."""
    system, path = _open(uri)
    if not isinstance(system, LocalFileSystem):
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, content)
        return
    with replacing(Path(path)) as new:
        new.write_bytes(content)


def publish(folder: Path, uri: str, facts: Mapping[str, pydantic.JsonValue] | None = None) -> Marker:
    """Publish and commit the files of `folder` as the only content of `uri` and return the marker.

    A folder may be published in place. A call killed before it writes the marker leaves `uri` uncommitted and can be
    repeated. On a local disk all files are on it, whatever happens to the power, before the marker is. Raises
    StorageError if `uri` holds files that no publication wrote, because they must not be deleted.
    """
    return _publish(folder, uri, facts, moved=False)


def hand_over(folder: Path, uri: str, facts: Mapping[str, pydantic.JsonValue] | None = None) -> Marker:
    """Publish a folder that is not needed any more: on the disk that it is on, its files are moved and not copied."""
    return _publish(folder, uri, facts, moved=True)


def _publish(folder: Path, uri: str, facts: Mapping[str, pydantic.JsonValue] | None, moved: bool) -> Marker:
    marker, target = Marker(files=inventory(folder), facts=dict(facts or {})), local_path(uri)
    text = json.dumps(plain(marker), indent=1, sort_keys=True, allow_nan=False)
    system, root = _open(uri)
    elsewhere = target is None or target.resolve() != folder.resolve()
    if elsewhere:
        _make_room(uri, marker)
        for file in marker.files:
            path = f"{root}/{file.path}"
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if moved and target is not None:
                shutil.move(folder / file.path, path)
            else:
                system.put_file(str(folder / file.path), path)
    if target is not None:
        sync(target, [file.path for file in marker.files])
    write_text(join(uri, MARKER), text)
    remove_leftovers(uri)
    return marker


def remove_leftovers(uri: str) -> None:
    """Remove from a committed folder what publications left there that were killed after they had committed it."""
    system, root = _open(uri)
    for path in system.ls(root, detail=False):
        name = path.rstrip("/").rpartition("/")[2]
        if name == INTENT or name.startswith((f".{MARKER}.", f".{INTENT}.")):
            with suppress(FileNotFoundError):  # another command removes it just now
                system.rm_file(f"{root}/{name}")


def discard(uri: str) -> None:
    """Remove a folder or file with all that is in it, if it is there."""
    system, path = _open(uri)
    if system.exists(path):
        system.rm(path, recursive=True)


def committed(uri: str) -> Marker | None:
    """Return the marker of a committed folder, or None if there is none; raise StorageError if it is damaged."""
    return _read_marker(join(uri, MARKER))


def inventory(folder: Path) -> tuple[File, ...]:
    """Return every file below `folder`, sorted by path; raise StorageError for symbolic links, sockets and the like."""
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder")
    return tuple(
        File(path=name, bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in _names(folder)
    )


def verify(folder: Path, files: Iterable[File], besides: Iterable[str] = (), named: str | None = None) -> None:
    """Raise StorageError unless `folder` holds exactly `files` (and perhaps `besides`) with these sizes and digests.

    The message names the first file that is missing, unexpected, of another size or of other content.
    """
    where = named or str(folder)
    remedy = "restore it from a good copy, or delete the folder and run the stage again"
    names, expected = set(_names(folder)), {file.path: file for file in files}
    for name in sorted(names - set(expected) - set(besides)):
        raise StorageError(f"{where}: unexpected file {name!r}, named by no marker; remove it")
    for name, file in expected.items():
        if name not in names:
            raise StorageError(f"{where}: file {name!r} is missing, expected {file.bytes} bytes; {remedy}")
        size = (folder / name).stat().st_size
        if size != file.bytes:
            raise StorageError(f"{where}: file {name!r} has {size} bytes, expected {file.bytes}; {remedy}")
        digest = sha256(folder / name)
        if digest != file.sha256:
            raise StorageError(f"{where}: file {name!r} has SHA-256 {digest}, expected {file.sha256}; {remedy}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Iterable[File]) -> str:
    """Return one SHA-256 for a set of files, independent of their order."""
    rows = sorted([file.path, file.bytes, file.sha256] for file in files)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _names(folder: Path) -> list[str]:
    """Return the paths of the files below `folder`, without markers; reject links, which may lead outside."""
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StorageError(f"{folder}: {name!r} is a symbolic link; folders are published as plain files")
        if path.is_dir() or name in (MARKER, INTENT) or _is_leftover(name):
            continue
        if not path.is_file():
            raise StorageError(f"{folder}: {name!r} is neither a file nor a folder")
        names.append(name)
    return names


def _is_leftover(name: str) -> bool:
    """Return whether a file is what a killed `write_text` of a marker left, or NFS keeps of a deleted open file."""
    return name.rpartition("/")[2].startswith((f".{MARKER}.", f".{INTENT}.", ".nfs"))


def _make_room(uri: str, marker: Marker) -> None:
    """Uncommit `uri` and delete the files of earlier publications that `marker` does not name.

    Raises StorageError if `uri` holds a file that no publication wrote.
    """
    system, root = _open(uri)
    present = {path[len(root) :].lstrip("/") for path in system.find(root)} if system.exists(root) else set()
    earlier = [_read_marker(join(uri, name)) for name in (MARKER, INTENT)]
    published = {file.path: file for old in earlier if old for file in old.files}
    new = {file.path: file for file in marker.files}
    foreign = sorted(name for name in present - set(published) - {MARKER, INTENT} if not _is_leftover(name))
    if foreign:
        raise StorageError(f"{uri} holds {foreign[0]!r}, which no publication wrote; remove it or publish elsewhere")
    intent = Marker(files=tuple({**published, **new}.values()))
    write_text(join(uri, INTENT), json.dumps(plain(intent)))
    old = {name for name in present if name.startswith((f".{MARKER}.", f".{INTENT}."))} | (set(published) - set(new))
    for name in sorted(present & {MARKER, *old}):
        with suppress(FileNotFoundError):  # the write of the intent has removed what a killed one had left
            system.rm_file(f"{root}/{name}")


def _read_marker(uri: str) -> Marker | None:
    try:
        tree = json.loads(read_text(uri))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StorageError(f"{uri} is damaged ({error}); delete the folder and run the stage again") from error
    if not isinstance(tree, dict):
        raise StorageError(f"{uri} is damaged (it holds no JSON object); delete the folder and run the stage again")
    return parse(Marker, tree, source=uri)


def _open(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of `uri` and the path in it, without a trailing slash."""
    system, path = file_system(uri)
    return system, path.rstrip("/")
