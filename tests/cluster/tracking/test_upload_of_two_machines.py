"""Of a run whose machine was cut off and replaced, no point is in MLflow twice, whichever of the two sends first."""

import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.tracking import shipping
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import RunTracker
from cluster.tracking.runs import Runs
from tests.cluster.tracking.histories import steps_of, wait_for


def begun(runs: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunRecord, RunTracker]:
    """A run of which MLflow has the first step, and the tracker of the machine that sent it."""
    monkeypatch.setattr(shipping, "INTERVAL_SECONDS", 0.05)
    record = runs.start("pretrain")
    tracker = runs.tracker(record, folder)
    tracker.log(0, {"loss": 0.0})
    wait_for(lambda: runs.find(record) is not None and steps_of(runs, record) == [0])
    return record, tracker


def test_a_machine_that_was_cut_off_sends_nothing_that_its_replacement_has_sent(runs, tmp_path, monkeypatch):
    record, cut_off = begun(runs, tmp_path / "cut off", monkeypatch)
    failed, log_batch = threading.Event(), MlflowClient.log_batch

    def unless_cut_off(*arguments, **named) -> None:
        if threading.current_thread().name == "shipping-cut off":
            failed.set()
            raise ConnectionError
        log_batch(*arguments, **named)

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", unless_cut_off)
        cut_off.log(1, {"loss": 1.0})
        assert failed.wait(30)
        replacement = RunTracker(runs.tracking, runs.root, record, tmp_path / "replacement")
        replacement.log(1, {"loss": 1.0})
        replacement.close()
    cut_off.close()
    assert steps_of(runs, record) == [0, 1]


def test_a_replacement_sends_nothing_that_a_machine_that_is_back_has_sent_meanwhile(runs, tmp_path, monkeypatch):
    record, replacement = begun(runs, tmp_path / "replacement", monkeypatch)
    back = RunTracker(runs.tracking, runs.root, record, tmp_path / "cut off")
    back.log(1, {"loss": 1.0})
    back.close()
    time.sleep(0.01)  # the same point has another time
    replacement.log(1, {"loss": 1.0})
    replacement.log(2, {"loss": 2.0})
    replacement.close()
    assert steps_of(runs, record) == [0, 1, 2]
