"""The rules of the endpoint: who may ask, what a request may cost, and how long it may take."""

from dataclasses import dataclass
from pathlib import Path

from cluster.config import Serving, is_loopback

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Rules:
    """Limits that hold for every request, whatever it says."""

    hosts: tuple[str, ...] = LOOPBACK
    """Names in the Host header that are answered. "*" among them: any, so that pages of other hosts reach it too."""
    keys: Path | None = None
    """File of API keys, as `cluster.http.middleware.api_keys.add_key` writes it. None: nobody is asked for one."""
    max_work: float = 2.0**14
    """Passes of the denoiser that one request may cost."""
    max_seconds: float = 120.0
    """A request is ended after this time, or after the shorter one that it asks for."""
    work_per_second: float | None = None
    """Passes of the denoiser that each API key may use on average, in each replica. None: all there are."""
    burst_seconds: float = 60.0
    """A key that was idle may use so many seconds' worth at once."""


def rules_of(serving: Serving) -> Rules:
    """The rules that the settings ask for."""
    return Rules(
        hosts=_names(serving),
        keys=None if serving.key_file is None else Path(serving.key_file),
        max_work=serving.max_work,
        max_seconds=serving.request_timeout_seconds,
        work_per_second=serving.work_per_second,
        burst_seconds=serving.burst_seconds,
    )


def _names(serving: Serving) -> tuple[str, ...]:
    """The names that are answered. Its own are always among them: by these it is asked whether it is ready."""
    if serving.hosts is None and not is_loopback(serving.host):
        return ("*",)
    own = f"[{serving.host}]" if ":" in serving.host else serving.host
    return tuple(dict.fromkeys((*LOOPBACK, own, *(serving.hosts or ()))))
