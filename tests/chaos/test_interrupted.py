"""A command that is killed goes on where it stopped, and ends as if nothing had happened."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.tracking.journal import history
from tests.workflows.commands import command, run

pytestmark = pytest.mark.chaos

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_a_stage_that_was_killed_goes_on_and_ends_as_if_nothing_had_happened(home, tmp_path):
    long = ("--pretrain.steps", "900", "--pretrain.checkpoint_every", "100", "--pretrain.log_every", "100")
    whole = run(home, "pretrain", *long)
    arguments, settings = command(tmp_path, "pretrain", *long)
    with subprocess.Popen(arguments, **settings) as victim:
        for line in victim.stdout:
            if "step 300/900" in line:
                os.killpg(victim.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("training never said step 300")
    wait_for_orphans_of(tmp_path)
    resumed = run(tmp_path, "pretrain", *long)
    assert "[pretrain] resumes" in resumed
    assert re.search(r"resumes after step \d+00", resumed)
    assert _curve(tmp_path, resumed) == _curve(home, whole)


def test_an_interrupted_grid_goes_on_where_it_stopped(home):
    other = ("--evaluate.sequences", "6")
    arguments, settings = command(home, "evaluate", *other)
    with subprocess.Popen(arguments, **settings) as victim:
        for line in victim.stdout:
            if re.search(r"\d+ of \d+ measurements done", line):
                os.killpg(victim.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("no cell was measured")
    wait_for_orphans_of(home)
    resumed = run(home, "evaluate", *other)
    kept, total = map(int, re.search(r"(\d+) of (\d+) measurements reused", resumed).groups())
    assert 0 < kept < total
    assert f"{total - kept} of {total - kept} measurements done" in resumed
    assert "6 validation sequences" in resumed


def _curve(home: Path, output: str) -> dict[int, float]:
    folder = re.search(r"\[pretrain\] finished in .*?: (\S+)", output)
    assert folder is not None
    return history(home / "smallest" / "work" / Path(folder[1]).name / "journal")["loss_nats_per_token"]


def wait_for_orphans_of(home: Path, but: Sequence[str] = ()) -> None:
    """Ray ends its workers when their driver is gone; until then they still write.

    Its agents (`AGENTS`), which write nothing, try for a minute to say so to the GCS, which is gone as well. Those
    named in `but` are not waited for.
    """
    deadline = time.monotonic() + 120
    while environments := [
        path
        for path in Path("/proc").glob("[0-9]*/environ")
        if _mentions(path, str(home)) and not _is_one_of(path.parent, but)
    ]:
        if time.monotonic() > deadline:
            pytest.fail("still running:\n" + "\n".join(_described(path.parent) for path in environments))
        time.sleep(0.5)


def _is_one_of(process: Path, names: Sequence[str]) -> bool:
    with contextlib.suppress(OSError):
        command = (process / "cmdline").read_text()
        return any(name in command for name in names)
    return False


def _described(process: Path) -> str:
    """Return what is known of a process: its command, its state, and where its threads stand."""
    with contextlib.suppress(OSError):
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        state = re.findall(r"(?:PPid|State):\s*(.*)", (process / "status").read_text())
        stack = subprocess.run(
            [Path(sys.executable).with_name("py-spy"), "dump", "--pid", process.name],
            capture_output=True,
            text=True,
            check=False,
        )
        return f"{process.name} {command} {state}\n{stack.stdout}{stack.stderr}"
    return f"{process.name}, which has ended just now"


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False
