"""A chain of stages, killed in the middle of a save, of an upload and of a hand-over, ends as one that was not.

python -m pytest -m chaos tests/chaos/test_killed_at_moments.py

Once with its storage in a folder, once in an S3 store: every request goes through a proxy, which kills while the client
waits for the answer.
"""

import random
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from edlm.checkpoints.snapshot_manifest import MANIFEST
from edlm.file_systems import file_system
from edlm.storage import MARKER, committed
from tests.chaos.disturbed_runs import COMMAND, CommandFolders, living, names, ray_folders, require_nothing_left
from tests.chaos.test_interrupted import AGENTS, wait_for_orphans_of
from tests.chaos.tracked_runs import TrackedRun, require_same_points, tracked
from tests.faulty_proxy import FaultyProxy, ProxyFault
from tests.s3_server import BUCKET, environment, moto_server
from tests.workflows.commands import command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

EXPERIMENT = """
name: struck
data:
  corpus: {kind: embedded}
  tokenizer: {kind: characters}
  length: 16
  shares: {validation: 0.1, judge: 0.2}
denoiser: {width: 16, layers: 1, heads: 2}
# More saves than are struck: after the death of the command its workers train on for a moment.
pretrain: {steps: 120, batch: 8, checkpoint_every: 5, log_every: 10}
finetune:
  - name: step
    energy: {kind: step, block: 8, width: 16, layers: 1, heads: 2}
    training: {steps: 20, batch: 8, checkpoint_every: 10}
register: {model: struck, energy: step, sampler: {steps: 4, candidates: 2}}
cluster: {workers: 2, cpus_per_worker: 0.5, restarts: 100}
"""
WORKER, RAYLET = "ray::RayTrainWorker", "raylet/raylet"
SAVE, UPLOAD, ARTIFACT, HAND_OVER = "in mid-save", "in mid-upload", "in an artifact's upload", "between stages"
IN_A_FOLDER = {
    SAVE: (WORKER, COMMAND, WORKER, COMMAND, WORKER),
    HAND_OVER: (COMMAND, RAYLET, COMMAND),
}
IN_A_STORE = {
    SAVE: (COMMAND, WORKER, COMMAND, WORKER, COMMAND),
    UPLOAD: (COMMAND,) * 5,  # of a stage's output, after the workers have ended
    ARTIFACT: (COMMAND, COMMAND),
    HAND_OVER: (RAYLET, COMMAND, COMMAND),
}
OF_A_SAVE = re.compile(r"work/([\w-]+/step-\d+)-\w+/")
OF_AN_ARTIFACT = re.compile(r"/artifacts/(.+)")
OF_AN_OUTPUT = re.compile(r"/struck/(?!work/)([\w-]+/[\w.-]+)$")
ENDS_SECONDS = 900.0


@dataclass
class Striker:
    """It kills a part of the command at each moment of a kind, once at each place, while there are victims left."""

    victims: dict[str, list[str]]
    process: subprocess.Popen | None = None
    kills: list[tuple[str, str]] = field(default_factory=list)
    struck: set[tuple[str, str]] = field(default_factory=set)
    ray_folders: set[str] = field(default_factory=set)

    def strike(self, moment: str, place: str, still: Callable[[], bool] = lambda: True) -> bool:
        """Kill the next victim of this moment, if it is there; count it if `still` holds then. Return whether."""
        process, left = self.process, self.victims.get(moment)
        if process is None or process.poll() is not None or not left or (moment, place) in self.struck:
            return False
        with suppress(psutil.NoSuchProcess):  # it ends just now
            self.ray_folders |= ray_folders(process)
            alive = living(process, left[0])
            if not alive:
                return False
            random.Random(place).choice(alive).kill()
            self.struck.add((moment, place))
            if still():
                self.kills.append((moment, left.pop(0)))
                return True
        return False


class InAFolder:
    """Storage in a folder, watched for step folders without a manifest, and for the markers of stages."""

    victims = IN_A_FOLDER

    def __init__(self, folder: Path) -> None:
        self.whole, self.parts = CommandFolders(folder / "whole"), CommandFolders(folder / "parts")
        self.striker = Striker({})
        self._done = threading.Event()

    def __enter__(self) -> "InAFolder":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def settings(self, folders: CommandFolders) -> tuple[list[str], dict[str, str]]:
        return [], folders.environment()

    def outputs(self, folders: CommandFolders) -> str:
        return str(folders.home / "struck")

    def objects(self, folders: CommandFolders) -> set[str]:
        return set()  # in the home folder, which is looked at anyway

    def _watch(self) -> None:
        outputs = self.parts.home / "struck"
        while not self._done.wait(0.001):
            for step in outputs.glob("work/*/step-*"):
                manifest = step / MANIFEST
                if not manifest.exists():
                    place = f"{step.parent.name}/{step.name.rpartition('-')[0]}"
                    self.striker.strike(SAVE, place, lambda m=manifest: not m.exists())
            for marker in outputs.glob(f"*/{MARKER}"):
                self.striker.strike(HAND_OVER, marker.parent.name)


class InAStore:
    """Storage in an S3 store, behind a proxy that kills before a request reaches the store, or before its answer."""

    victims = IN_A_STORE

    def __init__(self, folder: Path) -> None:
        self.whole, self.parts = CommandFolders(folder / "whole"), CommandFolders(folder / "parts")
        self.striker = Striker({})
        self._server, self._committed = moto_server(folder), ""

    def __enter__(self) -> "InAStore":
        self._proxy = FaultyProxy(self._server.__enter__().endpoint).__enter__()
        self._proxy.fault = self._fault
        return self

    def __exit__(self, *error: object) -> None:
        self._proxy.__exit__(*error)
        self._server.__exit__(None, None, None)

    def settings(self, folders: CommandFolders) -> tuple[list[str], dict[str, str]]:
        tracking = f"sqlite:///{folders.home}/mlflow.db"
        variables = {**folders.environment(), **environment(self._proxy.uri)}
        return ["--storage", f"s3://{BUCKET}/{folders.root.name}", "--tracking.uri", tracking], variables

    def outputs(self, folders: CommandFolders) -> str:
        return f"s3://{BUCKET}/{folders.root.name}/struck"

    def objects(self, folders: CommandFolders) -> set[str]:
        system, root = file_system(f"s3://{BUCKET}/{folders.root.name}")
        return names(path.removeprefix(f"{root}/") for path in system.find(root))

    def _fault(self, method: str, path: str, _size: int) -> ProxyFault | None:
        path = path.partition("?")[0]
        if self._committed:  # by the request before this one, whatever this one is
            stage, self._committed = self._committed, ""
            struck = self.striker.strike(HAND_OVER, stage)
        elif method != "PUT":
            return None
        elif (output := OF_AN_OUTPUT.search(path)) is not None and path.endswith(f"/{MARKER}"):
            self._committed = output[1].partition("/")[0]
            return None
        elif output is not None:
            struck = self.striker.strike(UPLOAD, output[1])
        elif (artifact := OF_AN_ARTIFACT.search(path)) is not None:
            struck = self.striker.strike(ARTIFACT, artifact[1])
        else:
            save = OF_A_SAVE.search(path)
            struck = save is not None and self.striker.strike(SAVE, save[1])
        if not struck:
            return None
        # One request in two reaches the store, and its answer no process.
        return ProxyFault(lost=True) if len(self.striker.kills) % 2 else ProxyFault(status=500)


@pytest.fixture(params=[InAFolder, InAStore])
def site(request) -> Iterator[InAFolder | InAStore]:
    folder = Path(tempfile.mkdtemp(prefix="k-", dir="/tmp"))  # short: sockets lie below it
    (folder / "struck.yaml").write_text(EXPERIMENT)
    try:
        with request.param(folder) as site:
            yield site
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def launch(site: InAFolder | InAStore, folders: CommandFolders) -> tuple[int, str]:
    """Run the chain of stages to its end, or to the death of its command; return its status and output."""
    flags, variables = site.settings(folders)
    arguments, settings = command(folders.home, "register", *flags, experiment=folders.root.parent / "struck.yaml")
    settings["env"] |= variables
    with subprocess.Popen(arguments, **settings) as process:
        site.striker.process = process
        killer = threading.Timer(ENDS_SECONDS, process.kill)
        killer.start()
        assert process.stdout is not None
        output = process.stdout.read()
        killer.cancel()
        return process.wait(), output


def digests(site: InAFolder | InAStore, folders: CommandFolders, runs: dict[str, TrackedRun]) -> dict[str, str]:
    """SHA-256 of the output of every stage, by its folder."""
    outputs = site.outputs(folders)
    system, root = file_system(outputs)
    found = [path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False)]
    markers = {name: committed(f"{outputs}/{name}") for name in found if name.rpartition("-")[0] in runs}
    return {name: marker.digest for name, marker in markers.items() if marker is not None}


def stages(folders: CommandFolders) -> dict[str, TrackedRun]:
    """The runs of the stages in MLflow; that of each command, which is another one, is not among them."""
    runs = [run for run in tracked(f"sqlite:///{folders.home}/mlflow.db", "edlm") if run.name != "struck"]
    assert len({run.name for run in runs}) == len(runs), "a run is there twice"
    return {run.name: run for run in runs}


def test_killed_at_each_of_its_moments_it_ends_as_one_that_was_not(site, record_property):
    status, output = launch(site, site.whole)
    assert status == 0, output
    site.striker.victims |= {moment: list(victims) for moment, victims in site.victims.items()}
    launches, status = 0, -1
    while status != 0:
        before = len(site.striker.kills)
        status, output = launch(site, site.parts)
        launches += 1
        wait_for_orphans_of(site.parts.home, but=AGENTS)
        assert status == 0 or len(site.striker.kills) > before, output
    wait_for_orphans_of(site.parts.home)
    counts = Counter(site.striker.kills)
    listed = ", ".join(f"{count} of {victim} {moment}" for (moment, victim), count in sorted(counts.items()))
    remark = f"{type(site).__name__}: {len(site.striker.kills)} kills ({listed}), {launches} launches"
    print(f"\n{remark}")
    record_property("remark", remark)
    assert counts == Counter((moment, one) for moment, victims in site.victims.items() for one in victims)

    expected, actual = stages(site.whole), stages(site.parts)
    assert digests(site, site.parts, actual) == digests(site, site.whole, expected), "weights differ"
    for name, run in expected.items():
        require_same_points(actual[name].metrics, run.metrics)
    assert {name: run.status for name, run in actual.items()} == dict.fromkeys(expected, "FINISHED")
    assert site.objects(site.parts) - site.objects(site.whole) == set()
    require_nothing_left(site.parts, site.whole)
    assert [folder for folder in sorted(site.striker.ray_folders) if Path(folder).exists()] == []
