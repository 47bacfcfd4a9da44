"""Settlement of runs: which run of MLflow is the run of a record; it is created there once, whatever answers are lost.

The key of the record is a tag of the run. A run whose creation was answered too late, or not at all, is found by it.
"""

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from cluster.config import Tracking
from cluster.tracking.journal import MARKS
from cluster.tracking.locations import artifact_location
from cluster.tracking.run_record import RunRecord
from edlm.storage import read_text, write_text

KEY = "edlm.run"
PARENT = "mlflow.parentRunId"
SETTLED = "settled.json"  # beside a journal: its run in MLflow, and the database that has it

_creating = threading.RLock()  # the threads of a pipeline's run and of its first stage would both create the former


class RunDeleted(RuntimeError):
    """A run that was deleted in MLflow, and gets nothing more."""


def experiment_named(client: MlflowClient, tracking: Tracking, root: str, name: str) -> Experiment:
    """Return the experiment of this name, which is created if there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment
    try:
        client.create_experiment(name, artifact_location=artifact_location(tracking, root))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process just now
            raise
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return experiment


def find(client: MlflowClient, experiment: Experiment, record: RunRecord, settled: str | None = None) -> Run | None:
    """Return the run of `record` in MLflow; None if there is none.

    Of several, made by requests that were answered too late, one is kept: the `settled` one, else the one with the most
    values. The others are ended and deleted.
    """
    runs = client.search_runs([experiment.experiment_id], f"tags.\"{KEY}\" = '{record.key}'", ViewType.ALL)
    if not runs:
        return None
    kept = max(runs, key=lambda run: _weight(run, settled))
    for twin in runs:
        if twin is not kept and twin.info.lifecycle_stage == "active":
            client.set_terminated(twin.info.run_id, "KILLED")
            client.delete_run(twin.info.run_id)
    return kept


def settle(client: MlflowClient, tracking: Tracking, root: str, record: RunRecord) -> str:
    """Return the id of the run of `record` in MLflow, which is created if there is none, as is its parent.

    Raises RunDeleted if the run was deleted there.
    """
    with _creating:
        experiment = experiment_named(client, tracking, root, record.experiment)
        run = find(client, experiment, record)
        return _active(run or _create(client, tracking, root, experiment, record))


def settle_journal(client: MlflowClient, tracking: Tracking, root: str, folder: Path, record: RunRecord) -> str:
    """Return the id of the run of the journal in `folder`, and keep it there.

    If the database is another one than before, or has no such run any more, the run is created in it, and what has been
    shipped of the journal is forgotten, so that all of it is sent again. Raises RunDeleted if the run was deleted.
    """
    with _creating:
        return _settle_journal(client, tracking, root, folder, record)


def _settle_journal(client: MlflowClient, tracking: Tracking, root: str, folder: Path, record: RunRecord) -> str:
    experiment = experiment_named(client, tracking, root, record.experiment)
    database = database_of(experiment)
    known = settled_run(folder)
    run = find(client, experiment, record, known["run_id"] if known else None)
    if run is None or known is None or known["database"] != database or known["run_id"] != run.info.run_id:
        for mark in folder.glob(MARKS):
            mark.unlink()
        run = run or _create(client, tracking, root, experiment, record)
        write_text(str(folder / SETTLED), json.dumps({"run_id": run.info.run_id, "database": database}))
    return _active(run)


def mend_parent(client: MlflowClient, tracking: Tracking, root: str, run_id: str, record: RunRecord) -> None:
    """Put the run below its parent, where it was put below a twin of it that is gone."""
    if record.parent is None:
        return
    with suppress(RunDeleted):
        parent = settle(client, tracking, root, record.parent)
        if client.get_run(run_id).data.tags.get(PARENT) != parent:
            client.set_tag(run_id, PARENT, parent)


def database_of(experiment: Experiment) -> str:
    """Return what tells the database of an experiment from one that replaces it."""
    return f"{experiment.experiment_id} of {experiment.creation_time}"


def settled_run(folder: Path) -> dict[str, str] | None:
    """Return the run and the database that the journal in `folder` was last sent to; None if that is not on record."""
    try:
        known = json.loads(read_text(str(folder / SETTLED)))
    except (FileNotFoundError, ValueError):
        return None
    return known if isinstance(known, dict) and {"run_id", "database"} <= known.keys() else None


def _create(client: MlflowClient, tracking: Tracking, root: str, experiment: Experiment, record: RunRecord) -> Run:
    tags: dict[str, Any] = {"mlflow.runName": record.name, **record.tags, KEY: record.key}
    if record.parent is not None:
        with suppress(RunDeleted):
            tags[PARENT] = settle(client, tracking, root, record.parent)
    return client.create_run(experiment.experiment_id, start_time=record.started, tags=tags)


def _active(run: Run) -> str:
    if run.info.lifecycle_stage != "active":
        raise RunDeleted(f"run {run.info.run_id} was deleted in MLflow")
    return run.info.run_id


def _weight(run: Run, settled: str | None) -> tuple[bool, bool, int, str]:
    values = len(run.data.metrics) + len(run.data.params)
    return run.info.lifecycle_stage == "active", run.info.run_id == settled, values, run.info.run_id
