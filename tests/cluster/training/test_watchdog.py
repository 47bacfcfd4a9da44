"""A rank that hangs is named with where it stands; one that moves, waits or saves is left alone."""

import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed
from torch.distributed import distributed_c10d

from cluster.training.collective_timeout import limit_collectives
from cluster.training.standing import Standing
from cluster.training.watchdog import Watchdog, collectives_entered


class Seen:
    """A rank among `others`, and what its watchdog reports."""

    def __init__(self, others: dict[int, Standing] | None = None) -> None:
        self.among = others or {}
        self.reports: list[tuple[str, str]] = []
        self.stopped: list[tuple[int, str]] = []
        self.stood: list[tuple[int, float, bool]] = []
        self.ended, self.left = threading.Event(), False

    def stand(self, collectives: int, silent: float, waits: bool) -> None:
        self.stood.append((collectives, silent, waits))

    def leave(self) -> None:
        self.left = True

    def others(self) -> dict[int, Standing]:
        return self.among

    def hangs(self, cause: str, stack: str) -> None:
        self.reports.append((cause, stack))

    def is_stopped(self, rank: int, standing: Standing, cause: str) -> None:
        self.stopped.append((rank, f"{standing.where} {cause}"))


def watchdog(seen: Seen, seconds: float, limit: float = 60.0, entered: int = 7) -> Watchdog:
    return Watchdog(seconds, limit, seen, seen.ended.set, lambda: entered)


def hang_here(until: threading.Event, seconds: float = 60.0) -> None:
    until.wait(seconds)


def test_a_hung_thread_is_reported_with_the_line_where_it_stands_and_then_ended():
    seen = Seen()
    with watchdog(seen, 0.2) as watching, watching.stepping():
        hang_here(seen.ended)
    ((cause, stack),) = seen.reports
    assert "has taken no step for" in cause
    assert "in hang_here: until.wait(seconds)" in cause
    assert "in hang_here\n    until.wait(seconds)" in stack
    assert seen.left


def test_a_thread_that_beats_enters_collectives_or_is_paused_is_left_alone():
    seen, entered = Seen(), iter(range(1000))
    with watchdog(seen, 1.0) as watching, watching.stepping():
        for _ in range(15):
            time.sleep(0.1)
            watching.beat()
        with watching.paused():
            time.sleep(1.5)
    with Watchdog(1.0, 60.0, seen, seen.ended.set, lambda: next(entered)) as watching, watching.stepping():
        time.sleep(1.5)
    assert seen.reports == []


def test_what_is_no_step_has_a_limit_of_its_own():
    seen = Seen()
    with watchdog(seen, 0.2, limit=0.8):
        hang_here(seen.ended, 0.6)
        assert seen.reports == []
        hang_here(seen.ended)
    assert len(seen.reports) == 1


WAITS, HUNG = Standing("process 1 on a", 8, 30.0), Standing("process 2 on b", 6, 30.0)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({1: WAITS}, True),
        ({1: WAITS, 2: replace(WAITS, collectives=7)}, True),  # of which two are the last
        ({1: replace(WAITS, collectives=7, waits=True)}, True),  # in the setup of a collective, which is not counted
        ({1: HUNG}, False),
        ({1: HUNG, 2: WAITS}, False),  # neither first nor last, as it put other things into its GPU's queue
        ({1: replace(WAITS, silent=0.0)}, False),  # it has just gone on, and does not wait yet
    ],
)
def test_the_rank_that_has_entered_the_fewest_collectives_is_named_and_none_that_waits_for_it(others, named):
    """Wherever their threads stand: with NCCL, none stands in torch.distributed; and whatever their limits."""
    seen = Seen(others)
    with watchdog(seen, 0.2) as watching, watching.stepping() if not named else watching.paused():
        hang_here(seen.ended, 0.8)
    assert len(seen.reports) == named
    assert seen.stopped == []


def test_ranks_that_hang_alike_say_so():
    seen = Seen({1: replace(WAITS, collectives=7)})
    with watchdog(seen, 0.2) as watching, watching.stepping():
        hang_here(seen.ended)
    ((cause, _),) = seen.reports
    assert "s, as have all other ranks; it stands at" in cause


@pytest.mark.parametrize("collectives", [6, 7, 8])
def test_a_rank_whose_process_is_stopped_is_named_by_the_others_once(collectives):
    stopped = replace(HUNG, collectives=collectives, unheard=5.0)
    seen = Seen({1: stopped, 2: replace(WAITS, collectives=7)})
    with watchdog(seen, 0.2) as watching, watching.stepping():
        hang_here(seen.ended, 0.8)
    cause = "has said nothing for 5 s: its process is stopped, or cannot be reached"
    assert (seen.reports, seen.stopped) == ([], [(1, f"process 2 on b {cause}")])


def test_collectives_are_counted_in_all_groups_of_a_process_as_it_enters_them(tmp_path):
    assert collectives_entered() == 0
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        clone = torch.distributed.new_group(ranks=range(1))
        before = collectives_entered()
        torch.distributed.all_reduce(torch.ones(1))
        torch.distributed.all_reduce(torch.ones(1), group=clone)
        torch.distributed.barrier(group=clone)
        assert collectives_entered() - before == 3
    finally:
        torch.distributed.destroy_process_group()


def test_a_thread_that_waits_in_a_collective_for_others_is_left_alone(tmp_path):
    seen = Seen()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    with (
        watchdog(seen, 0.2) as watching,
        watching.stepping(),
        suppress(torch.distributed.DistStoreError, RuntimeError),
    ):  # of two processes, the second never comes
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=1.5))
    assert seen.reports == []
    assert any(waits for *_, waits in seen.stood)


def test_the_timeout_of_collectives_reaches_a_group_that_is_made_without_one(tmp_path, monkeypatch):
    """As DeepSpeed makes its clone of the group of all workers."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    limit_collectives(7)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=99))
    try:
        clone = torch.distributed.new_group(ranks=range(1))
        backend = clone._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(seconds=7)
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_group_is_left():
    yield
    assert not torch.distributed.is_initialized()
