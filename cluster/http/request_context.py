"""Per-request context for the access log and metrics; never holds content of the request."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHARED_KEY = "anybody"  # shared key of all requests where no API key is required
_SCOPE_KEY = "edlm.request_context"


@dataclass
class RequestContext:
    """Origin, arrival time and outcome of one request."""

    request_id: str
    arrived: float = field(default_factory=time.monotonic)
    """On the clock of `time.monotonic()`."""
    key: str = SHARED_KEY
    """Name of the API key, chosen by the operator; not the key itself."""
    code: str | None = None
    """Code of the error returned to the client."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ignored: tuple[str, ...] = ()
    """Names of ignored request fields."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.arrived

    def enter(self, scope: Any) -> None:
        """Store this context in the ASGI scope, for all later handlers of the request."""
        scope[_SCOPE_KEY] = self


def request_context(scope: Mapping[str, Any]) -> RequestContext:
    """Return the context stored by `cluster.http.middleware.access_log`."""
    return scope[_SCOPE_KEY]
