"""Independent Ray tasks, each on its own CPUs; results and failures are yielded in order of completion."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class TaskOutcome(Generic[Item, Result]):
    """Outcome of one item: a result, or an error in its place."""

    item: Item
    result: Result | None
    error: Exception | None


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], cpus: float, gpus: float = 0.0, alone: bool = False
) -> Iterator[TaskOutcome[Item, Result]]:
    """Yield the outcome of `work(item)` for every item, in order of completion; an error affects no other item.

    `work` is a module-level function; it and the items are sent to the workers. `alone`: run one task of this call at a
    time, still on `cpus` threads.
    """
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(_on_own_threads)
    remaining = iter(items)
    concurrency = 1 if alone else len(items)
    running: dict[Any, Item] = {}
    try:
        while True:
            while len(running) < concurrency and (item := next(remaining, None)) is not None:
                running[remote.remote(work, item, cpus)] = item
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            yield _outcome(running.pop(ready), ready)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _on_own_threads(work: Callable[[Any], Any], item: Any, cpus: float) -> Any:
    torch.set_num_threads(max(1, int(cpus)))  # more threads than CPUs would spin against the other tasks
    return work(item)


def _outcome(item: Item, reference: Any) -> TaskOutcome[Item, Any]:
    try:
        return TaskOutcome(item, ray.get(reference), None)
    except RayTaskError as error:
        return TaskOutcome(item, None, error.cause if isinstance(error.cause, Exception) else error)
    except RayError as error:  # its worker and all retries died
        return TaskOutcome(item, None, error)
