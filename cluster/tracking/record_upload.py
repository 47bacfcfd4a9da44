"""Upload of a journal's records to MLflow: parameters, tags, metrics, data sets and the status, in their order."""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster.tracking.availability import first_line
from cluster.tracking.connection import refusal
from cluster.tracking.journal import Entry, lines
from cluster.tracking.settlement import RunDeleted
from cluster.tracking.shipping_mark import RECORDS_MARK, ShippingMark

BATCH = 1000  # metrics per request; MLflow's limit
SMALL_BATCH = 100  # parameters or tags per request; MLflow's limit
DIGEST = 36  # characters of a dataset's digest that MLflow keeps
NAMED = 3  # refused values that a line names; the others are counted
TOO_LARGE_OR_INVALID = (400, 413)
log = logging.getLogger(__name__)

T = TypeVar("T")


class RecordUpload:
    """Sender of the records in the journal in `folder` that MLflow does not have yet.

    A point is a metric at a step, with the first value that the journal has for it. Points carry the journal's time, so
    that a batch that arrived although its response was lost is the same to the database, and stays one point. What
    MLflow refuses for its size or content is named once and passed over; it stays in the journal.
    """

    def __init__(self, client: MlflowClient, folder: Path, run_id: str, at_end: Callable[[], Any]) -> None:
        """Send to the run `run_id`, and call `at_end` before it ends there."""
        self.client = client
        self.folder = folder
        self.run_id = run_id
        self._at_end = at_end
        self.mark = ShippingMark(folder, RECORDS_MARK)
        self._known: set[tuple[str, int]] | None = None  # points that MLflow has; None: not queried yet
        self._latest: dict[str, int] = {}  # of each metric of them, the last step

    def ship(self) -> None:
        """Send every complete entry. Raises MlflowException or OSError at the first that MLflow does not answer."""
        while taken := list(islice(lines(self.folder, self.mark.position), BATCH)):
            metrics: list[Entry] = []
            damaged = 0
            for entry, stop in taken:
                if entry is None:
                    damaged += 1
                elif entry["kind"] == "metrics":
                    metrics.append(entry)
                elif entry["kind"] not in ("run", "file"):
                    self._send_metrics(metrics)
                    metrics = []
                    self._send(entry)
                    self.mark.move(stop)
            self._send_metrics(metrics)
            if damaged:
                log.warning("%s: %d damaged lines are passed over, and those around them sent", self.folder, damaged)
            self.mark.move(taken[-1][1])

    def _send_metrics(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        if self._known is None:
            self._known = self._sent_points()
            self._latest = _latest(self._known)
        self._learn(self._known, self._points_of_others())
        known, new = self._known, dict[tuple[str, int], Metric]()
        for entry in entries:
            for name, value in entry["values"].items():
                point = (name, entry["step"])
                if point not in known:
                    new.setdefault(point, Metric(name, value, entry["time"], entry["step"]))

        def send(batch: list[tuple[tuple[str, int], Metric]]) -> None:
            try:
                self.client.log_batch(self.run_id, metrics=[metric for _, metric in batch])
            except Exception:
                self._known = None  # this machine may be cut off, and another one send for the run meanwhile
                raise
            self._learn(known, [point for point, _ in batch])

        self._in_batches(list(new.items()), BATCH, send, lambda item: f"{item[0][0]} of step {item[0][1]}")

    def _sent_points(self) -> set[tuple[str, int]]:
        """Return the points of the journal before the mark."""
        known: set[tuple[str, int]] = set()
        for entry, stop in lines(self.folder) if self.mark.position else ():
            if stop > self.mark.position:
                break
            if entry is not None and entry["kind"] == "metrics":
                known.update((name, entry["step"]) for name in entry["values"])
        return known

    def _points_of_others(self) -> set[tuple[str, int]]:
        """Return the points that MLflow has of metrics that go further there than the known points do.

        They were sent from another journal of this run: that of a machine that was cut off, for example, which sends
        what it has once it is back, before it learns that the training goes on elsewhere.
        """
        found: set[tuple[str, int]] = set()
        for metric in self.client.get_run(self.run_id).data.to_proto().metrics:
            if metric.step > self._latest.get(metric.key, -1):
                found.update((metric.key, point.step) for point in self._history(metric.key))
        return found

    def _learn(self, known: set[tuple[str, int]], points: Collection[tuple[str, int]]) -> None:
        known.update(points)
        for name, step in _latest(points).items():
            self._latest[name] = max(step, self._latest.get(name, step))

    def _history(self, name: str) -> list[Metric]:
        return self.client.get_metric_history(self.run_id, name)

    def _send(self, entry: Entry) -> None:
        match entry:
            case {"kind": "parameters", "values": values}:
                existing = self.client.get_run(self.run_id).data.params
                for key in sorted(key for key in values if key in existing and existing[key] != values[key]):
                    log.warning("run %s keeps parameter %s = %s, now %s", self.run_id, key, existing[key], values[key])
                new = [Param(key, value) for key, value in values.items() if key not in existing]
                self._in_batches(new, SMALL_BATCH, lambda batch: self.client.log_batch(self.run_id, params=batch), _key)
            case {"kind": "tags", "values": values}:
                tags = [RunTag(key, value) for key, value in values.items()]
                self._in_batches(tags, SMALL_BATCH, lambda batch: self.client.log_batch(self.run_id, tags=batch), _key)
            case {"kind": "dataset"}:
                self._send_dataset(entry)
            case {"kind": "status", "value": "RUNNING"}:
                self.client.update_run(self.run_id, status="RUNNING")
            case {"kind": "status", "value": status, "time": milliseconds}:
                self._at_end()
                self.client.set_terminated(self.run_id, status, end_time=milliseconds)
            case _:
                raise AssertionError(f"no such entry: {entry}")

    def _send_dataset(self, entry: Entry) -> None:
        scheme, separator, _ = entry["uri"].partition("://")
        dataset = Dataset(
            name=entry["name"],
            digest=entry["digest"][:DIGEST],
            source_type=scheme if separator and scheme != "file" else "local",
            source=json.dumps({"uri": entry["uri"]}),
            profile=json.dumps({**entry["facts"], "sha256": entry["digest"]}),
        )
        context = InputTag(key="mlflow.data.context", value=entry["context"])
        try:
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=dataset, tags=[context])])
        except MlflowException as error:
            if refusal(error) is None or _is_gone(error):
                raise
            self._require_active()
            self._pass_over([f"the data set {entry['name']}"], error)

    def _in_batches(self, items: list[T], size: int, send: Callable[[list[T]], Any], name: Callable[[T], str]) -> None:
        """Send the items, in halves where a batch is refused for its size or content, and name those left over."""
        refused: list[str] = []
        cause: MlflowException | None = None
        batches = [items[start : start + size] for start in range(0, len(items), size)][::-1]
        while batches:
            batch = batches.pop()
            try:
                send(batch)
            except MlflowException as error:
                if refusal(error) not in TOO_LARGE_OR_INVALID or _is_gone(error):
                    raise
                if cause is None:
                    self._require_active()
                cause = error
                if len(batch) > 1:
                    half = len(batch) // 2
                    batches += [batch[half:], batch[:half]]
                else:
                    refused.append(name(batch[0]))
        if refused and cause is not None:
            self._pass_over(refused, cause)

    def _pass_over(self, names: Iterable[str], error: MlflowException) -> None:
        shown = list(names)
        more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
        log.warning(
            "MLflow refuses %s%s of run %s, which stay in %s, and are passed over (%s)",
            ", ".join(shown[:NAMED]),
            more,
            self.run_id,
            self.folder,
            first_line(error),
        )

    def _require_active(self) -> None:
        """Raise RunDeleted if the run was deleted in MLflow, which refuses its values as invalid ones."""
        if self.client.get_run(self.run_id).info.lifecycle_stage != "active":
            raise RunDeleted(f"run {self.run_id} was deleted in MLflow")


def _latest(points: Iterable[tuple[str, int]]) -> dict[str, int]:
    latest: dict[str, int] = {}
    for name, step in points:
        latest[name] = max(step, latest.get(name, step))
    return latest


def _is_gone(error: MlflowException) -> bool:
    return error.error_code == "RESOURCE_DOES_NOT_EXIST"


def _key(item: Param | RunTag) -> str:
    return item.key
