"""A worker that takes no step is named with where it stands; one that moves, waits or saves is left alone."""

import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest
import torch.distributed
from torch.distributed import distributed_c10d

from cluster.training.collective_timeout import limit_collectives
from cluster.training.watchdog import Watchdog


class Bitten:
    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []
        self.ended = threading.Event()

    def report(self, cause: str, stack: str) -> None:
        self.reports.append((cause, stack))


def hang_here(until: threading.Event) -> None:
    until.wait(60)


def test_a_hung_thread_is_reported_with_the_line_where_it_stands_and_then_ended():
    seen = Bitten()
    with Watchdog(0.2, seen.report, seen.ended.set):
        hang_here(seen.ended)
    ((cause, stack),) = seen.reports
    assert "has taken no step for" in cause
    assert "in hang_here: until.wait(60)" in cause
    assert "in hang_here\n    until.wait(60)" in stack


def test_a_thread_that_beats_or_is_paused_is_left_alone():
    seen = Bitten()
    with Watchdog(1.0, seen.report, seen.ended.set) as watchdog:
        for _ in range(15):
            time.sleep(0.1)
            watchdog.beat()
        with watchdog.paused():
            time.sleep(1.5)
    assert seen.reports == []


def test_a_thread_that_waits_in_a_collective_for_others_is_left_alone(tmp_path):
    seen = Bitten()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    with (
        Watchdog(0.2, seen.report, seen.ended.set),
        suppress(torch.distributed.DistStoreError, RuntimeError),
    ):  # of two processes, the second never comes
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=1.5))
    assert seen.reports == []


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
