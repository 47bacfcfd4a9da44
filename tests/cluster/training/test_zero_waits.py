"""What a step of DeepSpeed waits for: other ranks, whose seconds are measured, and the device, which is counted.

A step that is not finite is found late where DeepSpeed does not ask, and named right.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.cluster.training.zero_waits_worker import DELAY, FAULT, GRADIENT, OF_MUON, PRECISIONS
from tests.paths import PROJECT
from tests.toy import training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]

SETUPS = [f"{precision} {stage}" for precision in PRECISIONS for stage in range(4)]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict:
    """What two workers found."""
    output = tmp_path_factory.mktemp("waits") / "results.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with output.with_suffix(".log").open("w") as log:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.training.zero_waits_worker", str(rank), str(port), str(output)],
                cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            codes = [worker.wait(180) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
    assert codes == [0, 0], output.with_suffix(".log").read_text()[-4000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("stage", range(4))
def test_a_rank_that_is_late_is_communication_of_the_other_and_not_its_own(two, stage):
    of_other, own = two["communication"][str(stage)]
    late = DELAY * training().accumulation
    assert of_other > 0.5 * late
    assert of_other > own


def test_the_collectives_of_muon_are_communication(two):
    assert two["muon"] > 0.5 * OF_MUON


@pytest.mark.parametrize("setup", SETUPS)
def test_deepspeed_asks_a_device_for_nothing_in_a_step(two, setup):
    assert two["answers"][setup] == 0


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("what", ["the loss", GRADIENT])
def test_a_step_that_is_not_finite_is_named_at_the_next_log_and_nothing_is_saved_after_it(two, setup, what):
    assert_named(two[what][setup], what)


def test_a_gradient_that_is_not_finite_is_named_where_the_host_has_its_norm(two):
    assert_named(two["offload"], GRADIENT)


def assert_named(outcome: tuple[str, list[int], list[int]], what: str) -> None:
    error, logged, saved = outcome
    assert f"{what} at step {FAULT} on rank" in error
    assert logged == list(range(FAULT))
    assert saved == []
