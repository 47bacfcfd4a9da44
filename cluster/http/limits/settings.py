"""Configured limits of the endpoint (hosts, keys, cost and duration of a request), each enforced where it applies."""

from dataclasses import dataclass
from pathlib import Path

from cluster.config import Serving, is_loopback

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class RequestLimits:
    """Limits that apply to every request."""

    hosts: tuple[str, ...] = LOOPBACK
    """Accepted names in the Host header. "*" accepts any, including requests from pages of other hosts."""
    keys: Path | None = None
    """File of API keys, as written by `cluster.http.middleware.api_keys.add_key`. None: no key is required."""
    max_work: float = 2.0**14
    """Maximum cost of one request, in denoiser passes."""
    max_seconds: float = 120.0
    """Longest time that a request may take; a request may ask for a shorter one."""
    work_per_second: float | None = None
    """Average rate limit per API key and replica, in denoiser passes per second. None: unlimited."""
    burst_seconds: float = 60.0
    """Burst of a key that was idle, in seconds of its average rate."""
    keep_alive_seconds: float = 15.0
    """Longest silence of a stream, after which a comment is sent."""


def request_limits_of(serving: Serving) -> RequestLimits:
    """Return the limits for these settings."""
    return RequestLimits(
        hosts=_names(serving),
        keys=None if serving.key_file is None else Path(serving.key_file),
        max_work=serving.max_work,
        max_seconds=serving.request_timeout_seconds,
        work_per_second=serving.work_per_second,
        burst_seconds=serving.burst_seconds,
        keep_alive_seconds=serving.keep_alive_seconds,
    )


def _names(serving: Serving) -> tuple[str, ...]:
    """Return the accepted host names. Loopback and `serving.host` are always included: readiness probes use them."""
    if serving.hosts is None and not is_loopback(serving.host):
        return ("*",)
    name = f"[{serving.host}]" if ":" in serving.host else serving.host
    return tuple(dict.fromkeys((*LOOPBACK, name, *(serving.hosts or ()))))
