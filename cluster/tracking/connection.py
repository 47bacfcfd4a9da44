"""Connection to MLflow: URI, timeout, logging, and what an error of it means."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import mlflow.telemetry
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import Tracking
from cluster.tracking.database import create_database
from edlm.config import ConfigurationError
from edlm.redaction import redacted
from edlm.storage import join

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
UNANSWERED = (MlflowException, SQLAlchemyError, OSError)  # raised if nothing answers, and if a call is rejected
NO_ANSWER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's codes for no answer
NO_ENTRY = ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED")  # and for a missing or wrong login
NO_ARTIFACTS = ("az", "abfs", "abfss", "gcs", "s3a")  # schemes of stores that MLflow does not know without a server
TRANSIENT = (401, 408, 425, 429)  # statuses of refusals that a later attempt may not meet; 401: a login that expired
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0
log = logging.getLogger(__name__)

T = TypeVar("T")

_STATUS = re.compile(r"failed with error code (\d{3})")  # in the message for an answer that is not MLflow's, a proxy's


def connect(tracking: Tracking, root: str) -> MlflowClient:
    """Return a client of the tracking server or database with a timeout of `tracking.request_timeout_seconds`.

    In the whole process, MLflow then neither retries (the caller knows better when to), nor reports usage, nor logs the
    creation of its tables. Raises ConfigurationError for a URI that is not valid on every machine.
    """
    uri = tracking_uri(tracking, root)
    wait_for_answers(tracking.request_timeout_seconds)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow.telemetry.set_telemetry_client()  # reads the variable set above
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs a traceback for every error that it raises as well, for instance at every attempt while a disk is full.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if (file := database_file(tracking, root)) is not None:
        create_database(file, artifact_location(tracking, root) or "")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def wait_for_answers(seconds: float) -> None:
    """Set the timeout of every request of this process to the tracking server, which MLflow reads for each of them."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Raise ConfigurationError naming the server or database if it does not answer, or refuses the user."""
    try:
        yield
    except UNANSWERED as error:
        if isinstance(error, MlflowException) and error.error_code in NO_ENTRY:
            raise ConfigurationError(
                f"tracking.uri: {redacted(uri)} refuses this user ({first_line(error)}); set MLFLOW_TRACKING_TOKEN, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        if isinstance(error, MlflowException) and error.error_code not in NO_ANSWER:
            raise
        raise ConfigurationError(
            f"tracking.uri: {redacted(uri)} does not answer ({first_line(error)}); "
            "start the server, or move a damaged database away, and run the command again"
        ) from error


def answered(uri: str, patience_seconds: float, request: Callable[[], T]) -> T:
    """Return what `request` returns; while the server does not answer, it is repeated for `patience_seconds`.

    Raises ConfigurationError as `answering` does.
    """
    deadline, pause = time.monotonic() + patience_seconds, SHORTEST_PAUSE_SECONDS
    while True:
        try:
            with answering(uri):
                return request()
        except ConfigurationError as error:
            cause = error.__cause__
            if time.monotonic() + pause > deadline or (cause is not None and refusal(cause) is not None):
                raise
            if pause == SHORTEST_PAUSE_SECONDS:
                log.warning("%s; trying again for %g s", error, patience_seconds)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def refusal(error: BaseException) -> int | None:
    """Return the HTTP status of a refusal that every repetition of the request would meet; None if it is none."""
    status = None
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, MlflowException):
        if (reported := _STATUS.search(str(error))) is not None:
            status = int(reported[1])
        elif error.error_code not in NO_ANSWER:
            status = error.get_http_status_code()
    return status if status is not None and 400 <= status < 500 and status not in TRANSIENT else None


def timed_out(error: BaseException) -> bool:
    """Return whether a request exceeded its timeout; the exception's class does not always say, its text does."""
    return "timed out" in str(error)


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
    location = join(root if _is_remote(root) else _local(root), "artifacts")
    if urlsplit(location).scheme in NO_ARTIFACTS:
        raise ConfigurationError(
            f"tracking.uri: MLflow keeps no artifacts at {redacted(location)}; give the URI of a tracking server, "
            "which keeps them itself"
        )
    return location


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
