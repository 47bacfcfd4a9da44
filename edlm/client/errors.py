"""Errors of the client: what the service refuses or reports, and connections that fail."""

import json
import time
from email.utils import parsedate_to_datetime


class ServiceError(Exception):
    """Error reported by the service; `retry_after` holds the seconds until a retry, if the service names them."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.retry_after = message, status, code, param, retry_after


class InvalidRequest(ServiceError):
    """Request that cannot be answered as it is; `param` names the field."""


class NotAllowed(ServiceError):
    """Missing or wrong API key, or a host name that the service does not answer to."""


class Busy(ServiceError):
    """Service at its capacity; retry after `retry_after` seconds."""


class DeadlineExceeded(ServiceError):
    """Deadline passed before the text finished."""


class ServerFailed(ServiceError):
    """Failure of the service."""


class Unreachable(ConnectionError):
    """No response: nothing listens at the address, or the connection was lost. Sending the same request again with the
    same seed is safe and gives the same result.
    """


class StreamLost(ConnectionError):
    """Stream that was cut before its last event. Sending the same request again with the same `seed` and `streams`
    (None: the default of the service) is safe and gives the same result.
    """

    def __init__(self, seed: int, cause: str, streams: str | None = None) -> None:
        also = "" if streams is None else f" and streams {streams!r}"
        super().__init__(
            f"the stream was lost before its end ({cause}); send the request again with the same seed, {seed}{also}: "
            "it gives the same text"
        )
        self.seed, self.streams = seed, streams


def error_of(body: str, status: int | None, retry_after: str | None = None) -> ServiceError:
    """Return the error in a response body, or in an event of a stream (`status` None). A proxy in front of the service
    may send its own error in any format.
    """
    try:
        error = json.loads(body)["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (ValueError, TypeError, KeyError):
        message, code, param = body[:200] or f"status {status}", None, None
    return _kind(status, code)(message, status, code, param, _seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds in a Retry-After header: a number, or an HTTP date; None for none or another text."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _kind(status: int | None, code: str | None) -> type[ServiceError]:
    if status == 504 or code == "deadline_exceeded":
        return DeadlineExceeded
    if status == 429:
        return Busy
    if status in (401, 403):
        return NotAllowed
    return InvalidRequest if status is not None and 400 <= status < 500 else ServerFailed
