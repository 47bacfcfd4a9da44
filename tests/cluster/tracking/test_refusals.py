"""What MLflow refuses or does not take in time is named once, kept, and holds up nothing else."""

import threading

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cluster.tracking import shipping
from cluster.tracking.journal import FILES, Journal
from cluster.tracking.upload import ship
from tests.cluster.tracking.histories import Story, in_mlflow, reported, steps_of, wait_for

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_a_batch_that_is_too_large_is_split_and_a_value_that_is_too_large_is_named(
    runs, root, tmp_path, caplog, monkeypatch
):
    real = MlflowClient.log_batch

    def limited(self, run_id, metrics=(), **others):
        if len(metrics) > 7 or any(metric.step == 13 for metric in metrics):
            raise MlflowException("API request to endpoint /log-batch failed with error code 413 != 200")
        return real(self, run_id, metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", limited)
    record = reported(runs, tmp_path, steps=100)
    assert steps_of(runs, record) == [step for step in range(100) if step != 13]
    assert in_mlflow(runs, record).info.status == "FAILED"
    refused = [line for line in caplog.messages if "MLflow refuses" in line]
    assert len(refused) == 1
    assert "loss of step 13" in refused[0]
    assert ship(runs.tracking, root, tmp_path) == 0


@pytest.mark.parametrize("status", [403, 413])
def test_a_refused_file_is_kept_aside_and_named_once(runs, root, tmp_path, caplog, monkeypatch, status):
    refusing = requests.Response()
    refusing.status_code = status

    def refuse(*_, **__):
        raise requests.HTTPError(f"{status} Client Error", response=refusing)

    def refuse_inputs(*_, **__):
        raise MlflowException(f"API request to endpoint /log-inputs failed with error code {status} != 200")

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    monkeypatch.setattr(MlflowClient, "log_inputs", refuse_inputs)
    record = reported(runs, tmp_path, steps=2)
    assert steps_of(runs, record) == [0, 1]
    assert in_mlflow(runs, record).info.status == "FAILED"
    for name in ("config.yaml", "samples.json"):
        assert (tmp_path / "refused" / name).exists()
        (line,) = [line for line in caplog.messages if f"refuses the file {name}" in line]
        assert str(tmp_path / "refused" / name) in line
    assert ship(runs.tracking, root, tmp_path) == 0


def test_a_file_that_is_gone_is_passed_over(runs, root, tmp_path, caplog):
    record = runs.start("pretrain")
    journal = Journal(tmp_path, record)
    for name in ("gone.txt", "here.txt"):
        journal.place(name).write_text("a")
        journal.append("file", name=name, table=False)
    journal.close()
    (tmp_path / FILES / "gone.txt").unlink()
    assert ship(runs.tracking, root, tmp_path) == 1
    assert "gone.txt of run" in caplog.text
    run = in_mlflow(runs, record)
    assert [file.path for file in runs.client.list_artifacts(run.info.run_id)] == ["here.txt"]


def test_a_file_that_is_not_taken_holds_up_neither_metrics_nor_other_files(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "INTERVAL_SECONDS", 0.05)
    real, waiting = MlflowClient.log_artifact, threading.Event()

    def slow(self, run_id, path, parent=None):
        if path.endswith("slow.txt") and not waiting.is_set():
            raise MlflowException("API request failed with exception: timed out")
        return real(self, run_id, path, parent)

    monkeypatch.setattr(MlflowClient, "log_artifact", slow)
    record = runs.start("pretrain")
    tracker = runs.tracker(record, tmp_path)
    tracker.text("slow.txt", "a")
    tracker.text("quick.txt", "b")
    tracker.log(0, {"loss": 1.0})

    def files() -> list[str]:
        run = runs.find(record)
        return [] if run is None else [file.path for file in runs.client.list_artifacts(run.info.run_id)]

    wait_for(lambda: files() == ["quick.txt"])
    wait_for(lambda: steps_of(runs, record) == [0])
    waiting.set()
    wait_for(lambda: files() == ["quick.txt", "slow.txt"])
    tracker.close()


def test_an_outage_is_said_once_by_all_trackers_of_a_process(runs, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shipping, "INTERVAL_SECONDS", 0.05)

    def full(*_, **__):
        raise MlflowException("(sqlite3.OperationalError) database or disk is full", error_code=1)

    monkeypatch.setattr(MlflowClient, "log_batch", full)
    for stage in range(4):
        tracker = runs.tracker(runs.start("pretrain"), tmp_path / str(stage))
        tracker.settings(Story())
        tracker.log(0, {"loss": 1.0})
        tracker.finish("FINISHED")
    assert sum("MLflow does not answer" in line for line in caplog.messages) == 1
    assert len(caplog.messages) == 2
    assert "a later command ships them" in caplog.messages[1]
