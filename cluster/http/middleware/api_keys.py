"""API keys: a file of names and hashes, readable by its owner only; a key is shown once and stored nowhere."""

import hashlib
import hmac
import re
import secrets
import stat
from pathlib import Path

from edlm.atomic_file import PRIVATE, replacing
from edlm.config import ConfigurationError

PREFIX = "edlm-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern}) sha256:([0-9a-f]{{64}})")
_ADD = "`python -m workflows.serve key NAME --file {}`"
_WIDER = stat.S_IRWXG | stat.S_IRWXO


class BadKeyFile(ConfigurationError):
    """The key file is missing, accessible to other users, malformed, or empty where a key is required."""


class APIKeys:
    """Keys of one file, reloaded when it changes, so that adding or revoking a key needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, ...] = ()
        self._hashes: dict[str, bytes] = {}
        self._read()

    def owner(self, key: str) -> str | None:
        """Return the name that `key` was issued to, or None if it is unknown.

        All hashes are compared, each in constant time, so that the timing leaks nothing. Raise BadKeyFile if the file
        has become invalid.
        """
        self._read()
        given, owner = _hash(key), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, given):
                owner = name
        return owner

    def _read(self) -> None:
        state = _require_private(self._path)
        if state != self._state:
            self._hashes = _parse(self._path)
            self._state = state


def require_keys(path: Path) -> None:
    """Raise BadKeyFile unless the file is valid and holds at least one key."""
    _require_private(path)
    if not _parse(path):
        raise BadKeyFile(
            f"{path} holds no API key, so that every request would be rejected; {_ADD.format(path)} makes one"
        )


def add_key(path: Path, name: str) -> str:
    """Return a new key for `name` and add its hash to the file, which has mode 0600.

    Raise ValueError if the name is invalid or has a key already.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid key name; use up to 64 letters, digits, dots, dashes and underscores"
        )
    hashes = {}
    if path.exists():
        _require_private(path)
        hashes = _parse(path)
    if name in hashes:
        raise ValueError(f"{name!r} already has a key in {path}; remove its line to revoke it, or choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    hashes[name] = _hash(key)
    with replacing(path, PRIVATE) as new:
        new.write_text("".join(f"{name} sha256:{known.hex()}\n" for name, known in hashes.items()), encoding="utf-8")
    return key


def _require_private(path: Path) -> tuple[int, ...]:
    """Return the file's inode, mtime and size, to detect changes; raise BadKeyFile if other users can access it."""
    try:
        status = path.stat()
    except OSError as error:
        remedy = f"; {_ADD.format(path)} makes one" if isinstance(error, FileNotFoundError) else ""
        raise BadKeyFile(f"the file of API keys {path} cannot be read ({error.strerror}){remedy}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadKeyFile(f"{path} is not a file; name a file of API keys")
    if status.st_mode & _WIDER:
        mode = stat.S_IMODE(status.st_mode)
        raise BadKeyFile(
            f"{path} has mode {mode:04o}, but API keys must be readable by their owner only: chmod 600 {path}"
        )
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _parse(path: Path) -> dict[str, bytes]:
    hashes = {}
    try:
        # Invalid UTF-8 becomes U+FFFD, which no key line may contain.
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
            raise BadKeyFile(f"{path} line {number}: {match[1]!r} has two keys; remove one of them")
        hashes[match[1]] = bytes.fromhex(match[2])
    return hashes


def _hash(key: str) -> bytes:
    """Hash a key. Keys are 256 random bits, so a slow hash would add no protection."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
