"""Settings of a client: of its requests, of its retries and of its connection."""

from dataclasses import dataclass
from typing import Any, Literal

import httpx

from edlm.client.errors import Busy

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """Generation settings that override those registered with the model (the object `edlm` of a request)."""

    steps: int | None = None
    candidates: int | None = None
    """k; 1 is plain diffusion, 0 is exact where the energy is normalised."""
    window: tuple[float, float] | None = None
    energy_temperature: float | None = None
    energy: str | None = None
    timeout_seconds: float | None = None
    returned: tuple[Literal["token_ids", "trajectory"], ...] | None = None
    """Contents of a choice besides its text (`return` in the request, a keyword in Python)."""
    streams: Literal["independent", "shared"] | None = None
    """Whether each of several texts has its own random stream, or text i of each prompt has that of `seed + i`. None:
    independent without a seed, shared with one."""

    @property
    def fields(self) -> dict[str, Any]:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {"return" if name == "returned" else name: value for name, value in given.items()}


@dataclass(frozen=True)
class Patience:
    """Number of retries while the service is busy, and the longest wait before each of them."""

    times: int = 0
    seconds: float = 60.0
    """If the service asks for a longer wait, the request is not retried."""

    def __post_init__(self) -> None:
        if self.times < 0 or self.seconds < 0:
            raise ValueError(f"Patience(times={self.times}, seconds={self.seconds:g}): neither may be negative")

    def wait(self, busy: Busy, retries_left: int) -> float:
        """Return the seconds until the next attempt; raise `busy` if there is none."""
        seconds = 1.0 if busy.retry_after is None else busy.retry_after
        if not retries_left or seconds > self.seconds:
            raise busy
        return seconds


AS_REGISTERED, NO_RETRIES = Settings(), Patience()


def connection(url: str, key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments of an httpx client of the service."""
    return {
        "base_url": base_url(url),
        "headers": {} if key is None else {"authorization": f"Bearer {key}"},
        "timeout": httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)),
        "trust_env": False,
    }


def base_url(url: str) -> str:
    """Return the service's URL, given with or without the `/v1` of its routes.

    Raise ValueError without http:// or https://: a guess might send the key unencrypted.
    """
    scheme, separator, rest = url.partition("://")
    if not (separator and rest) or scheme.lower() not in ("http", "https"):
        host = rest if separator else url
        raise ValueError(f"the URL of the service is {url!r}; give it with http:// or https://, as 'http://{host}'")
    return f"{scheme}://{rest.rstrip('/').removesuffix('/v1')}"
