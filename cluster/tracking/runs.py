"""Runs of a pipeline in MLflow: one parent, and one child per stage."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.config import Tracking
from cluster.tracking.availability import availability
from cluster.tracking.connection import answered, answering, connect
from cluster.tracking.journal import history
from cluster.tracking.leftovers import last_status
from cluster.tracking.locations import database_file, tracking_uri
from cluster.tracking.parameters import parameters
from cluster.tracking.registry import Registry
from cluster.tracking.run_facts import RunFacts, facts_in_journal, facts_in_mlflow, provenance
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import RunTracker
from cluster.tracking.settlement import RunDeleted, experiment_named, find, settle
from edlm.config import ConfigurationError

REGISTRY_PATIENCE_SECONDS = 300.0  # a training of days does not end for a server that is started again


class Runs:
    """Runs of one MLflow experiment, with the model registry."""

    def __init__(self, tracking: Tracking, root: str, client: MlflowClient) -> None:
        self.tracking = tracking
        self.root = root
        self.client = client
        self.registry = Registry(client, REGISTRY_PATIENCE_SECONDS)

    def start(self, name: str, parent: RunRecord | None = None, tags: Mapping[str, str] | None = None) -> RunRecord:
        """Return the record of a new run, tagged with its provenance; MLflow learns of it from the run's journal."""
        all_tags = {**provenance(), **parameters(tags or {})}
        return RunRecord(name=name, experiment=self.tracking.experiment, tags=all_tags, parent=parent)

    def tracker(self, record: RunRecord, folder: Path) -> RunTracker:
        """Return a tracker of this run with its journal in `folder`."""
        return RunTracker(self.tracking, self.root, record, folder)

    def find(self, record: RunRecord) -> Run | None:
        """Return the run as MLflow has it; None if it has none. Raises ConfigurationError if no server answers."""
        with answering(self.client.tracking_uri):
            experiment = experiment_named(self.client, self.tracking, self.root, record.experiment)
            run = find(self.client, experiment, record)
            return None if run is None else self.client.get_run(run.info.run_id)

    def settled(self, record: RunRecord | None, name: str) -> str:
        """Return the id of the run in MLflow, where it is created if there is none.

        For a run that is not on record, or was deleted in MLflow, a new one of this name stands in. Raises
        ConfigurationError if no server answers, for minutes.
        """

        def settled() -> str:
            if record is not None:
                with suppress(RunDeleted):
                    return settle(self.client, self.tracking, self.root, record)
            run_id = settle(self.client, self.tracking, self.root, stand_in)
            self.client.set_terminated(run_id)
            return run_id

        stand_in = self.start(name)
        return answered(self.client.tracking_uri, REGISTRY_PATIENCE_SECONDS, settled)

    def facts(self, record: RunRecord, folder: Path) -> RunFacts | None:
        """Return what the journal in `folder` knows about the run, else what MLflow knows; None if neither does."""
        if (facts := facts_in_journal(folder)) is not None:
            return facts
        run = self._found(record)
        return None if run is None else facts_in_mlflow(run)

    def status(self, record: RunRecord, folder: Path) -> str | None:
        """Return the last status in the journal in `folder`, else the one in MLflow; None if neither has one."""
        if (status := last_status(folder)) is not None:
            return status
        run = self._found(record)
        return None if run is None else run.info.status

    def history(self, record: RunRecord, folder: Path) -> dict[str, dict[int, float]]:
        """Return the values of every metric by step, from the journal in `folder`, else from MLflow.

        Empty if neither has metrics of the run.
        """
        if metrics := history(folder):
            return metrics
        run = self._found(record)
        if run is None:
            return {}
        with answering(self.client.tracking_uri):
            histories = {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        return {name: {point.step: point.value for point in points} for name, points in histories.items()}

    def _found(self, record: RunRecord) -> Run | None:
        """Return the run as MLflow has it; None, with a warning, if no server answers: what asks for it goes on."""
        try:
            return self.find(record)
        except ConfigurationError as error:
            availability(self.client.tracking_uri, self.tracking.request_timeout_seconds).say("facts", "%s", error)
            return None


def open_tracking(tracking: Tracking, root: str) -> Runs:
    """Open the runs of the configured experiment, which is created if it does not exist.

    Raises ConfigurationError if no server answers, or if the experiment was deleted.
    """
    with answering(tracking_uri(tracking, root)):
        client = connect(tracking, root)
        experiment = experiment_named(client, tracking, root, tracking.experiment)
    if experiment.lifecycle_stage != "active":
        raise ConfigurationError(
            f"tracking.experiment: {tracking.experiment!r} was deleted in MLflow; restore it there or give another name"
        )
    return Runs(tracking, root, client)


def open_registry(tracking: Tracking, root: str) -> Registry:
    """Open the model registry, which may be empty; create nothing.

    Raises ConfigurationError if no server answers, or if there is no database.
    """
    file = database_file(tracking, root)
    if file is not None and not file.exists():
        raise ConfigurationError(
            f"no model is registered, for there is no database {file}; run `make run` first, or set "
            "EDLM_HOME to the folder that it wrote to"
        )
    with answering(tracking_uri(tracking, root)):
        return Registry(connect(tracking, root))
