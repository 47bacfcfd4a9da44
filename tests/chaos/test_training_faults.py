"""A training that is stopped, started twice, or loses parts of Ray ends with the metrics of an undisturbed one."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.chaos.test_interrupted import _curve, wait_for_orphans_of
from tests.chaos.test_killed_at_random import digest
from tests.workflows.commands import command, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

LONG = ("--pretrain.steps", "1500", "--pretrain.checkpoint_every", "500", "--pretrain.log_every", "100")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("undisturbed")
    return home, run(home, "pretrain", *LONG)


def begun(home: Path, *overrides: str) -> tuple[subprocess.Popen, list[str]]:
    """A pretraining that has printed a step, and what it has printed."""
    arguments, settings = command(home, "pretrain", *LONG, *overrides)
    process, lines = subprocess.Popen(arguments, **settings), []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if re.search(r"step \d+/1500", line):
            return process, lines
    pytest.fail(f"no step was printed: {''.join(lines)}")


def ended(process: subprocess.Popen, earlier: list[str]) -> str:
    return "".join([*earlier, process.communicate(timeout=600)[0]])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on_from_that_step(undisturbed, tmp_path, number):
    process, earlier = begun(tmp_path)
    os.kill(process.pid, number)
    output = ended(process, earlier)
    assert process.returncode == 128 + number, output
    name = signal.Signals(number).name
    stopped = re.search(
        rf"stopped: pretrain was stopped by {name} and saved after step (\d+); the same command goes on from there\n$",
        output,
    )
    assert stopped, output
    assert int(stopped[1]) % 500, "not one of the routine checkpoints"
    assert "Traceback" not in output
    wait_for_orphans_of(tmp_path)
    resumed = run(tmp_path, "pretrain", *LONG)
    assert f"[pretrain] resumes after step {stopped[1]}\n" in resumed
    assert _curve(tmp_path, resumed) == _curve(*undisturbed)


def test_a_second_command_on_the_same_run_is_refused_by_the_name_of_the_first(undisturbed, tmp_path):
    process, earlier = begun(tmp_path)
    refused = run(tmp_path, "pretrain", *LONG, expect=1)
    last = refused.splitlines()[-1]
    assert re.fullmatch(
        r"error: .* is written by process \d+ on .*: wait until that command has ended, or stop it", last
    )
    assert f"process {process.pid} " in last
    assert "Traceback" not in refused
    output = ended(process, earlier)
    assert process.returncode == 0, output
    assert _curve(tmp_path, output) == _curve(*undisturbed)


@pytest.mark.parametrize("part", ["ray::TrainController", "ray::_Board", "ray::_Mailbox", "ray::RayTrainWorker"])
def test_the_death_of_any_part_of_a_training_is_survived(undisturbed, tmp_path, part):
    process, earlier = begun(tmp_path)
    parts = [
        child for child in psutil.Process(process.pid).children(recursive=True) if part in "".join(child.cmdline())
    ]
    assert parts, "Ray has other names for its processes"
    parts[0].kill()
    output = ended(process, earlier)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert _curve(tmp_path, output) == _curve(*undisturbed)


def test_without_its_gcs_a_command_ends_with_one_line_and_the_same_one_goes_on(undisturbed, tmp_path):
    often = ("--pretrain.checkpoint_every", "100")
    arguments, settings = command(tmp_path, "pretrain", *LONG, *often)
    with subprocess.Popen(arguments, **settings) as process:
        assert process.stdout is not None
        lines = list(itertools.takewhile(lambda line: "step 300/1500" not in line, process.stdout))
        children = psutil.Process(process.pid).children(recursive=True)
        (gcs,) = [child for child in children if child.name() == "gcs_server"]
        workers = [child for child in children if "ray::RayTrainWorker" in "".join(child.cmdline())]
        assert workers, "Ray has other names for its processes"
        for worker in workers:
            worker.suspend()  # else it trains to the end, for which it needs no GCS
        gcs.kill()
        output = ended(process, lines)
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()
    assert process.returncode == 1, output
    last = output.splitlines()[-1]
    assert re.fullmatch(r"error: Ray's GCS at \S+ has not answered for 45 s: .*; run the same command again: .*", last)
    assert "Traceback" not in output
    wait_for_orphans_of(tmp_path)
    resumed = run(tmp_path, "pretrain", *LONG, *often)
    assert re.search(r"\[pretrain\] resumes after step [1-9]\d*00\n", resumed)
    assert _curve(tmp_path, resumed) == _curve(*undisturbed)
    assert digest(tmp_path) == digest(undisturbed[0])
