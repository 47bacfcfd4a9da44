"""Independent pieces of work as Ray tasks: each on its own CPUs, results as they come, failures among them."""

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
    """What came of one item: a result, or the error in its place."""

    item: Item
    result: Result | None
    error: Exception | None


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], cpus: float, gpus: float = 0.0, alone: bool = False
) -> Iterator[TaskOutcome[Item, Result]]:
    """The outcome of work(item) for every item, in the order in which they finish; an error loses no other item.

    `work` is a module-level function; it and the items travel to the workers. `alone`: one after the other, with
    nothing of this call beside it, still on `cpus` threads.
    """
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(_on_own_threads)
    ahead = iter(items)
    at_once = 1 if alone else len(items)
    waiting: dict[Any, Item] = {}
    try:
        while True:
            while len(waiting) < at_once and (item := next(ahead, None)) is not None:
                waiting[remote.remote(work, item, cpus)] = item
            if not waiting:
                return
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            yield _outcome(waiting.pop(ready), ready)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _on_own_threads(work: Callable[[Any], Any], item: Any, cpus: float) -> Any:
    torch.set_num_threads(max(1, int(cpus)))  # more threads than CPUs would spin against the other tasks
    return work(item)


def _outcome(item: Item, reference: Any) -> TaskOutcome[Item, Any]:
    try:
        return TaskOutcome(item, ray.get(reference), None)
    except RayTaskError as error:
        return TaskOutcome(item, None, error.cause if isinstance(error.cause, Exception) else error)
    except RayError as error:  # its worker died, and the retries too
        return TaskOutcome(item, None, error)
