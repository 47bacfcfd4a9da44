"""Token-bucket rate limit of work per API key."""

import math
import time
from collections.abc import Callable


class RateLimit:
    """Token bucket per key: `per_second` work on average, up to `burst` at once.

    A request is admitted while the balance is positive and may overdraw it, so a large request need not wait for its
    full cost to accumulate; the key's next request waits instead.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left: dict[str, tuple[float, float]] = {}  # key: (balance, time of the balance)

    def wait_seconds(self, key: str) -> int:
        """Return the whole seconds until `key` may send its next request; 0 if it may now."""
        left = self._now_left(key)
        return 0 if left > 0 else max(1, math.ceil(-left / self._per_second))

    def use(self, key: str, work: float) -> None:
        """Subtract `work` from the balance of `key`; negative work is a refund."""
        self._left[key] = (self._now_left(key) - work, self._clock())

    def _now_left(self, key: str) -> float:
        left, when = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - when) * self._per_second)
