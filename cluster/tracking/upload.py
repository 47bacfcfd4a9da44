"""Upload of a journal to MLflow: every entry is sent once, in order, despite any server outages."""

import json
import logging
import threading
from collections.abc import Iterable
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster.config import Tracking
from cluster.tracking.connection import UNANSWERED, answering, connect, first_line, tracking_uri
from cluster.tracking.journal import ENTRIES, FILES, read, run_of
from edlm.storage import read_text, write_text

BATCH = 1000  # metrics per request; MLflow's limit
SMALL_BATCH = 100  # parameters or tags per request; MLflow's limit
DIGEST = 36  # characters of a dataset's digest that MLflow keeps
MARK = "shipped_bytes"  # file with the number of journal bytes that MLflow has
INTERVAL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
log = logging.getLogger(__name__)


class Shipper:
    """Sender of the journal entries in `folder` that MLflow does not have yet.

    A point is a metric at a step, with the first value that the journal has for it. Points carry the journal's time, so
    that a batch that arrived although its response was lost is the same to the database, and stays one point.
    """

    def __init__(self, client: MlflowClient, folder: Path, run_id: str) -> None:
        self.client = client
        self.folder = folder
        self.run_id = run_id
        self._mark = str(folder / MARK)
        self.shipped_bytes = int(read_text(self._mark)) if (folder / MARK).exists() else 0
        self._known: set[tuple[str, int]] | None = None  # points that MLflow has; None: not queried yet

    def ship(self) -> None:
        """Send every complete entry. Raises MlflowException or OSError at the first that MLflow does not accept."""
        while entries := list(islice(read(self.folder, self.shipped_bytes), BATCH)):
            metrics = list(takewhile(lambda entry: entry[0].get("kind") == "metrics", entries))
            if metrics:
                self._send_metrics([entry for entry, _ in metrics])
            else:
                self._send(entries[0][0])
            self.shipped_bytes = (metrics or entries[:1])[-1][1]
            write_text(self._mark, str(self.shipped_bytes))

    def _send_metrics(self, entries: list[dict[str, Any]]) -> None:
        if self._known is None:
            self._known = {(name, step) for name, values in points(self.client, self.run_id).items() for step in values}
        new: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            for name, value in entry["values"].items():
                point = (name, entry["step"])
                if point not in self._known:
                    new.setdefault(point, Metric(name, value, entry["time"], entry["step"]))
        for batch in _batches(list(new.items()), BATCH):
            self.client.log_batch(self.run_id, metrics=[metric for _, metric in batch])
            self._known.update(point for point, _ in batch)

    def _send(self, entry: dict[str, Any]) -> None:
        try:
            match entry:
                case {"run": _}:
                    pass
                case {"kind": "parameters", "values": values}:
                    self._send_parameters(values)
                case {"kind": "tags", "values": values}:
                    for batch in _batches(list(values.items()), SMALL_BATCH):
                        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in batch])
                case {"kind": "file", "name": name, "table": table}:
                    self._send_file(name, table)
                case {"kind": "dataset"}:
                    self._send_dataset(entry)
                case {"kind": "status", "value": status, "time": milliseconds}:
                    self.client.set_terminated(self.run_id, status, end_time=milliseconds)
                case _:
                    raise AssertionError(f"no such entry: {entry}")
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            # It would always be rejected: later entries must not wait for it.
            log.warning("MLflow rejected %s of run %s: %s", entry.get("kind"), self.run_id, error.message)

    def _send_parameters(self, values: dict[str, str]) -> None:
        existing = self.client.get_run(self.run_id).data.params
        for key in sorted(key for key in values if key in existing and existing[key] != values[key]):
            log.warning("run %s keeps parameter %s = %s, now %s", self.run_id, key, existing[key], values[key])
        for batch in _batches([item for item in values.items() if item[0] not in existing], SMALL_BATCH):
            self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in batch])

    def _send_file(self, name: str, table: bool) -> None:
        parent = str(PurePosixPath(name).parent)
        self.client.log_artifact(self.run_id, str(self.folder / FILES / name), None if parent == "." else parent)
        if table:  # as MlflowClient.log_table does; that call itself would append the rows again at every replay
            tables = json.loads(self.client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
            if {"path": name, "type": "table"} not in tables:
                tables.append({"path": name, "type": "table"})
                self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _send_dataset(self, entry: dict[str, Any]) -> None:
        scheme, separator, _ = entry["uri"].partition("://")
        dataset = Dataset(
            name=entry["name"],
            digest=entry["digest"][:DIGEST],
            source_type=scheme if separator and scheme != "file" else "local",
            source=json.dumps({"uri": entry["uri"]}),
            profile=json.dumps({**entry["facts"], "sha256": entry["digest"]}),
        )
        context = InputTag(key="mlflow.data.context", value=entry["context"])
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=dataset, tags=[context])])


class Shipping(threading.Thread):
    """Background thread that ships a journal until it is stopped; a server outage delays no other thread."""

    def __init__(self, tracking: Tracking, root: str, folder: Path, run_id: str) -> None:
        super().__init__(name=f"shipping-{run_id[:8]}", daemon=True)
        self._tracking, self._root = tracking, root
        self._folder, self._run_id = folder, run_id
        self._shipper: Shipper | None = None
        self._stopping = threading.Event()
        self._answered = True
        self._unexpected: type[Exception] | None = None  # kind of the last error that was no outage

    def run(self) -> None:
        pause = INTERVAL_SECONDS
        while not self._stopping.wait(pause):
            pause = INTERVAL_SECONDS if self._attempt() else min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._attempt()

    def stop(self, timeout_seconds: float) -> int:
        """Stop after a last attempt, or the timeout; return the number of journal bytes that MLflow has accepted."""
        self._stopping.set()
        self.join(timeout_seconds)
        return self._shipper.shipped_bytes if self._shipper else 0

    def _attempt(self) -> bool:
        try:
            # Not in the constructor: connecting may wait for a server, or for the tables of a database.
            if self._shipper is None:
                self._shipper = Shipper(connect(self._tracking, self._root), self._folder, self._run_id)
            self._shipper.ship()
        except UNANSWERED as error:
            if self._answered:  # one line per outage
                log.warning("MLflow does not answer; the journal is kept and sent later (%s)", first_line(error))
            self._answered = False
        except Exception as error:  # the journal is kept: training goes on, and a later attempt or `ship` sends it
            if type(error) is not self._unexpected:  # one traceback per kind of error
                log.exception("the journal in %s cannot be sent to MLflow; trying again", self._folder)
            self._answered, self._unexpected = False, type(error)
        else:
            self._answered, self._unexpected = True, None
        return self._answered


def ship(tracking: Tracking, root: str, folder: Path) -> int:
    """Send the journals in and below `folder` to MLflow; return the number of journals sent.

    A run that was deleted in MLflow causes a warning. Raises ConfigurationError if no server answers; nothing is lost
    then, and the call can be repeated.
    """
    count = 0
    uri = tracking_uri(tracking, root)
    for path in sorted(folder.rglob(ENTRIES)):
        run_id = run_of(path.parent)
        if run_id is None:
            continue
        try:
            with answering(uri):
                Shipper(connect(tracking, root), path.parent, run_id).ship()
            count += 1
        except MlflowException as error:
            log.warning("MLflow rejected the journal in %s: %s", path.parent, first_line(error))
    return count


def points(client: MlflowClient, run_id: str) -> dict[str, dict[int, float]]:
    """Return the values of every metric that MLflow has of a run, by step."""
    names = client.get_run(run_id).data.metrics
    return {name: {point.step: point.value for point in client.get_metric_history(run_id, name)} for name in names}


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
