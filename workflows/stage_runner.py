"""Stage runner: a session that runs stages on the cluster, each in an MLflow run, and reuses finished ones."""

import atexit
import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.runtime.garbage import freeze_imports
from cluster.runtime.ray_connection import connect
from cluster.tracking.journal_folder import journals_folder
from cluster.tracking.leftovers import LeftoverShipping, end_abandoned
from cluster.tracking.run_facts import RunFacts
from cluster.tracking.run_handle import RunHandle
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import RunTracker
from cluster.tracking.runs import Runs, open_tracking
from edlm.checkpoints.lease import leased
from edlm.checkpoints.training_state import newest_snapshot
from edlm.huggingface.source import HuggingFaceSource
from edlm.redaction import redacted
from edlm.storage import committed, discard, hand_over, join, remove_leftovers, write_text
from workflows.abandoned_stages import OUTPUT, end_abandoned_stages, end_held, end_if_abandoned
from workflows.experiment import Experiment
from workflows.stage import (
    INTERMEDIATE,
    RUN_FILE,
    Session,
    StageContext,
    Work,
    given_uri,
    say,
    storage_root,
    user_errors,
)
from workflows.stage_fingerprint import StageInputs, stage_inputs
from workflows.stage_scratch import stage_scratch
from workflows.storage_check import require_storage
from workflows.training.init_from_precheck import require_batches, require_initial_models

PIPELINES = "pipelines"  # folder of the journals of pipelines' own runs, beside those of stages


@dataclass
class RunningSession(Session):
    """The state of a command that runs stages, with the cluster connected and its MLflow runs open."""

    runs: Runs
    parent: RunRecord | None = None
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
            remove_leftovers(output)
            end_if_abandoned(self, self.runs, determined.folder)
            say(name, f"reused, nothing it depends on has changed: {output}")
        else:
            say(name, "started")
            self._run(determined, inputs, work, output)
            say(name, f"finished in {time.monotonic() - started:.0f} s: {output}")
        discard(join(self.workspace_of(determined.folder), INTERMEDIATE))
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

    def run_of(self, output: str) -> RunRecord | None:
        """Return the run that made a stage's output; None if there is no record of it."""
        record = self.run_record(_folder_of(output))
        return None if record is None else RunRecord.parse(record["run"])

    def facts_of(self, output: str) -> RunFacts | None:
        """Return the facts of the run that made a stage's output; None if they are not known."""
        run = self.run_of(output)
        return None if run is None else self.runs.facts(run, self.journal_of(_folder_of(output)))

    def history_of(self, output: str) -> dict[str, dict[int, float]]:
        """Return the metrics of the run that made a stage's output, by step; empty if they are not known."""
        run = self.run_of(output)
        return {} if run is None else self.runs.history(run, self.journal_of(_folder_of(output)))

    def tracker_of(self, output: str) -> RunTracker | None:
        """Return a tracker of the run that made a stage's output; None if there is no record of it."""
        run = self.run_of(output)
        return None if run is None else self.runs.tracker(run, self.journal_of(_folder_of(output)))

    def tell_parent(self, tracker: RunTracker) -> None:
        """Log the stages to the pipeline's own run."""
        if self.reports:
            tracker.table("stages.json", {key: [row[key] for row in self.reports] for key in self.reports[0]})

    def _run(self, determined: StageInputs, inputs: Mapping[str, str], work: Work, output: str) -> None:
        name, workspace = determined.stage, self.workspace_of(determined.folder)
        with leased(workspace) as lease, stage_scratch(output) as base:
            if committed(output) is not None:  # by another command, which had the lease
                end_held(self, self.runs, determined.folder)
                return
            run = self._record(determined, workspace)
            folder, journal = base / "output", self.journal_of(determined.folder)
            folder.mkdir()
            tracker = RunHandle(self.runs.tracking, self.runs.root, run, self.outputs, determined.folder)
            with _closing(tracker()) as run_tracker:
                run_tracker.begin()
                run_tracker.settings(self.experiment)
                for label, uri in inputs.items():
                    marker = committed(uri)
                    assert marker is not None
                    run_tracker.dataset(label, uri, marker.digest, context=name, facts=marker.facts)
            try:
                facts = work(StageContext(name, folder, workspace, journal, run.key, tracker, determined, lease))
            except BaseException as error:
                with _not_instead(name):
                    tracker().fail(error)
                raise
            lease.require()
            hand_over(folder, output, facts={"stage": name, **(facts or {})})
            with _closing(tracker()) as run_tracker:
                run_tracker.tags({OUTPUT: output})
            tracker().finish("FINISHED")

    def _record(self, determined: StageInputs, workspace: str) -> RunRecord:
        """Return the run of this stage; an unfinished stage continues the run that it started."""
        name = determined.stage
        if (begun := self.run_record(determined.folder)) is not None:
            run = RunRecord.parse(begun["run"])
            # Only an intact checkpoint is resumed from; a grid reports itself which measurements it reuses.
            resumes = newest_snapshot(workspace) is not None
            say(name, "resumes from its last checkpoint" if resumes else "an earlier run of it did not finish")
        else:
            run = self.runs.start(name, parent=self.parent, tags={"edlm.code": determined.code})
        # The inputs say later what has changed since this run (`workflows.dry_run`).
        recorded = {"run": asdict(run), "ingredients": asdict(determined.public)}
        if begun != recorded:
            write_text(join(workspace, RUN_FILE), json.dumps(recorded))
        return run


@contextmanager
def open_session(experiment: Experiment, pipeline: str | None = None) -> Iterator[RunningSession]:
    """Open a session of this experiment; with `pipeline`, its stages are children of one MLflow run of that name.

    The errors that `user_errors` reports end the process.
    """
    freeze_imports()
    atexit.register(gc.freeze)  # else Python walks at its end through all that libraries imported, for seconds
    with user_errors(), _session(experiment, pipeline) as session:
        yield session


@contextmanager
def _session(experiment: Experiment, pipeline: str | None) -> Iterator[RunningSession]:
    root = storage_root(experiment)
    require_batches(experiment)
    require_storage(root)
    require_initial_models(experiment, root)
    for network in (experiment.denoiser, experiment.autoregressive):
        if isinstance(network, HuggingFaceSource):
            network.allow_code()  # before a private Ray starts, whose processes inherit it
    runs = open_tracking(experiment.tracking, root)
    session = RunningSession(experiment, root, runs)
    with _shipping_leftovers(session) as journals, connect(experiment.cluster):
        if pipeline is None:
            yield session
            return
        parent = session.parent = runs.start(pipeline)
        tracker = runs.tracker(parent, journals / PIPELINES / parent.key)
        tracker.begin()
        tracker.settings(experiment)
        try:
            yield session
        except BaseException as error:
            with _not_instead(pipeline):
                session.tell_parent(tracker)
                tracker.fail(error)
            raise
        session.tell_parent(tracker)
        tracker.finish("FINISHED")


@contextmanager
def _shipping_leftovers(session: RunningSession) -> Iterator[Path]:
    """Send MLflow in the background what it missed, as far as this machine kept it, and yield the journals' folder.

    The runs of pipelines and stages that were killed are ended.
    """
    journals = journals_folder(session.outputs)
    end_abandoned(journals / PIPELINES)
    end_abandoned_stages(session, session.runs)
    leftovers = LeftoverShipping(session.runs.tracking, session.runs.root, journals)
    leftovers.start()
    try:
        yield journals
    finally:
        leftovers.stop()


@contextmanager
def _closing(tracker: RunTracker) -> Iterator[RunTracker]:
    try:
        yield tracker
    finally:
        tracker.close()


@contextmanager
def _not_instead(name: str) -> Iterator[None]:
    """Record a failure; that the disk does not take the record is said, and not raised instead of the failure."""
    try:
        yield
    except OSError as error:
        say(name, f"its run has no record of how it ended: {error}")


def _folder_of(output: str) -> str:
    return output.rpartition("/")[2]
