"""One run, killed at random moments in all its parts, ends with the weights and metrics of one that was not.

KILLS=200 KILLS_FOLDER=/var/tmp/kills python -m pytest -m chaos tests/chaos/test_killed_at_random.py

A restart takes 10 to 30 seconds. With KILLS_FOLDER, a campaign that was interrupted goes on where it was.
"""

import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from edlm.storage import committed
from tests.chaos.disturbed_runs import COMMAND, CommandFolders, living, ray_folders, require_nothing_left
from tests.chaos.repeatable_metrics import is_repeatable
from tests.chaos.test_interrupted import AGENTS, wait_for_orphans_of
from tests.workflows.commands import command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(6 * 3600)]

KILLS = int(os.environ.get("KILLS", "12"))
STEPS_PER_KILL = 160  # more than are taken between two kills, so that the run has not ended before the last
STEPS = KILLS * STEPS_PER_KILL
SETTINGS = (
    "--pretrain.steps", str(STEPS), "--pretrain.checkpoint_every", "20", "--pretrain.log_every", "20",
    "--pretrain.batch", "1024",  # steps of 0.05 to 0.2 s: a training of faster ones would end before most kills
    "--cluster.restarts", "1000000",
)  # fmt: skip
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


@dataclass
class Campaign:
    """What was killed so far, which a campaign that is interrupted goes on with."""

    record: Path
    kills: list[str] = field(default_factory=list)
    ray_folders: list[str] = field(default_factory=list)
    """Of the commands' private Rays, as far as a kill showed them."""
    parts: int = 0
    """Runs of this test that it took."""

    @classmethod
    def resumed(cls, record: Path) -> "Campaign":
        return cls(record, **(json.loads(record.read_text()) if record.exists() else {}))

    def keep(self) -> None:
        self.record.write_text(json.dumps({k: v for k, v in vars(self).items() if k != "record"}))

    def remark(self) -> str:
        counts = ", ".join(f"{count} of {victim}" for victim, count in Counter(self.kills).most_common())
        return f"{len(self.kills)} kills: {counts}" + (f"; in {self.parts} parts" if self.parts > 1 else "")


def started(folders: CommandFolders) -> subprocess.Popen:
    arguments, settings = command(folders.home, "pretrain", *SETTINGS)
    settings["env"] |= folders.environment()
    return subprocess.Popen(arguments, **settings)


def go_on(folders: CommandFolders, campaign: Campaign, rng: random.Random) -> tuple[int, str]:
    """Run the command, and kill parts of it as long as there are kills left; return its status and output."""
    process, output, due = started(folders), "", rng.randrange(1, 4)
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            due -= bool(re.search(rf"step \d+/{STEPS}", line))
            if due > 0 or len(campaign.kills) >= KILLS:
                continue
            with suppress(psutil.NoSuchProcess):
                campaign.ray_folders = sorted({*campaign.ray_folders, *ray_folders(process)})
            time.sleep(rng.uniform(0, 0.5))
            (victim,) = rng.choices(list(VICTIMS), list(VICTIMS.values()))
            if not strike(process, victim, rng):
                continue
            campaign.kills.append(victim)
            campaign.keep()
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


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: sockets lie below it."""
    if given := os.environ.get("KILLS_FOLDER"):
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="k-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_a_run_whose_parts_are_killed_at_random_ends_as_one_that_was_not(folder, record_property):
    whole, parts = CommandFolders(folder / "whole"), CommandFolders(folder / "parts")
    with started(whole) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    campaign = Campaign.resumed(folder / "kills.json")
    campaign.parts += 1
    rng = random.Random(len(campaign.kills))
    status = -1
    while status != 0:
        before = len(campaign.kills)
        status, output = go_on(parts, campaign, rng)
        wait_for_orphans_of(parts.root, but=AGENTS)
        assert status == 0 or len(campaign.kills) > before, output
    print(f"\n{campaign.remark()}")
    record_property("remark", campaign.remark())
    assert len(campaign.kills) == KILLS, "the run ended before the last kill"
    wait_for_orphans_of(parts.root)
    assert digest(parts.home) == digest(whole.home), "the weights differ"
    of_whole, of_parts = points(whole.home), points(parts.home)
    for name, values in of_whole.items():
        steps = [step for step, _ in of_parts[name]]
        assert steps == [step for step, _ in values], f"{name}: points are lost, or there twice"
        if is_repeatable(name):
            assert of_parts[name] == values
    require_nothing_left(parts, whole)
    assert [folder for folder in campaign.ray_folders if Path(folder).exists()] == []
