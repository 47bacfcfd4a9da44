"""Connection to MLflow: URI, timeout and logging."""

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
UNANSWERED = (MlflowException, SQLAlchemyError, OSError)  # raised if nothing answers, and if a call is rejected
NO_ANSWER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's codes for no answer


def connect(tracking: Tracking, root: str) -> MlflowClient:
    """Return a client of the tracking server or database with a timeout of `tracking.request_timeout_seconds`.

    In the whole process, MLflow then neither retries (the caller knows better when to), nor reports usage, nor logs the
    creation of its tables. Raises ConfigurationError for a URI that is not valid on every machine.
    """
    uri = tracking_uri(tracking, root)
    if tracking.uri is None:
        Path(_local(root)).mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(tracking.request_timeout_seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow.telemetry.set_telemetry_client()  # reads the variable set above
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Raise ConfigurationError naming the server or database if it does not answer within the context."""
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
    """Return the first line of an error's message, short enough for a line of a log."""
    return str(error).partition("\n")[0][:300]


def tracking_uri(tracking: Tracking, root: str) -> str:
    """Return the absolute URI of the server or database: as configured, or an SQLite file in the storage root."""
    if tracking.uri is None:
        return f"sqlite:///{_local(root)}/mlflow.db"
    scheme = tracking.uri.partition("://")[0].partition("+")[0]
    if scheme not in ("http", "https", *DATABASES):
        raise ConfigurationError(
            f"tracking.uri: {tracking.uri!r} is neither a server nor a database; give http(s)://HOST:PORT, "
            "sqlite:////ABSOLUTE/PATH or postgresql://..., or leave it out"
        )
    if scheme == "sqlite" and not tracking.uri.partition("://")[2].startswith("//"):
        raise ConfigurationError(
            f"tracking.uri: {tracking.uri!r} is relative, but workers run in other folders; give sqlite:////ABSOLUTE/PATH"
        )
    return tracking.uri


def database_file(tracking: Tracking, root: str) -> Path | None:
    """Return the path of the SQLite database, existing or not; None for a server or another kind of database."""
    scheme, _, path = tracking_uri(tracking, root).partition("://")
    return Path(path.removeprefix("/")) if scheme.partition("+")[0] == "sqlite" else None


def artifact_location(tracking: Tracking, root: str) -> str | None:
    """Return the artifact folder below the storage root; None for a server, which decides for itself."""
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
            f"storage root {root!r} is relative, but workers run in other folders; give an absolute path"
        )
    return str(folder)
