"""ZeRO in one process takes the steps that LocalEngine takes on the CPU, with a checkpoint in the middle."""

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edlm.training.local_engine import LocalEngine
from tests.cluster.training.zero_objectives import objectives, science_rows
from tests.cluster.training.zero_worker import curve
from tests.gpu.conftest import Report
from tests.gpu.rounding import training_tolerance
from tests.gpu.test_training import largest_difference
from tests.gpu.zero_worker import cases, key, training
from tests.paths import PROJECT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SECONDS = 300
# Without another device in between, the same bits are summed in another order, in float32.
SAME_DEVICE = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Callable[[str], dict]:
    """What one process with DeepSpeed finds on a device; one process for all cases."""
    return functools.cache(lambda device: worked(device, tmp_path_factory.mktemp("zero") / "curves.json"))


def worked(device: str, output: Path) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "tests.gpu.zero_worker", device, str(port), str(output)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert output.exists(), done.stderr[-4000:]
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "stage", "precision"), cases("cpu"))
def test_a_process_on_the_cpu_takes_the_steps_of_local_training(run, report, name, stage, precision):
    check(run("cpu"), report, name, stage, precision, SAME_DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "stage", "precision"), cases("cuda"))
def test_a_process_on_cuda_takes_the_steps_of_local_training(cuda, run, report, name, stage, precision):
    check(run(cuda), report, name, stage, precision, training_tolerance(name, cuda, precision))


def check(actual: dict, report: Report, name: str, stage: int, precision: str, tolerance: float) -> None:
    """The steps of LocalEngine on the CPU, up to rounding."""
    result = actual[key(name, stage, precision)]
    assert "error" not in result, result["error"]
    settings = training(precision)
    alone = curve(LocalEngine(objectives()[name](), settings), settings, science_rows)
    difference = largest_difference(result["curve"], alone)
    report(largest_relative_difference=difference)
    assert difference <= tolerance
