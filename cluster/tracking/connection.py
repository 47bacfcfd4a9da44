"""Connection to MLflow: timeout, logging, and what an error of it means."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import mlflow.telemetry
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import Tracking
from cluster.tracking.availability import first_line, wait_for_answers
from cluster.tracking.database import create_database
from cluster.tracking.locations import artifact_location, database_file, tracking_uri
from edlm.config import ConfigurationError
from edlm.redaction import redacted

UNANSWERED = (MlflowException, SQLAlchemyError, OSError)  # raised if nothing answers, and if a call is rejected
NO_ANSWER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's codes for no answer
NO_ENTRY = ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED")  # and for a missing or wrong login
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
