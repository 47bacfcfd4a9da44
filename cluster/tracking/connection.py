"""The way to MLflow: which URI, how long to wait, and how quietly."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.telemetry
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import Tracking
from cluster.tracking.parameters import redacted
from edlm.config import ConfigurationError
from edlm.storage import join

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
UNANSWERED = (MlflowException, SQLAlchemyError, OSError)  # raised when nobody answers, and when the answer is no
NO_ANSWER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's codes for the former


def connect(tracking: Tracking, root: str) -> MlflowClient:
    """A client of the tracking server or database, which gives up after `tracking.request_timeout_seconds`.

    For the whole process MLflow then neither retries on its own (whoever calls knows better when), nor reports usage,
    nor tells of its tables. Raises ConfigurationError for a URI that only some of the machines would understand.
    """
    uri = tracking_uri(tracking, root)
    if tracking.uri is None:
        Path(_local(root)).mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(tracking.request_timeout_seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow.telemetry.set_telemetry_client()  # reads the line above
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Within it, a server or database that does not answer is a ConfigurationError that names it."""
    try:
        yield
    except UNANSWERED as error:
        if isinstance(error, MlflowException) and error.error_code not in NO_ANSWER:
            raise
        raise ConfigurationError(
            f"tracking.uri: {redacted(uri)} does not answer ({first_line(error)}); "
            "start the server, or move a damaged database away, and run the command again"
        ) from error


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, short enough for a line of a log."""
    return str(error).partition("\n")[0][:300]


def tracking_uri(tracking: Tracking, root: str) -> str:
    """The absolute URI of the server or database: the configured one, or an SQLite file in the storage root."""
    if tracking.uri is None:
        return f"sqlite:///{_local(root)}/mlflow.db"
    scheme = tracking.uri.partition("://")[0].partition("+")[0]
    if scheme not in ("http", "https", *DATABASES):
        raise ConfigurationError(
            f"tracking.uri: {tracking.uri!r} is no server and no database; give http(s)://HOST:PORT, "
            "sqlite:////ABSOLUTE/PATH or postgresql://..., or leave it out"
        )
    if scheme == "sqlite" and not tracking.uri.partition("://")[2].startswith("//"):
        raise ConfigurationError(
            f"tracking.uri: {tracking.uri!r} is relative, and workers stand elsewhere; give sqlite:////ABSOLUTE/PATH"
        )
    return tracking.uri


def database_file(tracking: Tracking, root: str) -> Path | None:
    """Where the SQLite database lies, or would; None where there is a server, or a database of another kind."""
    scheme, _, place = tracking_uri(tracking, root).partition("://")
    return Path(place.removeprefix("/")) if scheme.partition("+")[0] == "sqlite" else None


def artifact_location(tracking: Tracking, root: str) -> str | None:
    """Where the files of runs go: below the storage root; a server (None) decides for itself."""
    if tracking.uri is not None and tracking.uri.startswith("http"):
        return None
    return join(root if _is_remote(root) else _local(root), "artifacts")


def _is_remote(root: str) -> bool:
    return "://" in root and not root.startswith("file://")


def _local(root: str) -> str:
    if _is_remote(root):
        raise ConfigurationError(
            f"tracking.uri: missing; storage at {redacted(root)} cannot hold a database, so give a server's URI"
        )
    folder = Path(root.removeprefix("file://"))
    if not folder.is_absolute():
        raise ConfigurationError(
            f"storage root {root!r} is relative, and workers stand elsewhere; give an absolute path"
        )
    return str(folder)
