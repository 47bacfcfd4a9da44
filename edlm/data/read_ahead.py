"""Reading ahead: the rows of the next steps are read while a step is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from edlm.data.batches import Rows

STEPS = 4  # that are read ahead: a store that is slow now and then delays no step


class ReadAhead:
    """Rows of a training of `steps` steps, as a context manager: `rows`, called from other threads before it is time.

    Rows are a function of (step, start, stop), so that those read ahead are those that a later call would return.
    """

    def __init__(self, rows: Callable[[int, int, int], Rows], steps: int) -> None:
        self._rows, self._steps = rows, steps
        self._threads = ThreadPoolExecutor(STEPS, thread_name_prefix="read-ahead")
        self._reading: dict[tuple[int, int, int], Future[Rows]] = {}

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __call__(self, step: int, start: int, stop: int) -> Rows:
        """Return the rows, and begin to read those of the next steps; raise what reading these raised."""
        self._reading = {key: reading for key, reading in self._reading.items() if key[0] >= step}
        for later in range(step, min(step + STEPS, self._steps - 1) + 1):
            key = (later, start, stop)
            if key not in self._reading:
                self._reading[key] = self._threads.submit(self._rows, *key)
        return self._reading.pop((step, start, stop)).result()
