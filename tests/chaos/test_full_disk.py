"""A disk with everything on it, checkpoints, metrics and MLflow's database, fills up while a command trains."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edlm.checkpoints.snapshot_retention import committed_at, snapshots
from tests.chaos.test_interrupted import _curve
from tests.small_disk import fill, free, small_disk
from tests.workflows.commands import command, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

LONG = ("--pretrain.steps", "1500", "--pretrain.checkpoint_every", "300", "--pretrain.log_every", "100")


def begun(home: Path, disk: Path, *overrides: str) -> subprocess.Popen:
    """A pretraining that sees the disk as its home, and has a checkpoint there; now it is full."""
    holder = disk.parts[2]  # /proc/HOLDER/root/...
    arguments, settings = command(home, "pretrain", *LONG, *overrides)
    process = subprocess.Popen(["nsenter", "--mount", "--target", holder, *arguments], **settings)
    deadline = time.monotonic() + 300
    while not checkpoints(disk):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    fill(disk)
    return process


def checkpoints(disk: Path) -> list[str]:
    """The committed checkpoints of all stages."""
    workspaces = [str(path) for path in disk.glob("*/work/*")]
    names = [(workspace, name) for workspace in workspaces for name in snapshots(workspace)]
    return [name for workspace, name in names if committed_at(workspace, name) is not None]


def weights(home: Path) -> dict[str, torch.Tensor]:
    return load_file(next(home.glob("smallest/pretrain-*/weights.safetensors")))


def test_training_waits_until_there_is_room_and_ends_as_if_nothing_had_happened(tmp_path):
    whole = run(tmp_path, "pretrain", *LONG)
    home = tmp_path / "full"
    with small_disk(home, "64m") as disk:
        process, lines = begun(home, disk), list[str]()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "could not be written" in line:
                break
        time.sleep(5)  # in which training comes to the next checkpoint, and MLflow's database takes nothing
        free(disk)
        output = "".join([*lines, process.communicate(timeout=600)[0]])
        assert process.returncode == 0, output
        assert output.count("what comes is kept in memory until there is space") == 1
        assert "restart" not in output
        assert "Traceback" not in output
        assert _curve(disk, output) == _curve(tmp_path, whole)
        actual = weights(disk)
    assert all(torch.equal(actual[name], weight) for name, weight in weights(tmp_path).items())


def test_a_disk_that_stays_full_is_one_line_and_what_was_there_stays(tmp_path):
    home = tmp_path / "full"
    with small_disk(home, "64m") as disk:
        process = begun(home, disk, "--cluster.checkpoint_patience_seconds", "3", "--cluster.restarts", "1")
        before = checkpoints(disk)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 1, output
        last = output.splitlines()[-1]
        assert re.fullmatch(
            r"error: pretrain failed 2 times, at last because rank \d .*No space left on device.*", last
        )
        assert set(before) <= set(checkpoints(disk))
        free(disk)
        again = subprocess.run(process.args, check=False, timeout=600, **command(home, "pretrain")[1])
        assert again.returncode == 0, again.stdout
        assert "[pretrain] resumes after step" in again.stdout
        assert (disk / "smallest").exists()
