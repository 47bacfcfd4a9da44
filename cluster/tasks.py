"""Independent pieces of work as Ray tasks: each on its own CPUs, results as they come."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayTaskError

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], cpus: float, gpus: float = 0.0
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) for every item, in the order in which they finish.

    `work` is a module-level function; it and the items travel to the workers. The first error ends the rest and is
    raised as it was.
    """
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(_on_own_threads)
    waiting: dict[Any, Item] = {remote.remote(work, item, cpus): item for item in items}
    try:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            item = waiting.pop(ready)
            yield item, _result(ready)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _on_own_threads(work: Callable[[Any], Any], item: Any, cpus: float) -> Any:
    torch.set_num_threads(max(1, int(cpus)))  # more threads than CPUs would spin against the other tasks
    return work(item)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
