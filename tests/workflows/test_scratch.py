"""A stage's scratch folder is gone when its work ends, also where a process was killed in it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from workflows.scratch import scratch

WORK = """
from workflows.scratch import scratch
with scratch("prepare") as folder:
    (folder / "output").mkdir()
    (folder / "output" / "train.bin").write_text("half")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def working():
    """A process that works in a folder of its own, and the folder."""
    command = [sys.executable, "-c", WORK]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_works_in_stays(temporary):
    (killed, dead), (process, living) = working(), working()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (dead / "output" / "train.bin").exists()
    (temporary / "edlm-stage-of-another").mkdir()
    with scratch("prepare") as folder:
        assert set(temporary.iterdir()) == {living, folder, temporary / "edlm-stage-of-another"}
        assert (living / "output" / "train.bin").read_text() == "half"
    process.communicate("\n")
    assert process.returncode == 0
    assert list(temporary.iterdir()) == [temporary / "edlm-stage-of-another"]


def failing():
    with scratch("prepare") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError("no space")


def test_a_work_that_fails_leaves_no_folder(temporary):
    with pytest.raises(RuntimeError, match="no space"):
        failing()
    assert list(temporary.iterdir()) == []
