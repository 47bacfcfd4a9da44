"""An allowance of work for each API key: what was used comes back with time."""

import math
import time
from collections.abc import Callable


class RateLimit:
    """Each key may use `per_second` on average, and `burst` at once after a rest.

    A request is let in while anything is left, and may overdraw: a large one waits no longer than it costs.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left: dict[str, tuple[float, float]] = {}  # of each key: how much, and when

    def wait_seconds(self, key: str) -> int:
        """How long `key` must wait for its next request; 0: not at all."""
        left = self._now_left(key)
        return 0 if left > 0 else max(1, math.ceil(-left / self._per_second))

    def use(self, key: str, work: float) -> None:
        """Afterwards `key` has `work` less."""
        self._left[key] = (self._now_left(key) - work, self._clock())

    def _now_left(self, key: str) -> float:
        left, when = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - when) * self._per_second)
