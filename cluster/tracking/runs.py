"""Runs of a pipeline in MLflow: one parent, one child per stage, and the metrics and artifacts of each."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cluster.config import Tracking
from cluster.tracking.connection import answering, artifact_location, connect, database_file, tracking_uri
from cluster.tracking.journal import ENTRIES, Journal
from cluster.tracking.parameters import parameters, redacted
from cluster.tracking.provenance import commit, machine, packages
from cluster.tracking.registry import Registry
from cluster.tracking.upload import Shipping, points
from edlm.config import ConfigurationError, plain

DOTS_PER_INCH = 150
MACHINE, PACKAGE = "edlm.machine.", "edlm.package."  # prefixes of the provenance tags
_METRIC = re.compile(r"[\w.\- :/]{1,250}")
log = logging.getLogger(__name__)


class RunTracker:
    """Tracker of one MLflow run for any process: it is built from plain data, and the server may be unavailable.

    Everything goes to a journal in `folder` first, and a background thread sends it on. So no call waits for a server
    or fails because of one, and entries that could not be sent stay in the journal for `cluster.tracking.upload.ship`.
    A step that is repeated after a restart is not sent again. Only one process at a time may use a `folder`.
    """

    def __init__(self, tracking: Tracking, root: str, run_id: str, folder: Path) -> None:
        self._journal = Journal(folder, run_id)
        self._patience_seconds = 2 * tracking.request_timeout_seconds + 1
        self._shipping = Shipping(tracking, root, folder, run_id)
        self._shipping.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; values may be NaN or infinite. Raises ValueError for an invalid name."""
        for name in metrics:
            if not _METRIC.fullmatch(name):
                raise ValueError(f"metric {name!r}: MLflow takes letters, digits, and `_-. :/`, at most 250 of them")
        self._journal.append("metrics", step=step, values={name: float(value) for name, value in metrics.items()})

    def settings(self, config: Any) -> None:
        """Record the configuration, without secrets, as parameters and as `config.yaml`."""
        tree = plain(config)
        self._journal.append("parameters", values=parameters(tree))
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

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Record the end of the run with its status, and close the tracker."""
        self._journal.append("status", value=status)
        self.close()

    def close(self) -> None:
        """Write everything to disk, and to MLflow if it answers in time; else warn where the remainder is."""
        self._journal.close()
        shipped = self._shipping.stop(self._patience_seconds)
        unsent = (self._journal.folder / ENTRIES).stat().st_size - shipped
        if unsent:
            log.warning(
                "MLflow has not received the last %d bytes of %s; ship them later", unsent, self._journal.folder
            )

    def _file(self, name: str, content: str, table: bool) -> None:
        self._journal.place(name).write_text(content, encoding="utf-8")
        self._journal.append("file", name=name, table=table)


@dataclass(frozen=True)
class RunFacts:
    """Times, status and provenance of a run, as recorded in MLflow."""

    started: datetime
    ended: datetime | None
    """None while the run is active."""
    status: str
    commit: str | None
    uncommitted_changes: bool | None
    machine: dict[str, str]
    packages: dict[str, str]


class Runs:
    """Runs of one MLflow experiment, with the model registry."""

    def __init__(self, tracking: Tracking, root: str, client: MlflowClient, experiment_id: str) -> None:
        self.tracking = tracking
        self.root = root
        self.client = client
        self.experiment_id = experiment_id
        self.registry = Registry(client)

    def start(self, name: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Create a run, below the run `parent` if given and tagged with its provenance; return its id."""
        all_tags = {"mlflow.runName": name, **provenance(), **parameters(tags or {})}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        with answering(self.client.tracking_uri):
            return self.client.create_run(self.experiment_id, tags=all_tags).info.run_id

    def resume(self, run_id: str) -> None:
        """Set the status of the run to running; raise ConfigurationError if there is no such run."""
        try:
            with answering(self.client.tracking_uri):
                self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ConfigurationError(
                f"no run {run_id} in {redacted(self.client.tracking_uri)}, which an unfinished stage would resume; "
                "restore it there, or delete the experiment's folder `work` to start the stage again"
            ) from error

    def facts(self, run_id: str) -> RunFacts | None:
        """Return what is known about a run; None if there is no such run."""
        try:
            with answering(self.client.tracking_uri):
                run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        tags, info = run.data.tags, run.info
        changed = tags.get("edlm.uncommitted_changes")
        return RunFacts(
            started=datetime.fromtimestamp(info.start_time / 1000, UTC),
            ended=datetime.fromtimestamp(info.end_time / 1000, UTC) if info.end_time else None,
            status=info.status,
            commit=tags.get("mlflow.source.git.commit"),
            uncommitted_changes=None if changed is None else changed == "true",
            machine=_below(tags, MACHINE),
            packages=_below(tags, PACKAGE),
        )

    def tracker(self, run_id: str, folder: Path) -> RunTracker:
        """Return a tracker of this run with its journal in `folder`."""
        return RunTracker(self.tracking, self.root, run_id, folder)

    def history(self, run_id: str) -> dict[str, dict[int, float]]:
        """Return the values of every metric of a run, by step."""
        with answering(self.client.tracking_uri):
            return points(self.client, run_id)


def open_tracking(tracking: Tracking, root: str) -> Runs:
    """Open the runs of the configured experiment, which is created if it does not exist.

    Raises ConfigurationError if no server answers, or if the experiment was deleted.
    """
    with answering(tracking_uri(tracking, root)):
        client = connect(tracking, root)
        experiment = client.get_experiment_by_name(tracking.experiment) or _make_experiment(client, tracking, root)
    if experiment.lifecycle_stage != "active":
        raise ConfigurationError(
            f"tracking.experiment: {tracking.experiment!r} was deleted in MLflow; restore it there or give another name"
        )
    return Runs(tracking, root, client, experiment.experiment_id)


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


def provenance() -> dict[str, str]:
    """Return the provenance tags: versions, the machine, and the git commit if the code is in a repository."""
    facts = {"edlm.version": version("edlm")}
    facts |= {MACHINE + name: value for name, value in machine().items()}
    facts |= {PACKAGE + name: value for name, value in packages().items()}
    revision = commit()
    if revision is not None:
        facts["mlflow.source.git.commit"] = revision.digest
        facts["edlm.uncommitted_changes"] = str(revision.changed).lower()
    return facts


def _below(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}


def _make_experiment(client: MlflowClient, tracking: Tracking, root: str) -> Any:
    try:
        client.create_experiment(tracking.experiment, artifact_location=artifact_location(tracking, root))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process just now
            raise
    return client.get_experiment_by_name(tracking.experiment)
