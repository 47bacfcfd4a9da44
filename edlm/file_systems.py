"""File systems by URI: local files, object stores and hubs, whose errors name the URI and what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec.core
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from edlm.storage_errors import StorageError

S3 = ("s3", "s3a")
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "hf": "models",
}  # of edlm, by the scheme that they make readable
DAMAGED = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)  # of a disk; ESTALE, ETIMEDOUT and the like are of one that is away
HUB_SECONDS = 10.0  # to wait for an answer of the Hugging Face hub
FIRST_ANSWER_SECONDS = 2.0  # for an S3 store that nothing is known to be wrong with: a wrong address is not waited for


def file_system(uri: str, patience_seconds: float | None = None) -> tuple[Any, str]:  # fsspec's types are too wide
    """Return the file system of `uri` (an AbstractFileSystem) and the path in it.

    An S3 store that is away or busy is asked again for `patience_seconds` (None: those of `edlm.s3_store`).
    Raise StorageError for a scheme that fsspec does not know, for one whose package is not installed, and for hf:// if
    the hub does not answer.
    """
    scheme = get_protocol(uri)
    try:
        if scheme in S3 and "::" not in uri:
            from edlm.s3_store import PATIENCE_SECONDS, PatientS3  # its package is optional

            system = PatientS3(patience_seconds=PATIENCE_SECONDS if patience_seconds is None else patience_seconds)
            return system, str(PatientS3._strip_protocol(uri))
        system, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        remedy = "install it"
        if scheme in EXTRAS:
            remedy = f'in a checkout of the project, run pip install ".[{EXTRAS[scheme]}]"'
        raise StorageError(f"{scheme}:// is read with a package that is missing here ({error}): {remedy}") from error
    except ValueError as error:
        raise StorageError(
            f"{scheme}:// cannot be read: {error}; give a path, or a URI of a scheme that fsspec knows, such as s3://"
        ) from error
    if scheme == "hf":
        require_hub(uri)
    return system, path


@contextmanager
def reading(system: AbstractFileSystem, path: str) -> Iterator[None]:
    """Raise StorageError for what a local disk cannot give back.

    A disk that is away, and a store, have other errors, and these are raised as they are: what cannot be asked for now
    is not lost.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DAMAGED and isinstance(system, LocalFileSystem):
            raise StorageError(f"{path} cannot be read ({error})") from error
        raise


def require_answer(uri: str) -> None:
    """Raise OSError, or what its client raises, unless the store of `uri` answers at once; one line for an S3 store."""
    system, path = file_system(uri, patience_seconds=FIRST_ANSWER_SECONDS)
    if get_protocol(uri) in S3:
        system.require_answer(path)
    else:
        system.exists(path)


def require_hub(source: str) -> None:
    """Raise StorageError, on behalf of `source`, unless the Hugging Face hub answers.

    Otherwise its libraries try for half a minute, and its file system reports every file as missing.
    """
    from huggingface_hub import constants  # takes a second, and only what is on the hub needs it
    from huggingface_hub.utils import get_session

    endpoint = constants.ENDPOINT
    try:
        get_session().head(endpoint, timeout=HUB_SECONDS)
    except Exception as error:  # its HTTP client, and its offline mode, raise exceptions of many classes
        raise StorageError(
            f"{source}: the Hugging Face hub at {endpoint} does not answer ({type(error).__name__}: {error}); check "
            "the network, or copy the files to this machine and name their local path"
        ) from error
