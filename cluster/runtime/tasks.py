"""Independent Ray tasks, each on its own CPUs: in order of completion, or of the items."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from cluster.runtime.garbage import freeze_imports

RETRIES = 2  # of a task whose worker died
AHEAD = 4  # tasks that wait, so that no CPU does
ASK_SECONDS = 1.0  # for how long the number of CPUs that a cluster has is taken to stay

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
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_on_own_threads)
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


def in_order(work: Callable[[Item], Result], items: Iterable[Item], cpus: float) -> Iterator[Result]:
    """Yield `work(item)` for every item, in the order of the items; raise the error of the first one that fails.

    `work` is a module-level function; it and the items are sent to the workers. An item is taken from `items` when a
    task can begin soon: as many as the cluster runs at once are in memory, and AHEAD more.
    """
    remote = ray.remote(num_cpus=cpus, max_retries=RETRIES)(_on_own_threads)
    running: deque[Any] = deque()
    cpus_there, asked_at = 0.0, -math.inf
    try:
        for item in items:
            running.append(remote.remote(work, item, cpus))
            if time.monotonic() > asked_at + ASK_SECONDS:
                cpus_there, asked_at = ray.cluster_resources().get("CPU", cpus), time.monotonic()
            if len(running) >= cpus_there / cpus + AHEAD:
                yield _result(running.popleft())
        while running:
            yield _result(running.popleft())
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _on_own_threads(work: Callable[[Any], Any], item: Any, cpus: float) -> Any:
    freeze_imports()
    # More threads than CPUs would spin against the other tasks.
    torch.set_num_threads(max(1, int(cpus)))
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if cpus > 1 else "false"
    return work(item)


def _outcome(item: Item, reference: Any) -> TaskOutcome[Item, Any]:
    try:
        return TaskOutcome(item, ray.get(reference), None)
    except RayTaskError as error:
        return TaskOutcome(item, None, error.cause if isinstance(error.cause, Exception) else error)
    except RayError as error:  # its worker and all retries died
        return TaskOutcome(item, None, error)


def _result(reference: Any) -> Any:
    outcome = _outcome(None, reference)
    if outcome.error is not None:
        raise outcome.error
    return outcome.result
