"""Runs of a pipeline in MLflow: one parent, one child per stage, and the metrics and artifacts of each."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.config import Tracking
from cluster.tracking.availability import availability
from cluster.tracking.connection import answered, answering, connect, database_file, tracking_uri
from cluster.tracking.journal import Journal, history
from cluster.tracking.journal_copy import JournalCopy, restore
from cluster.tracking.parameters import machine_settings, parameters
from cluster.tracking.registry import Registry
from cluster.tracking.run_facts import RunFacts, facts_in_journal, facts_in_mlflow, provenance
from cluster.tracking.run_record import RunRecord
from cluster.tracking.settlement import RunDeleted, experiment_named, find, settle
from cluster.tracking.upload import JournalUpload, Shipping
from edlm.config import ConfigurationError, plain
from edlm.redaction import redacted, redacted_text

DOTS_PER_INCH = 150
LAST_FAILURE = "edlm.last_failure"  # tag of a run, which stays when the run is resumed
SHORTEST_PATIENCE_SECONDS = 1.0  # for the last request to a server that did not answer the one before
REGISTRY_PATIENCE_SECONDS = 300.0  # a training of days does not end for a server that is started again
_METRIC = re.compile(r"[\w.\- :/]{1,250}")
log = logging.getLogger(__name__)


class RunTracker:
    """Tracker of one run for any process: it is built from plain data, and the server may be unavailable.

    Everything goes to a journal in `folder` first, and background threads send it on: one the records, and another one
    the files, for which no record waits. So no call waits for a server or fails because of one, and entries that could
    not be sent stay in the journal for `cluster.tracking.upload.ship`. A step that is repeated after a restart is not
    sent again. Only one process at a time may use a `folder`. With `copy`, a URI, the metrics that are there come into
    the journal, and `secure` adds to them.
    """

    def __init__(self, tracking: Tracking, root: str, record: RunRecord, folder: Path, copy: str | None = None) -> None:
        self._journal = Journal(folder, record)
        if copy is not None:
            restore(copy, self._journal)
        self._copy = None if copy is None else JournalCopy(folder, copy)
        self._patience_seconds = 2 * tracking.request_timeout_seconds + 1
        self._server = availability(tracking_uri(tracking, root), tracking.request_timeout_seconds)
        self._upload = JournalUpload(tracking, root, folder, record)
        ships = (self._upload.ship_records, self._upload.ship_files)
        self._shipping = [Shipping(ship, folder, self._server) for ship in ships]
        for thread in self._shipping:
            thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; values may be NaN or infinite. Raises ValueError for an invalid name."""
        for name in metrics:
            if not _METRIC.fullmatch(name):
                raise ValueError(f"metric {name!r}: MLflow takes letters, digits, and `_-. :/`, at most 250 of them")
        self._journal.append("metrics", step=step, values={name: float(value) for name, value in metrics.items()})

    def secure(self) -> None:
        """Make all metrics so far outlive this machine; from any thread.

        Raises what the store's client raises, and can be repeated.
        """
        if self._copy is not None:
            self._copy.save()

    def settings(self, config: Any) -> None:
        """Record the configuration, without secrets: as `config.yaml`, and as parameters.

        Settings of the machines are tags, which may change when a run is resumed, as parameters in MLflow may not.
        """
        tree = plain(config)
        machines, rest = machine_settings(tree)
        self._journal.append("parameters", values=parameters(rest))
        self.tags({f"edlm.{name}": value for name, value in parameters(machines).items()})
        self.text("config.yaml", yaml.safe_dump(redacted(tree), sort_keys=False, allow_unicode=True))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags of the run, without secrets."""
        self._journal.append("tags", values=parameters(values))

    def dataset(self, name: str, uri: str, digest: str, context: str, facts: Mapping[str, pydantic.JsonValue]) -> None:
        """Record data as an input of the run: its URI, its digest, and the context in which it was used."""
        self._journal.append(
            "dataset", name=name, uri=redacted(uri), digest=digest, context=context, facts=redacted(dict(facts))
        )

    def table(self, name: str, columns: Mapping[str, Sequence[pydantic.JsonValue]]) -> None:
        """Record a table, shown by MLflow as `name` (`*.json`). Raises ValueError if columns differ in length."""
        if not name.endswith(".json") or len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"table {name!r}: give it a name in .json and columns of one length")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self._file(name, json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False), table=True)

    def text(self, name: str, content: str) -> None:
        """Record a text file `name` with this content."""
        self._file(name, content, table=False)

    def figure(self, name: str, figure: Figure) -> None:
        """Record a figure as the image `name` (`*.png`)."""
        figure.savefig(self._journal.place(name), dpi=DOTS_PER_INCH)
        self._journal.append("file", name=name, table=False)

    def picture(self, name: str, png: bytes) -> None:
        """Record an encoded image as `name` (`*.png`)."""
        self._journal.place(name).write_bytes(png)
        self._journal.append("file", name=name, table=False)

    def begin(self) -> None:
        """Record that the run is active, for the first time or again."""
        self._journal.append("status", value="RUNNING")

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Record the end of the run with its status, and close the tracker."""
        self._journal.append("status", value=status)
        self.close()

    def fail(self, error: BaseException) -> None:
        """Record that an error ended the run, with its first line as the tag `edlm.last_failure`; close the tracker.

        The run is FAILED, or KILLED if the error is no Exception but an exit or an interrupt.
        """
        cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")
        self.tags({LAST_FAILURE: redacted_text(cause)})
        self.finish("FAILED" if isinstance(error, Exception) else "KILLED")

    def close(self) -> None:
        """Write everything to disk, and to MLflow if it answers in time; else warn where the remainder is."""
        self._journal.close()
        patience = self._patience_seconds if self._server.answers else SHORTEST_PATIENCE_SECONDS
        deadline = time.monotonic() + patience
        for thread in self._shipping:
            thread.stop()
        for thread in self._shipping:
            thread.join(max(0.0, deadline - time.monotonic()))
        if unsent := self._upload.unsent_bytes:
            message = "MLflow has not received the last %d bytes of %s; a later command ships them"
            self._server.say("unsent", message, unsent, self._journal.folder)

    def _file(self, name: str, content: str, table: bool) -> None:
        self._journal.place(name).write_text(content, encoding="utf-8")
        self._journal.append("file", name=name, table=table)


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
            f"no model is registered, for there is no database {file}; run `make run` first, or name with EDLM_HOME or "
            "--storage the folder that it wrote to"
        )
    with answering(tracking_uri(tracking, root)):
        return Registry(connect(tracking, root))
