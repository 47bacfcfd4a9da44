"""Stage runner: a session that runs stages on the cluster, each in an MLflow run, and reuses finished ones."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.runtime.ray_connection import connect
from cluster.tracking.parameters import redacted
from cluster.tracking.run_handle import RunHandle
from cluster.tracking.runs import Runs, RunTracker, open_tracking
from cluster.tracking.upload import ship
from edlm.checkpoints.training_state import newest_snapshot
from edlm.huggingface.source import HuggingFaceSource
from edlm.storage import committed, join, publish, write_text
from workflows.experiment import Experiment
from workflows.scratch import scratch
from workflows.stage import RUN_FILE, Session, StageContext, Work, given_uri, say, storage_root, user_errors
from workflows.stage_fingerprint import StageInputs, stage_inputs
from workflows.training.init_from_precheck import require_initial_models


@dataclass
class RunningSession(Session):
    """The state of a command that runs stages, with the cluster connected and its MLflow runs open."""

    runs: Runs
    parent: str | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    """One row per requested stage: its name, whether it was reused, its seconds and its output."""

    def run_stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        code: Sequence[str],
        work: Work,
        versions: Mapping[str, str] | None = None,
    ) -> str:
        started = time.monotonic()
        determined = stage_inputs(name, settings, inputs, code, versions)
        output = self.output_of(determined.folder)
        reused = committed(output) is not None
        if reused:
            say(name, f"reused, nothing it depends on has changed: {output}")
        else:
            say(name, "started")
            self._run(determined, inputs, work, output)
            say(name, f"finished in {time.monotonic() - started:.0f} s: {output}")
        seconds = round(time.monotonic() - started, 1)
        self._add(name, reused, seconds, output)
        return output

    def given(self, name: str, uri: str) -> str:
        uri = given_uri(name, uri)
        say(name, f"given: {redacted(uri)}")
        self._add(name, True, 0.0, uri)
        return uri

    def _add(self, name: str, reused: bool, seconds: float, output: str) -> None:
        self.stage_outputs[name] = output
        self.reports.append({"stage": name, "reused": reused, "seconds": seconds, "output": output})

    def run_of(self, output: str) -> str | None:
        """Return the MLflow run that made a stage's output; None if there is no record of it."""
        record = self.run_record(output.rpartition("/")[2])
        return None if record is None else record["run_id"]

    def tell_parent(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """Log the settings and the stages to the pipeline's own run, and end it with `status`."""
        assert self.parent is not None
        with tempfile.TemporaryDirectory(prefix="edlm-pipeline-") as scratch:
            tracker = self.runs.tracker(self.parent, Path(scratch))
            tracker.settings(self.experiment)
            if self.reports:
                tracker.table("stages.json", {key: [row[key] for row in self.reports] for key in self.reports[0]})
            tracker.finish(status)

    def _run(self, determined: StageInputs, inputs: Mapping[str, str], work: Work, output: str) -> None:
        name, workspace = determined.stage, self.workspace_of(determined.folder)
        run_id = self._run_id(determined, workspace)
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
                facts = work(StageContext(name, folder, workspace, journal, run_id, tracker, determined))
            except BaseException as error:
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                tracker().finish(status)
                raise
            publish(folder, output, facts={"stage": name, **(facts or {})})
            with _closing(tracker()) as run_tracker:
                run_tracker.tags({"edlm.output": output})
            tracker().finish("FINISHED")

    def _run_id(self, determined: StageInputs, workspace: str) -> str:
        """Return the MLflow run of this stage; an unfinished stage continues the run that it started."""
        name, record = determined.stage, join(workspace, RUN_FILE)
        if (begun := self.run_record(determined.folder)) is not None:
            self.runs.resume(begun["run_id"])
            # Only an intact checkpoint is resumed from; a grid reports itself which measurements it reuses.
            resumes = newest_snapshot(workspace) is not None
            say(name, "resumes from its last checkpoint" if resumes else "an earlier run of it did not finish")
            return begun["run_id"]
        run_id = self.runs.start(name, parent=self.parent, tags={"edlm.code": determined.code})
        # The inputs say later what has changed since this run (`workflows.dry_run`).
        write_text(record, json.dumps({"run_id": run_id, "ingredients": asdict(determined.public)}))
        return run_id

    def _journal(self, workspace: str, scratch: Path) -> Path:
        """Return the journal's path: next to local checkpoints, else on this machine for as long as the stage runs."""
        return scratch / "journal" if "://" in workspace else Path(workspace) / "journal"


@contextmanager
def open_session(experiment: Experiment, pipeline: str | None = None) -> Iterator[RunningSession]:
    """Open a session of this experiment; with `pipeline`, its stages are children of one MLflow run of that name.

    The errors that `user_errors` reports end the process.
    """
    with user_errors(), _session(experiment, pipeline) as session:
        yield session


@contextmanager
def _session(experiment: Experiment, pipeline: str | None) -> Iterator[RunningSession]:
    root = storage_root(experiment)
    require_initial_models(experiment, root)
    for network in (experiment.denoiser, experiment.autoregressive):
        if isinstance(network, HuggingFaceSource):
            network.allow_code()  # before a private Ray starts, whose processes inherit it
    runs = open_tracking(experiment.tracking, root)
    _ship_leftovers(experiment, root)
    with connect(experiment.cluster):
        if pipeline is None:
            yield RunningSession(experiment, root, runs)
            return
        parent = runs.start(pipeline)
        session = RunningSession(experiment, root, runs, parent)
        status: Literal["FINISHED", "FAILED"] = "FAILED"
        try:
            yield session
            status = "FINISHED"
        finally:
            session.tell_parent(status)


def _ship_leftovers(experiment: Experiment, root: str) -> None:
    """Send the tracking server what it missed while unreachable, as far as this machine's disk kept it."""
    work = Path(root) / experiment.name / "work"
    if "://" not in root and work.is_dir():
        ship(experiment.tracking, root, work)


@contextmanager
def _closing(tracker: RunTracker) -> Iterator[RunTracker]:
    try:
        yield tracker
    finally:
        tracker.close()
