"""Settings that a run logs, and what MLflow has of its metrics."""

import time
from pathlib import Path

from mlflow.entities import Run

from cluster.config import Cluster
from cluster.tracking.run_record import RunRecord
from cluster.tracking.runs import Runs
from edlm.config import config


@config
class Story:
    """A configuration with a secret, a long text and a list."""

    cluster: Cluster = Cluster()
    hf_token: str = "hf_do_not_tell"
    corpus: str = "s3://user:password@bucket/text"
    notes: str = "n" * 7000
    windows: tuple[tuple[float, float], ...] = ((0.0, 0.5), (0.5, 1.0))


def in_mlflow(runs: Runs, record: RunRecord) -> Run:
    """The run as MLflow has it."""
    run = runs.find(record)
    assert run is not None
    return run


def steps_of(runs: Runs, record: RunRecord, metric: str = "loss") -> list[int]:
    """Every point that MLflow has of a metric, a doubled one twice."""
    points = runs.client.get_metric_history(in_mlflow(runs, record).info.run_id, metric)
    return sorted(point.step for point in points)


def reported(runs: Runs, folder: Path, steps: int, parent: RunRecord | None = None) -> RunRecord:
    """A run that is told everything there is to tell of one, and has failed."""
    record = runs.start("pretrain", parent=parent)
    tracker = runs.tracker(record, folder)
    for step in range(steps):
        tracker.log(step, {"loss": float(step)})
    tracker.settings(Story())
    tracker.dataset("english", runs.root, "5" * 64, "training", {})
    tracker.table("samples.json", {"text": ["a"]})
    tracker.finish("FAILED")
    return record


def wait_for(condition) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError
