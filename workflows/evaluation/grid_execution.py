"""Execution of a grid on the cluster: each result is stored at once, and stored results are not measured again."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from edlm.storage import join, read_text, write_text
from workflows.evaluation.measurements.measurement import AbstractMeasurement, MeasuredRows
from workflows.source_digest import source_digest
from workflows.stage import Session, StageFailed, say

STAGE = "evaluate"
CELLS = "cells"
REPORTS = 10  # progress lines per grid


class CellsFailed(StageFailed):
    """Failure of some measurements of a grid; the results of the others are stored."""

    def __init__(self, failures: Mapping[str, str], cells: int) -> None:
        listed = "\n".join(f"  {label}: {cause}" for label, cause in failures.items())
        super().__init__(
            f"{len(failures)} of {cells} measurements failed; the others are kept, so that the next run "
            f"measures only these:\n{listed}"
        )
        self.failures = dict(failures)


@dataclass
class _Progress:
    total: int
    done: int = 0

    def tick(self) -> None:
        self.done += 1
        if self.done % max(1, self.total // REPORTS) == 0 or self.done == self.total:
            say(STAGE, f"{self.done} of {self.total} measurements done")


def measure_all(
    session: Session, together: Sequence[AbstractMeasurement], alone: Sequence[AbstractMeasurement]
) -> list[tuple[AbstractMeasurement, MeasuredRows]]:
    """Return every measurement with its rows; those of `alone` are timed, one by one, when the others are done.

    A result is stored under the measurement's key as soon as it arrives: an interrupted grid resumes where it stopped,
    and another grid reuses the results that both share. Raise CellsFailed once everything else is measured.
    """
    paths = {id(cell): join(session.outputs, CELLS, _file(cell)) for cell in (*together, *alone)}
    results: list[tuple[AbstractMeasurement, MeasuredRows]] = []
    missing: list[list[AbstractMeasurement]] = []
    for cells in (together, alone):
        stored = {id(cell): _kept(paths[id(cell)]) for cell in cells}
        results += [(cell, result) for cell in cells if (result := stored[id(cell)]) is not None]
        missing.append([cell for cell in cells if stored[id(cell)] is None])
    if results:
        say(STAGE, f"{len(results)} of {len(paths)} measurements reused")
    progress, failures = _Progress(sum(map(len, missing))), {}
    for cells, isolated in zip(missing, (False, True), strict=True):
        for cell, result in _measured(session, cells, isolated, failures):
            write_text(paths[id(cell)], json.dumps(asdict(result)))
            results.append((cell, result))
            progress.tick()
    if failures:
        raise CellsFailed(failures, len(paths))
    return results


def _file(cell: AbstractMeasurement) -> str:
    return f"{cell.key(source_digest(type(cell).__module__))}.json"


def _measured(
    session: Session, cells: Sequence[AbstractMeasurement], alone: bool, failures: dict[str, str]
) -> Iterator[tuple[AbstractMeasurement, MeasuredRows]]:
    from cluster.runtime.tasks import spread  # deferred: importing Ray takes seconds

    machines = session.experiment.cluster
    for outcome in spread(_find, cells, machines.cpus_per_worker, machines.gpus_per_worker, alone):
        if outcome.result is None:
            failures[outcome.item.label] = f"{type(outcome.error).__name__}: {outcome.error}"
            say(STAGE, f"failed: {outcome.item.label}")
        else:
            seconds, result = outcome.result
            rows = {name: [{**row, "seconds": seconds} for row in rows] for name, rows in result.rows.items()}
            yield outcome.item, MeasuredRows(rows)


def _find(cell: AbstractMeasurement) -> tuple[float, MeasuredRows]:
    started = time.perf_counter()
    rows = cell.find()
    return time.perf_counter() - started, rows


def _kept(place: str) -> MeasuredRows | None:
    try:
        return MeasuredRows(**json.loads(read_text(place)))
    except FileNotFoundError:
        return None
