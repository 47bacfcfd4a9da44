"""The GPU check: its limits fit its time, its exit status says what happened, and its cheapest parts run on the CPU."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edlm.config import from_flags
from edlm.models.transformer import TransformerConfig
from tests.paths import PROJECT
from workflows.benchmark import SampleBenchmark, TrainBenchmark

SCRIPT = PROJECT / ".ci/gpu-check"
LIMITS = {name: int(seconds) for name, seconds in re.findall(r"^ *part (\w+) (\d+) ", SCRIPT.read_text(), re.MULTILINE)}
LAST = "english"  # takes what is left
ON_REQUEST = {"train", "compiled", "pipeline"}  # a run of their own
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
    assert set(LIMITS) == {"tests", "sample", "steps", LAST} | ON_REQUEST
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
        ({"LACKS": "ray", "PARTS": "tests pipeline"}, 0, r"pipeline +left out .* is not installed"),
        ({"FAILS": "workflows.benchmark"}, 1, r"sample +failed \(7\)"),
        ({"LIMIT_SECONDS": "1"}, 4, 'run again with PARTS="tests sample steps english"'),
        (
            {"NEVER_ENDS": "pytest", "LIMIT_SECONDS": "7", "FAILS": "tests.gpu.train_english"},
            4,
            "tests +(out of time|left)",
        ),
        ({"FAILS": "pytest", "NEVER_ENDS": "workflows.benchmark", "LIMIT_SECONDS": "7"}, 1, "FAILED"),
    ],
)
def test_the_exit_status_tells_what_failed_from_what_had_no_time(tmp_path, interpreter, given, status, output):
    returned, summary = check(
        tmp_path / "out", PYTHON=interpreter, **{"FAILS": "-", "NEVER_ENDS": "-", "LACKS": "-", **given}
    )
    assert returned == status, summary
    assert re.search(output, summary), summary


def test_the_benchmarks_of_a_gpu_have_the_heads_of_the_published_small_network(tmp_path, interpreter):
    check(tmp_path, PYTHON=interpreter, LACKS="-", FAILS="-", NEVER_ENDS="-")
    commands = re.findall(r" -m workflows.benchmark (\w+) (.*)", (tmp_path / "log.txt").read_text())
    flags = {command: shlex.split(given) for command, given in commands}
    assert set(flags) == {"sample", "train"}
    for kind, command in ((SampleBenchmark, "sample"), (TrainBenchmark, "train")):
        settings = from_flags(kind, flags[command], "")
        assert settings.transformer == TransformerConfig(width=768, layers=12, heads=12)
        assert (settings.vocabularies, settings.lengths) == ((50_257,), (1024,))
    assert from_flags(TrainBenchmark, flags["train"], "").training.compiled


@pytest.mark.parametrize(("whole", "limit", "training"), [("530", 400, 360), ("180", 180, 140)])
def test_english_trains_for_all_but_the_last_seconds_of_its_limit(tmp_path, interpreter, whole, limit, training):
    check(tmp_path, PYTHON=interpreter, PARTS="english", LIMIT_SECONDS=whole, LACKS="-", FAILS="-", NEVER_ENDS="-")
    given = re.search(r"english .at most (\d+) s.*--seconds (\d+)", (tmp_path / "log.txt").read_text())
    assert [int(seconds) for seconds in given.groups()] == pytest.approx([limit, training], abs=5)


@pytest.mark.timeout(900)
def test_without_a_gpu_a_rehearsal_trains_on_the_cpu(tmp_path):
    status, summary = check(tmp_path, PYTHON=sys.executable, PARTS="train", CUDA_VISIBLE_DEVICES="")
    assert status == 3, summary
    assert re.search(r"^train +passed", summary, re.MULTILINE), summary
    figures = json.loads((tmp_path / "train.json").read_text())
    assert figures["device"] == "cpu"
    assert figures["last_loss_nats_per_token"] < figures["first_loss_nats_per_token"]


@pytest.mark.chaos
def test_without_a_gpu_every_part_is_rehearsed_on_the_cpu(tmp_path):
    status, summary = check(tmp_path, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert status == 3, summary
    passed = re.findall(r"^([a-z]+) +passed", summary, re.MULTILINE)
    assert passed == ["tests", "sample", "steps", "english"]
    assert (tmp_path / "sample.md").is_file()
    assert (tmp_path / "train.md").is_file()
    figures = json.loads((tmp_path / "english/figures.json").read_text())
    assert (
        figures["bound, T = 4, conditional, exact"]["nats_per_token"] < figures["bound, T = 4, plain"]["nats_per_token"]
    )
    assert (tmp_path / "english/texts.txt").read_text().count("---") >= 4


@pytest.mark.chaos
def test_without_a_gpu_the_smallest_experiment_is_rehearsed_on_the_cpu(tmp_path):
    status, summary = check(tmp_path, PYTHON=sys.executable, PARTS="compiled pipeline", CUDA_VISIBLE_DEVICES="")
    assert status == 3, summary
    found = re.findall(r"^([a-z]+) +(passed|left out)", summary, re.MULTILINE)
    assert found == [("compiled", "left out"), ("pipeline", "passed")]
