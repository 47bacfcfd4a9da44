"""The GPU check: its limits fit its time, its exit status says what happened, and its cheapest parts run on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import PROJECT

SCRIPT = PROJECT / ".ci/gpu-check"
LIMITS = {name: int(seconds) for name, seconds in re.findall(r"^ *part (\w+) (\d+) ", SCRIPT.read_text(), re.MULTILINE)}
LAST = "pipeline"  # takes what is left
ON_REQUEST = {"steps", "english"}  # a run of their own
# An interpreter that finds a CUDA device and every package but one, and whose programs do nothing, fail or never end.
INTERPRETER = """#!/usr/bin/env bash
[ "$1" = -m ] || { echo "a device"; [[ "$2" != *"$LACKS"* ]]; exit; }
case " $* " in
    *" $FAILS "*) exit 7 ;;
    *" $NEVER_ENDS "*) exec sleep 600 ;;
esac
"""


def check(folder: Path, **environment: str) -> tuple[int, str]:
    """Run the check and return its exit status and summary."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    done = subprocess.run(
        [str(SCRIPT), str(folder)], env=kept | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    summary = folder / "summary.txt"
    return done.returncode, summary.read_text() if summary.exists() else done.stdout


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(INTERPRETER)
    path.chmod(0o755)
    return str(path)


def test_the_last_part_has_two_minutes_whatever_the_start_and_the_parts_before_take():
    whole = int(re.search(r"^limit_seconds=(\d+)", SCRIPT.read_text(), re.MULTILINE)[1])  # type: ignore[index]
    assert whole <= 540, "nine minutes"
    assert set(LIMITS) == {"tests", "sample", "train", "compiled", LAST} | ON_REQUEST
    assert sum(seconds for name, seconds in LIMITS.items() if name not in {LAST, *ON_REQUEST}) + 20 + 120 <= whole
    assert sum(LIMITS[name] for name in ON_REQUEST) + 20 <= whole


def test_the_page_names_the_limits_of_the_script():
    page = (PROJECT / "docs/gpu.md").read_text(encoding="utf-8")
    for name, seconds in LIMITS.items():
        assert re.search(rf"^\| `{name}` \| [^|]*\b{seconds} s \|", page, re.MULTILINE), name


@pytest.mark.parametrize(
    ("given", "status", "output"),
    [
        ({}, 0, "PASSED on a device"),
        ({"LACKS": "ray"}, 0, r"pipeline +left out .* is not installed(.|\n)*PASSED on a device"),
        ({"FAILS": "workflows.benchmark"}, 1, r"sample +failed \(7\)"),
        ({"LIMIT_SECONDS": "1"}, 4, 'run again with PARTS="tests sample train compiled pipeline"'),
        ({"NEVER_ENDS": "pytest", "LIMIT_SECONDS": "7", "FAILS": "workflows.pipeline"}, 4, "tests +(out of time|left)"),
        ({"FAILS": "pytest", "NEVER_ENDS": "workflows.benchmark", "LIMIT_SECONDS": "7"}, 1, "FAILED"),
    ],
)
def test_the_exit_status_tells_what_failed_from_what_had_no_time(tmp_path, interpreter, given, status, output):
    returned, summary = check(
        tmp_path / "out", PYTHON=interpreter, **{"FAILS": "-", "NEVER_ENDS": "-", "LACKS": "-", **given}
    )
    assert returned == status, summary
    assert re.search(output, summary), summary


@pytest.mark.timeout(900)
def test_without_a_gpu_a_rehearsal_trains_on_the_cpu(tmp_path):
    status, summary = check(tmp_path, PYTHON=sys.executable, PARTS="train", CUDA_VISIBLE_DEVICES="")
    assert status == 3, summary
    assert re.search(r"^train +passed", summary, re.MULTILINE), summary
    figures = json.loads((tmp_path / "train.json").read_text())
    assert figures["device"] == "cpu"
    assert figures["last_loss_nats_per_token"] < figures["first_loss_nats_per_token"]


@pytest.mark.chaos
def test_without_a_gpu_minutes_of_training_are_rehearsed_on_the_cpu(tmp_path):
    status, summary = check(tmp_path, PYTHON=sys.executable, PARTS="steps english", CUDA_VISIBLE_DEVICES="")
    assert status == 3, summary
    assert re.findall(r"^(\w+) +(passed)", summary, re.MULTILINE) == [("steps", "passed"), ("english", "passed")]
    figures = json.loads((tmp_path / "english/figures.json").read_text())
    assert (
        figures["bound, T = 4, conditional, exact"]["nats_per_token"] < figures["bound, T = 4, plain"]["nats_per_token"]
    )
    assert (tmp_path / "english/texts.txt").read_text().count("---") >= 4


@pytest.mark.chaos
def test_without_a_gpu_every_part_is_rehearsed_on_the_cpu(tmp_path):
    status, summary = check(tmp_path, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert status == 3, summary
    found = re.findall(r"^([a-z]+) +(passed|left out)", summary, re.MULTILINE)
    assert found == [
        ("tests", "passed"), ("sample", "passed"), ("train", "passed"), ("compiled", "left out"), ("pipeline", "passed")
    ]  # fmt: skip
    assert (tmp_path / "sample.md").is_file()
