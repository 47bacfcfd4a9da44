"""Availability of a tracking server, as one process knows it: how long to wait for an answer, and what to say when."""

import logging
import os
import threading
import time

LONGEST_TIMEOUT_SECONDS = 60.0
REPEAT_SECONDS = 600.0
log = logging.getLogger(__name__)


class Availability:
    """State of one server or database; all uploads of a process share it (`availability`), and say a thing once."""

    def __init__(self, timeout_seconds: float) -> None:
        self.answers = True
        """Whether the last request was answered, as far as is known."""
        self.upload_timeouts: dict[str, float] = {}
        """Seconds for the next attempt to upload a file, by its path, if an attempt took longer than it had."""
        self._timeout_seconds = timeout_seconds
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def failed(self, error: BaseException) -> None:
        """Note that a request failed; the timeout grows if it was exceeded, so that a slow server is not lost."""
        self.answers = False
        if timed_out(error):
            self._timeout_seconds = min(2 * self._timeout_seconds, LONGEST_TIMEOUT_SECONDS)
            self.set_timeout()
        self.say("outage", "MLflow does not answer; the journal is kept and sent later (%s)", first_line(error))

    def set_timeout(self) -> None:
        """Set the timeout of this process's requests to what this server needed so far."""
        wait_for_answers(self._timeout_seconds)

    def say(self, subject: str, message: str, *values: object) -> None:
        """Log a warning, unless one on this subject was logged within the last ten minutes."""
        if self._due(subject):
            log.warning(message, *values)

    def unexpected(self, error: Exception, message: str, *values: object) -> None:
        """Log an error with its traceback, under the rule of `say` for its class."""
        if self._due(type(error).__name__):
            log.error(message, *values, exc_info=error)

    def _due(self, subject: str) -> bool:
        with self._lock:
            now = time.monotonic()
            due = now - self._said.get(subject, -REPEAT_SECONDS) >= REPEAT_SECONDS
            if due:
                self._said[subject] = now
            return due


_known: dict[str, Availability] = {}


def availability(uri: str, timeout_seconds: float) -> Availability:
    """Return this process's `Availability` of the server or database at `uri`."""
    return _known.setdefault(uri, Availability(timeout_seconds))


def wait_for_answers(seconds: float) -> None:
    """Set the timeout of every request of this process to the tracking server, which MLflow reads for each of them."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))


def timed_out(error: BaseException) -> bool:
    """Return whether a request exceeded its timeout; the exception's class does not always say, its text does."""
    return "timed out" in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, short enough for a line of a log."""
    return str(error).partition("\n")[0][:300]
