"""Replicas come with work and go without it, down to none."""

import threading

import pytest

from cluster.config import Serving
from tests.chaos.own_cluster import own, own_stage
from tests.cluster.endpoint.stage import until

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]


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
