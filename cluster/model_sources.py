"""Model sources: the prefixes from which a server may load models, whatever its registry names."""

import posixpath
from collections.abc import Sequence
from pathlib import Path

from edlm.config import ConfigurationError
from edlm.redaction import redacted_text

SEPARATOR = "://"
FILE = "file"


def require_source(uri: str, allowed: Sequence[str]) -> None:
    """Raise ConfigurationError unless `uri` lies in one of the allowed prefixes, each a scheme or a folder of one.

    `s3://` allows every bucket, `s3://models/edlm` what is below this folder, `file:///srv` local files below it, also
    if links lead there. `..` never leads out of a folder.
    """
    chained = "::" in uri  # fsspec opens what follows
    if not chained and any(_is_below(uri, prefix) for prefix in allowed):
        return
    raise ConfigurationError(
        f"serving.sources: the model lies at {redacted_text(uri)}, and models are loaded from "
        f"{', '.join(map(redacted_text, allowed)) or 'nowhere'} only; register it there, or add its prefix"
    )


def require_prefixes(prefixes: Sequence[str]) -> None:
    """Raise ConfigurationError for a prefix that is neither a scheme nor a folder of one."""
    for prefix in prefixes:
        scheme, separator, path = prefix.partition(SEPARATOR)
        if not scheme or not separator or (scheme == FILE and path and not path.startswith("/")):
            raise ConfigurationError(
                f"serving.sources: {prefix!r} is no prefix; write a scheme such as s3://, or a folder such as "
                "s3://bucket/models or file:///srv/models"
            )


def _is_below(uri: str, prefix: str) -> bool:
    scheme, path = _parts(uri)
    allowed_scheme, folder = _parts(prefix)
    if scheme != allowed_scheme:
        return False
    return folder in ("", "/") or path == folder or path.startswith(f"{folder}/")


def _parts(uri: str) -> tuple[str, str]:
    """Return scheme and normalised path."""
    scheme, separator, path = uri.partition(SEPARATOR)
    if not separator:
        scheme, path = FILE, uri
    if not path:
        return scheme, ""
    if scheme == FILE:
        return scheme, str(Path(path).resolve())
    return scheme, posixpath.normpath(path)
