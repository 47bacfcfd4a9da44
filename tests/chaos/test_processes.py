"""R14, R19: what is killed comes back, and what costs nothing when idle is there when asked."""

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from cluster.config import Serving
from tests.chaos.own_cluster import own, own_stage
from tests.cluster.serving.stage import Stage, until

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with own_stage(Serving(min_replicas=1, max_replicas=1, drain_seconds=1.0)) as opened:
        yield opened


def test_the_controllers_death_fails_no_request(stage):
    """R14"""
    answers, done = [], threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(stage.ask().status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    (controller,) = own("ray::ServeController")
    controller.kill()
    until(lambda: any(one.pid != controller.pid for one in own("ray::ServeController")))
    time.sleep(5)
    done.set()
    asking.join()
    assert set(answers) == {200}


def test_after_the_proxys_death_the_endpoint_answers_again(stage):
    """R14: measured at 5 s with a health check a second, 24 s with Serve's own; requests meanwhile get no answer."""
    (proxy,) = own("ray::ProxyActor")
    proxy.kill()
    proxy.wait(10)
    began = time.monotonic()
    until(lambda: answers(stage))
    assert time.monotonic() - began < 45


def test_a_replica_that_hangs_is_replaced(stage):
    """R12: a stopped process gives no sign of life."""
    (hung,) = stage.pids()
    (process,) = [one for one in own("ray::ServeReplica") if one.pid == hung]
    process.suspend()
    until(lambda: answers(stage), seconds=120)
    assert stage.pids() != {hung}


def answers(stage: Stage) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return stage.ask(edlm={"timeout_seconds": 10}).status_code == 200
    return False


def test_much_work_starts_another_replica_though_requests_are_few():
    """Six requests are no more than one replica's slots; their seconds are."""
    busy = Serving(
        min_replicas=1, max_replicas=2, cpus_per_replica=0.5, upscale_delay_seconds=1.0, target_backlog_seconds=1.0,
        drain_seconds=1.0,
    )  # fmt: skip
    with own_stage(busy) as stage:
        threads = [threading.Thread(target=lambda: stage.ask(max_tokens=3000, edlm={"steps": 12})) for _ in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: len(own("ray::ServeReplica")) == 2)
        for thread in threads:
            thread.join()


def test_from_no_replica_at_all_the_first_request_is_answered_and_then_it_is_none_again():
    """R19"""
    idle = Serving(
        min_replicas=0,
        max_replicas=1,
        upscale_delay_seconds=0.0,
        downscale_to_zero_delay_seconds=5.0,
        drain_seconds=1.0,
    )
    with own_stage(idle) as stage:
        until(lambda: not own("ray::ServeReplica"), seconds=120)
        assert stage.ask().status_code == 200
        stage.promote("second")
        until(lambda: not own("ray::ServeReplica"), seconds=120)
        stage.promote("first")
        assert stage.ask().json()["edlm"]["digest"] == stage.versions["first"].digest
