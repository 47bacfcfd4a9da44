"""One run, killed at random moments in all its parts, ends with the weights and metrics of one that was not.

KILLS=200 KILLS_FOLDER=/var/tmp/kills python -m pytest -m chaos tests/chaos/test_killed_at_random.py

A restart takes 10 to 30 seconds. With KILLS_FOLDER, a campaign that was interrupted goes on where it was.
"""

import json
import os
import random
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from edlm.storage import committed
from tests.chaos.repeatable_metrics import is_repeatable
from tests.chaos.test_interrupted import AGENTS, wait_for_orphans_of
from tests.workflows.commands import command, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(6 * 3600)]

KILLS = int(os.environ.get("KILLS", "12"))
STEPS_PER_KILL = 80  # more than are taken between two kills, so that the run has not ended before the last
STEPS = KILLS * STEPS_PER_KILL
SETTINGS = (
    "--pretrain.steps", str(STEPS), "--pretrain.checkpoint_every", "20", "--pretrain.log_every", "20",
    "--cluster.restarts", "1000000",
)  # fmt: skip
COMMAND = ""  # the victim is the command itself
VICTIMS = {"ray::RayTrainWorker": 5, COMMAND: 2, "ray::TrainController": 1, "raylet/raylet": 1, "ray::_Board": 1}
START_SECONDS, END_SECONDS = 120.0, 300.0


def strike(process: subprocess.Popen, victim: str, rng: random.Random) -> bool:
    """Kill the command, or one of its processes of this name, once there is one: a restart may be going on.

    Return False if the command, which an earlier strike may end, has ended before.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):  # it ends just now
            if alive := living(process, victim):
                rng.choice(alive).kill()
                return True
        assert time.monotonic() < deadline, f"Ray has other names than {victim} for its processes"
        time.sleep(0.2)
    return False


def living(process: subprocess.Popen, victim: str) -> list[psutil.Process]:
    """Return the command, or its descendants of this name."""
    command, found = psutil.Process(process.pid), []
    if victim == COMMAND:
        return [command]
    for child in command.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if victim in "".join(child.cmdline()) else []
    return found


def go_on(home: Path, kills: list[str], rng: random.Random) -> tuple[int, str]:
    """Run the command, and kill parts of it as long as there are kills left; return its status and output."""
    arguments, settings = command(home, "pretrain", *SETTINGS)
    process, output, due = subprocess.Popen(arguments, **settings), "", rng.randrange(1, 4)
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            due -= bool(re.search(rf"step \d+/{STEPS}", line))
            if due > 0 or len(kills) >= KILLS:
                continue
            time.sleep(rng.uniform(0, 0.5))
            (victim,) = rng.choices(list(VICTIMS), list(VICTIMS.values()))
            if not strike(process, victim, rng):
                continue
            kills.append(victim)
            (home / "kills.json").write_text(json.dumps(kills))
            due = rng.randrange(1, 4)
            if victim == COMMAND:
                break
        return process.wait(END_SECONDS), output


def digest(home: Path) -> str:
    """SHA-256 of the trained model."""
    (output,) = home.glob("smallest/pretrain-*")
    marker = committed(str(output))
    assert marker is not None
    return marker.digest


def points(home: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point that MLflow has of the only run of the stage, by metric."""
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'edlm'")
    (stage,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'pretrain'")
    assert stage.info.status == "FINISHED"
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(stage.info.run_id, name))
        for name in stage.data.metrics
    }


def test_a_run_whose_parts_are_killed_at_random_ends_as_one_that_was_not(tmp_path):
    folder = Path(os.environ.get("KILLS_FOLDER") or tmp_path)
    whole, parts = folder / "whole", folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    run(whole, "pretrain", *SETTINGS)
    record = parts / "kills.json"
    kills = json.loads(record.read_text()) if record.exists() else []
    rng = random.Random(len(kills))
    status = -1
    while status != 0:
        before = len(kills)
        status, output = go_on(parts, kills, rng)
        wait_for_orphans_of(parts, but=AGENTS)
        assert status == 0 or len(kills) > before, output
    assert len(kills) == KILLS, "the run ended before the last kill"
    wait_for_orphans_of(parts)
    assert digest(parts) == digest(whole), "the weights differ"
    of_whole, of_parts = points(whole), points(parts)
    for name, values in of_whole.items():
        steps = [step for step, _ in of_parts[name]]
        assert steps == [step for step, _ in values], f"{name}: points are lost, or there twice"
        if is_repeatable(name):
            assert of_parts[name] == values
    (work,) = parts.glob("smallest/work/pretrain-*")
    assert not [path.name for path in work.iterdir() if path.name.startswith("step-") or path.name == "ray"]
