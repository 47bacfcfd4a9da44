"""A training killed by SIGKILL at random moments, most in mid-save, ends with the weights of one that was not."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edlm.checkpoints.snapshot_retention import committed_at, snapshots
from tests.paths import PROJECT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS, STEPS = 200, 1000


def start(workspace: Path, output: Path, temporary: Path) -> subprocess.Popen:
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.saving_worker", str(workspace), str(output), str(STEPS)],
        cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def losses(lines: str) -> dict[int, str]:
    """Loss of each step by its line, of which a kill may cut the last one short."""
    whole = [line for line in lines.splitlines(keepends=True) if line.endswith("\n") and line != "started\n"]
    return {int(step): loss for step, loss in map(str.split, whole)}


def test_killed_at_random_moments_it_ends_with_the_same_weights_and_leaves_nothing(tmp_path):
    with start(tmp_path / "whole", tmp_path / "whole.safetensors", tmp_path / "tmp") as process:
        expected = losses(process.communicate()[0])
    assert len(expected) == STEPS
    workspace, output, seen = tmp_path / "work", tmp_path / "parts.safetensors", {}
    rng, kills, half_written = random.Random(0), 0, 0
    while not output.exists():
        with start(workspace, output, tmp_path / "tmp") as process:
            assert process.stdout is not None
            lines = process.stdout.readline()  # importing takes seconds, in which there is nothing to interrupt
            if kills < KILLS:
                for _ in range(rng.randrange(3)):  # by steps, so that a fast machine has not ended before the last kill
                    lines += process.stdout.readline()
                time.sleep(rng.uniform(0, 0.05))
                process.kill()
                kills += 1
                process.wait()
                half_written += any(committed_at(str(workspace), name) is None for name in snapshots(str(workspace)))
            lines += process.communicate()[0]
        for step, loss in losses(lines).items():
            assert seen.setdefault(step, loss) == loss
    assert kills == KILLS
    assert half_written > KILLS // 5
    assert seen == expected
    whole, actual = load_file(tmp_path / "whole.safetensors"), load_file(output)
    assert whole.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in whole.items())
    names = snapshots(str(workspace))
    assert [name[:13] for name in names] == [f"step-{step:08d}" for step in (STEPS - 1, STEPS)]
    assert all(committed_at(str(workspace), name) is not None for name in names)
    assert [path.name for path in workspace.iterdir() if path.name not in names] == []
    assert [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("edlm")] == []
