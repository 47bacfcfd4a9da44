"""Facts of a run: its times, status and provenance, from its journal or from MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mlflow.entities import Run

from cluster.tracking.journal import lines, record_of
from cluster.tracking.provenance import commit, machine, packages

MACHINE, PACKAGE = "edlm.machine.", "edlm.package."  # prefixes of the provenance tags


@dataclass(frozen=True)
class RunFacts:
    """Times, status and provenance of a run."""

    started: datetime
    ended: datetime | None
    """None while the run is active."""
    status: str
    commit: str | None
    uncommitted_changes: bool | None
    machine: dict[str, str]
    packages: dict[str, str]


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


def facts_in_journal(folder: Path) -> RunFacts | None:
    """Return the facts of the run whose journal is in `folder`; None if there is no journal of it."""
    record = record_of(folder)
    if record is None:
        return None
    ended, status = None, "RUNNING"
    for entry, _ in lines(folder, containing=b'"kind": "status"'):
        if entry and entry["kind"] == "status":
            status = entry["value"]
            ended = None if status == "RUNNING" else entry["time"]
    return _facts(record.started, ended, status, record.tags)


def facts_in_mlflow(run: Run) -> RunFacts:
    """Return the facts that MLflow has of a run."""
    return _facts(run.info.start_time, run.info.end_time, run.info.status, run.data.tags)


def _facts(started: int, ended: int | None, status: str, tags: Mapping[str, str]) -> RunFacts:
    changed = tags.get("edlm.uncommitted_changes")
    return RunFacts(
        started=datetime.fromtimestamp(started / 1000, UTC),
        ended=datetime.fromtimestamp(ended / 1000, UTC) if ended else None,
        status=status,
        commit=tags.get("mlflow.source.git.commit"),
        uncommitted_changes=None if changed is None else changed == "true",
        machine=_below(tags, MACHINE),
        packages=_below(tags, PACKAGE),
    )


def _below(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
