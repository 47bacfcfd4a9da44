"""R22: hours of load with cancels leave nothing behind: memory, threads and files are flat, and the counts agree.

SOAK_MINUTES says how long (20).
"""

import os
import time
from collections import Counter
from statistics import median

import psutil
import pytest

from cluster.config import Serving
from tests.chaos.own_cluster import own, own_stage
from tests.cluster.endpoint.stage import Stage, until
from workflows.benchmarking.arrivals import plan
from workflows.benchmarking.load import RequestSettings, load

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]
MINUTES = float(os.environ.get("SOAK_MINUTES", "20"))
ROUND_SECONDS, RATE = 10.0, 8.0
GROWTH = 1.10  # of memory from the first third to the last: a leak of a text's state would be many times that


def test_load_with_cancels_leaves_nothing_behind():
    with own_stage(Serving(min_replicas=1, max_replicas=1, slots=8, waiting=32, drain_seconds=5.0)) as stage:
        (replica,) = own("ray::ServeReplica")
        (proxy,) = own("ray::ProxyActor")
        rounds, endings = [], Counter[str]()
        end, seed = time.monotonic() + 60 * MINUTES, 0
        while time.monotonic() < end or len(rounds) < 6:
            seed += 1000
            requests = plan(
                int(RATE * ROUND_SECONDS), RATE, (4, 16, 64), (1,), seed, cancelled_share=0.3, cancel_seconds=0.5
            )
            for states in (True, False):
                settings = RequestSettings(max_tokens=24, deadline=20.0, states=states)
                endings.update(outcome.ending for outcome in load(stage.url, requests, settings))
            if seed % 10000 == 0:
                stage.promote("second" if seed % 20000 else "first")
            until(lambda: is_idle(stage))
            rounds.append([taken(replica), taken(proxy)])
        print(f"{len(rounds)} rounds, {dict(endings)}, first {rounds[1]}, last {rounds[-1]}")
        assert set(endings) <= {"done", "busy", "late", "cancelled"}
        assert endings["done"] > 0
        third = len(rounds) // 3
        for process in range(2):
            early, late = ([pair[process] for pair in part] for part in (rounds[third : 2 * third], rounds[-third:]))
            for name, allowed in (("memory", GROWTH), ("threads", 1.0), ("files", 1.0)):
                first, last = (median(figures[name] for figures in part) for part in (early, late))
                assert last <= first * allowed + (0 if name == "memory" else 4), (name, first, last)
        (counts,) = [status["counts"] for status in stage.swap_statuses()]
        assert counts["submitted"] == sum(counts["finished"].values())


def is_idle(stage: Stage) -> bool:
    """Whether nothing is in progress or waits, in the one replica."""
    return [status["counts"]["running"] + status["counts"]["waiting"] for status in stage.swap_statuses()] == [0]


def taken(process: psutil.Process) -> dict[str, float]:
    """What a process holds now."""
    return {"memory": process.memory_info().rss, "threads": process.num_threads(), "files": process.num_fds()}
