"""Stages: functions from settings and input URIs to an output URI, run once and then reused.

The fingerprint of a stage covers everything that determines its result (settings, the content of its inputs, the code
that computes it), not where it runs. Its output is committed by a marker written last: a finished stage is reused, an
unfinished one resumes from its last checkpoint, if it has one, and a changed setting reruns only the stages that depend
on it.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.runtime.session import connect
from cluster.tracking.run_handle import RunHandle
from cluster.tracking.runs import Runs, RunTracker, open_tracking
from cluster.tracking.upload import ship
from edlm.checkpoints.training_state import snapshots
from edlm.config import ConfigurationError
from edlm.storage import StorageError, committed, join, publish, read_text, write_text
from edlm.training.engine import NonFiniteLoss
from workflows.experiment import Experiment
from workflows.scratch import scratch
from workflows.source_digest import source_digest

FINGERPRINT_DIGITS = 12
RUN_FILE = "run.json"


class StageFailed(RuntimeError):
    """Failure of a stage, for a reason that the message explains to the user."""


@dataclass(frozen=True)
class StageContext:
    """The context of a stage's function: where it writes, where it keeps checkpoints, and its tracker."""

    stage: str
    folder: Path
    """Local and empty; its content at the end becomes the output."""
    workspace: str
    """URI that survives a crash, for checkpoints."""
    journal: Path
    run_id: str
    tracker: Callable[[], RunTracker]


@dataclass
class Session:
    """The state of one command: the experiment, its storage and its MLflow runs, with the cluster connected."""

    experiment: Experiment
    root: str
    runs: Runs
    parent: str | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    """One row per requested stage: its name, whether it was reused, its seconds and its output."""

    def run_stage(
        self,
        name: str,
        settings: Any,
        inputs: Mapping[str, str],
        code: Sequence[str],
        work: Callable[[StageContext], Mapping[str, Any] | None],
    ) -> str:
        """Return the URI of the stage's committed output; call `work` only if there is none.

        `settings` is anything that `plain` understands. `code` names the modules that compute the result: a change in
        them or in what they import from `FOLLOWED` (`source_digest`) reruns the stage, and no other code change does.
        The return value of `work` is kept in the marker as facts.
        """
        started = time.monotonic()
        source = source_digest(*code)
        output, workspace = self._places(name, fingerprint(name, settings, inputs, source))
        reused = committed(output) is not None
        if reused:
            say(name, f"reused, nothing it depends on has changed: {output}")
        else:
            say(name, "started")
            self._run(name, inputs, source, work, output, workspace)
            say(name, f"finished in {time.monotonic() - started:.0f} s: {output}")
        seconds = round(time.monotonic() - started, 1)
        self.reports.append({"stage": name, "reused": reused, "seconds": seconds, "output": output})
        return output

    def given(self, name: str, uri: str) -> str:
        """Return the URI of a model that another run has trained, in place of the stage's own output.

        Raise ConfigurationError unless a committed folder is there.
        """
        uri = uri if "://" in uri else str(Path(uri).expanduser().resolve())
        if committed(uri) is None:
            raise ConfigurationError(f"given: {name} in {uri} is not there, or is not finished; check the path")
        say(name, f"given: {uri}")
        self.reports.append({"stage": name, "reused": True, "seconds": 0.0, "output": uri})
        return uri

    def run_of(self, output: str) -> str | None:
        """Return the MLflow run that made a stage's output; None if there is no record of it."""
        folder = output.rpartition("/")[2]
        try:
            record = join(self.root, self.experiment.name, "work", folder, RUN_FILE)
            return json.loads(read_text(record))["run_id"]
        except FileNotFoundError:
            return None

    def tell_parent(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """Log the settings and the stages to the pipeline's own run, and end it with `status`."""
        assert self.parent is not None
        with tempfile.TemporaryDirectory(prefix="edlm-pipeline-") as scratch:
            tracker = self.runs.tracker(self.parent, Path(scratch))
            tracker.settings(self.experiment)
            if self.reports:
                tracker.table("stages.json", {key: [row[key] for row in self.reports] for key in self.reports[0]})
            tracker.finish(status)

    def _places(self, name: str, mark: str) -> tuple[str, str]:
        folder = f"{name}-{mark[:FINGERPRINT_DIGITS]}"
        return join(self.root, self.experiment.name, folder), join(self.root, self.experiment.name, "work", folder)

    def _run(self, name, inputs, source, work, output: str, workspace: str) -> None:
        run_id = self._run_id(name, workspace, source)
        with scratch(name) as base:
            folder, journal = base / "output", self._journal(workspace, base)
            folder.mkdir()
            tracker = RunHandle(self.runs.tracking, self.runs.root, run_id, journal)
            with _closing(tracker()) as run_tracker:
                run_tracker.settings(self.experiment)
                for label, uri in inputs.items():
                    marker = committed(uri)
                    assert marker is not None
                    run_tracker.dataset(label, uri, marker.digest, context=name, facts=marker.facts)
            try:
                facts = work(StageContext(name, folder, workspace, journal, run_id, tracker))
            except BaseException as error:
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                tracker().finish(status)
                raise
            publish(folder, output, facts={"stage": name, **(facts or {})})
            with _closing(tracker()) as run_tracker:
                run_tracker.tags({"edlm.output": output})
            tracker().finish("FINISHED")

    def _run_id(self, name: str, workspace: str, source: str) -> str:
        """Return the MLflow run of this stage; an unfinished stage continues the run that it started."""
        record = join(workspace, RUN_FILE)
        try:
            run_id = json.loads(read_text(record))["run_id"]
            self.runs.resume(run_id)
            # Only a checkpoint is resumed from; a grid reports itself which measurements it reuses.
            resumes = bool(snapshots(workspace))
            say(name, "resumes from its last checkpoint" if resumes else "an earlier run of it did not finish")
        except FileNotFoundError:
            run_id = self.runs.start(name, parent=self.parent, tags={"edlm.code": source})
            write_text(record, json.dumps({"run_id": run_id}))
        return run_id

    def _journal(self, workspace: str, scratch: Path) -> Path:
        """Return the journal's path: next to local checkpoints, else on this machine for as long as the stage runs."""
        return scratch / "journal" if "://" in workspace else Path(workspace) / "journal"


def fingerprint(name: str, settings: Any, inputs: Mapping[str, str], source: str) -> str:
    """Return the SHA-256 of what determines a stage's result; `source` is the digest of the code.

    Raise ConfigurationError unless all inputs are committed.
    """
    contents = {}
    for label, uri in inputs.items():
        marker = committed(uri)
        if marker is None:
            raise ConfigurationError(f"{name} needs {label} in {uri}, which is not finished; run that stage first")
        contents[label] = marker.digest
    facts = {"stage": name, "settings": settings, "inputs": contents, "code": source}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def session(experiment: Experiment, pipeline: str | None = None) -> Iterator[Session]:
    """Open a session of this experiment; with `pipeline`, its stages are children of one MLflow run of that name.

    The errors that `mistakes_told` reports end the process.
    """
    with mistakes_told(), _session(experiment, pipeline) as opened:
        yield opened


@contextmanager
def mistakes_told() -> Iterator[None]:
    """End the process with status 1 and the message of an error that a user can fix, in the settings or the storage.

    So do a training with a non-finite loss and a stage that failed in parts. Any other exception keeps its traceback.
    """
    try:
        yield
    except (ConfigurationError, StorageError, NonFiniteLoss, StageFailed) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


@contextmanager
def _session(experiment: Experiment, pipeline: str | None) -> Iterator[Session]:
    root = storage_root(experiment)
    runs = open_tracking(experiment.tracking, root)
    _ship_leftovers(experiment, root)
    with connect(experiment.cluster):
        if pipeline is None:
            yield Session(experiment, root, runs)
            return
        parent = runs.start(pipeline)
        opened = Session(experiment, root, runs, parent)
        status: Literal["FINISHED", "FAILED"] = "FAILED"
        try:
            yield opened
            status = "FINISHED"
        finally:
            opened.tell_parent(status)


def _ship_leftovers(experiment: Experiment, root: str) -> None:
    """Send the tracking server what it missed while unreachable, as far as this machine's disk kept it."""
    work = Path(root) / experiment.name / "work"
    if "://" not in root and work.is_dir():
        ship(experiment.tracking, root, work)


def storage_root(experiment: Experiment) -> str:
    """Return the absolute root of this experiment's outputs.

    Raise ConfigurationError in a Ray job without EDLM_HOME: the default would lie in the job's temporary copy.
    """
    root = experiment.storage or os.environ.get("EDLM_HOME")
    if root is None:
        project = Path(__file__).resolve().parent.parent
        if "working_dir_files" in project.parts:
            raise ConfigurationError(
                "a Ray job runs in a temporary copy of the project, where outputs would be lost: "
                "set EDLM_HOME before `ray start`, or give --storage"
            )
        root = str(project / "runs")
    return root if "://" in root else str(Path(root).expanduser().resolve())


def say(stage: str, message: str) -> None:
    """Print a progress line of a stage."""
    print(f"[{stage}] {message}", flush=True)


@contextmanager
def _closing(tracker: RunTracker) -> Iterator[RunTracker]:
    try:
        yield tracker
    finally:
        tracker.close()
