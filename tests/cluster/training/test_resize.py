"""A training goes on with another number of workers, under every ZeRO stage, with the losses it would have had."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edlm.checkpoints.snapshot_manifest import read_manifest
from edlm.checkpoints.training_state import newest_snapshot
from tests.cluster.training.resize_worker import SETUPS, STEPS
from tests.paths import PROJECT

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(900)]

SECONDS = 400
TOLERANCE = {"float32": 1e-6, "bfloat16": 3e-3}  # other sums over other workers; in bfloat16 of rounded gradients


def train(folder: Path, workers: int) -> dict[str, dict]:
    """Losses by setup, of the workers' two steps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    log = (folder / f"log-{workers}").open("w")
    command = [sys.executable, "-m", "tests.cluster.training.resize_worker"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(workers), str(port), str(folder)],
            cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )
        for rank in range(workers)
    ]  # fmt: skip
    try:
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
        log.close()
    assert codes == [0] * workers, (folder / f"log-{workers}").read_text()[-4000:]
    return json.loads((folder / f"losses-{workers}.json").read_text())


@pytest.fixture(scope="module")
def resized(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("resized")
    return folder, [train(folder, workers) for workers in (2, 1, 3)]


@pytest.mark.parametrize(("precision", "stage", "on_disk"), SETUPS)
def test_two_then_one_then_three_workers_have_the_losses_of_two(resized, precision, stage, on_disk):
    folder, by_workers = resized
    name = f"{precision}-{stage}-{on_disk}"
    whole = by_workers[0][name]["whole"]
    parts = {step: loss for results in by_workers for step, loss in results[name]["parts"].items()}
    assert sorted(parts, key=int) == sorted(whole, key=int) == [str(step) for step in range(STEPS)]
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, abs=TOLERANCE[precision])
    uri, step = newest_snapshot(str(folder / "parts" / name))
    manifest = read_manifest(uri)
    assert (step, manifest.world_size, len(manifest.parts)) == (STEPS, 3, 3)
