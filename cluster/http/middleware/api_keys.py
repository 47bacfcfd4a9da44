"""API keys: a file of names and hashes that only its owner reads; a key itself is shown once and kept nowhere."""

import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from edlm.config import ConfigurationError

PREFIX = "edlm-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern}) sha256:([0-9a-f]{{64}})")
_ADD = "`python -m workflows.serve key NAME --file {}`"
_WIDER = stat.S_IRWXG | stat.S_IRWXO


class BadKeyFile(ConfigurationError):
    """The file of keys is missing, readable by others, damaged, or, where a key is needed, without one."""


class APIKeys:
    """The keys of one file; a file that changes is read again, so a new or withdrawn key needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, ...] = ()
        self._hashes: dict[str, bytes] = {}
        self._read()

    def owner(self, key: str) -> str | None:
        """The name that `key` was made for; None where it is no key. BadKeyFile where the file is no longer good.

        All hashes are compared, and each in constant time: how long it takes tells nothing.
        """
        self._read()
        given, found = _hash(key), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, given):
                found = name
        return found

    def _read(self) -> None:
        state = _require_private(self._path)
        if state != self._state:
            self._hashes = _parse(self._path)
            self._state = state


def require_keys(path: Path) -> None:
    """Nothing where somebody has a key in the file; BadKeyFile where nobody has, or the file is not good."""
    _require_private(path)
    if not _parse(path):
        raise BadKeyFile(f"{path} holds no key, so nobody could ask; {_ADD.format(path)} makes one")


def add_key(path: Path, name: str) -> str:
    """A new key for `name`; afterwards the file, mode 0600, holds its hash, beside those of the other names.

    Raises ValueError where the name has a key, or is no proper name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a key; use up to 64 letters, digits, dots, dashes and underscores")
    hashes = {}
    if path.exists():
        _require_private(path)
        hashes = _parse(path)
    if name in hashes:
        raise ValueError(f"{name!r} has a key in {path}; remove its line to withdraw it, or choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    hashes[name] = _hash(key)
    _write(path, "".join(f"{name} sha256:{known.hex()}\n" for name, known in hashes.items()))
    return key


def _write(path: Path, text: str) -> None:
    """Afterwards the file holds `text`; whoever reads meanwhile sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _require_private(path: Path) -> tuple[int, ...]:
    """What changes when the file does; BadKeyFile where others may read or write it."""
    try:
        found = path.stat()
    except OSError as error:
        way_out = f"; {_ADD.format(path)} makes one" if isinstance(error, FileNotFoundError) else ""
        raise BadKeyFile(f"the file of API keys {path} cannot be read ({error.strerror}){way_out}") from error
    if not stat.S_ISREG(found.st_mode):
        raise BadKeyFile(f"{path} is no file; name one that holds API keys")
    if found.st_mode & _WIDER:
        mode = stat.S_IMODE(found.st_mode)
        raise BadKeyFile(f"{path} has mode {mode:04o}, and only its owner may read API keys: chmod 600 {path}")
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _parse(path: Path) -> dict[str, bytes]:
    hashes = {}
    try:
        # Whatever is no text is no line of ours either.
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadKeyFile(f"the file of API keys {path} cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise BadKeyFile(f"{path} line {number} is not `NAME sha256:HASH`; remove it, and add the key again")
        if match[1] in hashes:
            raise BadKeyFile(f"{path} line {number}: {match[1]!r} has a key already; remove one of the two")
        hashes[match[1]] = bytes.fromhex(match[2])
    return hashes


def _hash(key: str) -> bytes:
    """Keys are 256 random bits: a slow hash would protect nothing more."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
