"""A visit: what is noted of one request on its way through, for its log line and its counts; never what it said."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANYBODY = "anybody"  # whose turn it is where no key was asked for
_PLACE = "edlm.visit"


@dataclass
class RequestContext:
    """One request: who asked, when, and what came of it."""

    request_id: str
    arrived: float = field(default_factory=time.monotonic)
    """In the time of time.monotonic()."""
    key: str = ANYBODY
    """The name of the API key, which the operator chose; not the key."""
    code: str | None = None
    """Of the error that it got."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ignored: tuple[str, ...] = ()
    """Names of fields that were passed over."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.arrived

    def enter(self, scope: Any) -> None:
        """Afterwards whoever handles the request finds this visit."""
        scope[_PLACE] = self


def request_context(scope: Mapping[str, Any]) -> RequestContext:
    """The visit of a request that `cluster.http.middleware.access_log` let in."""
    return scope[_PLACE]
