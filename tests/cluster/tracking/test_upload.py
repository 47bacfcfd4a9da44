"""What was logged reaches MLflow once, whatever fails on the way there, and training waits for nothing."""

import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from cluster.config import Cluster, Tracking, Zero
from cluster.tracking import availability, shipping
from cluster.tracking.journal import ENTRIES, Journal, history
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import RunTracker
from cluster.tracking.runs import Runs, open_tracking
from cluster.tracking.upload import ship
from edlm.config import ConfigurationError, config
from edlm.storage import publish
from tests.cluster.tracking.histories import in_mlflow, reported, steps_of, wait_for
from tests.cluster.tracking.mlflow_server import MlflowServer, mlflow_server
from tests.tracking_database import open_copied_tracking

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def killed(root, tmp_path_factory) -> dict[str, tuple[Tracking, str, RunRecord, Path]]:
    """Two runs whose worker died by SIGKILL at step 30, with half a line written: what their trackers were made of."""
    made_of = {}
    for machine in ("same machine", "other machine"):
        tracking = Tracking(experiment=f"killed, {machine}")
        record = open_tracking(tracking, root).start("pretrain")
        made_of[machine] = (tracking, root, record, tmp_path_factory.mktemp("killed") / "first")
    doomed = (
        "import os, pickle, sys, time\n"
        "from cluster.tracking.run_tracker import RunTracker\n"
        "for made_of in pickle.loads(bytes.fromhex(sys.argv[1])):\n"
        "    tracker = RunTracker(*made_of)\n"
        "    for step in range(30): tracker.log(step, {'loss': float(step)})\n"
        "    while not (made_of[3] / 'shipped-records.json').exists(): time.sleep(0.05)\n"
        "    with (made_of[3] / 'entries.jsonl').open('a') as file: file.write('{\"kind\": \"metr')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.run([sys.executable, "-c", doomed, pickle.dumps([*made_of.values()]).hex()], timeout=60)
    assert child.returncode == -signal.SIGKILL
    return made_of


@pytest.mark.cluster
@pytest.mark.parametrize("machine", ["same machine", "other machine"])
def test_after_a_kill_no_step_is_reported_twice(killed, machine):
    """The next worker resumes from step 20, where the journal of the dead one is or is not."""
    tracking, root, record, journal = killed[machine]
    runs = open_tracking(tracking, root)
    tracker = RunTracker(tracking, root, record, journal if machine == "same machine" else journal.parent / "second")
    for step in range(20, 50):
        tracker.log(step, {"loss": float(step), "new": 1.0})
    tracker.close()
    assert steps_of(runs, record, "new") == list(range(20, 50))
    ship(tracking, root, journal.parent)  # what the dead worker had not sent, too
    assert steps_of(runs, record) == list(range(50))
    assert ship(tracking, root, journal.parent) == 0


@pytest.mark.parametrize("damage", ["", "no number", '{"bytes": 10, "ending": 1}', "[]", "{"])
def test_a_mark_that_is_damaged_or_missing_costs_a_repetition_and_nothing_twice(runs, tmp_path, caplog, damage):
    record = reported(runs, tmp_path, steps=3)
    (tmp_path / "shipped-records.json").write_text(damage)
    (tmp_path / "shipped-files.json").unlink()
    tracker = runs.tracker(record, tmp_path)
    tracker.log(3, {"loss": 1.0})
    tracker.close()
    assert steps_of(runs, record) == [0, 1, 2, 3]
    assert caplog.text.count("is damaged") + caplog.text.count("does not fit") >= 1
    assert "Traceback" not in caplog.text


def test_of_a_damaged_journal_all_but_the_damage_is_sent_and_the_damage_is_named(runs, root, tmp_path, caplog):
    record = runs.start("pretrain")
    journal = Journal(tmp_path, record)
    for step in range(5):
        journal.append("metrics", step=step, values={"loss": float(step)})
    journal.append("status", value="FINISHED")
    journal.close()
    content = (tmp_path / ENTRIES).read_bytes()
    (tmp_path / ENTRIES).write_bytes(content.replace(b'"loss": 2.0', b'"loss": 9.0'))
    assert ship(runs.tracking, root, tmp_path) == 1
    assert steps_of(runs, record) == [0, 1, 3, 4]
    assert in_mlflow(runs, record).info.status == "FINISHED"
    assert [line for line in caplog.messages if "damaged" in line] == [
        f"{tmp_path}: 1 damaged lines are passed over, and those around them sent"
    ]


def test_an_unexpected_error_of_shipping_is_logged_with_its_cause_and_shipping_goes_on(
    runs, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(shipping, "INTERVAL_SECONDS", 0.05)
    record = runs.start("odd")
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        tracker = runs.tracker(record, tmp_path / "journal")
        tracker.log(0, {"loss": 1.0})
        wait_for(lambda: "cannot be sent to MLflow; trying again" in caplog.text)
        assert "division by zero" in caplog.text
    wait_for(lambda: steps_of(runs, record) == [0])
    tracker.finish("FINISHED")


def test_shipping_again_changes_nothing(runs, root, tmp_path):
    record = reported(runs, tmp_path, steps=1)
    before = in_mlflow(runs, record).to_dictionary()
    for mark in tmp_path.glob("shipped-*"):
        mark.unlink()
    assert ship(runs.tracking, root, tmp_path) == 1
    assert in_mlflow(runs, record).to_dictionary() == before
    assert steps_of(runs, record) == [0]


def test_a_database_that_is_replaced_is_filled_from_the_journals(tmp_path):
    root = tmp_path / "root"
    runs = open_copied_tracking(root)
    parent = runs.start("pipeline")
    record = reported(runs, tmp_path / "journal", steps=3, parent=parent)
    (root / "mlflow.db").rename(root / "moved away")
    _forget(runs)
    runs = open_copied_tracking(root)
    assert ship(runs.tracking, str(root), tmp_path) == 1
    assert steps_of(runs, record) == [0, 1, 2]
    run = in_mlflow(runs, record)
    assert (run.info.status, run.info.start_time) == ("FAILED", record.started)
    assert run.data.tags["mlflow.parentRunId"] == in_mlflow(runs, parent).info.run_id
    assert {"config.yaml", "samples.json"} == {file.path for file in runs.client.list_artifacts(run.info.run_id)}
    assert ship(runs.tracking, str(root), tmp_path) == 0


def test_a_run_that_was_created_twice_is_kept_once_with_all_its_values(runs, tmp_path):
    """As by a request that timed out and was carried out later."""
    record = reported(runs, tmp_path, steps=2)
    kept = in_mlflow(runs, record).info.run_id
    (experiment,) = runs.client.search_experiments(filter_string=f"name = '{record.experiment}'")
    twin = runs.client.create_run(experiment.experiment_id, tags={"edlm.run": record.key}).info.run_id
    tracker = runs.tracker(record, tmp_path)
    tracker.log(2, {"loss": 1.0})
    tracker.close()
    assert in_mlflow(runs, record).info.run_id == kept
    assert steps_of(runs, record) == [0, 1, 2]
    ended = runs.client.get_run(twin).info
    assert (ended.status, ended.lifecycle_stage) == ("KILLED", "deleted")


def test_a_run_that_was_deleted_does_not_keep_the_others_from_being_shipped(runs, root, tmp_path, caplog):
    deleted, kept = runs.start("deleted"), runs.start("kept")
    for name, record in (("a", deleted), ("b", kept)):
        tracker = runs.tracker(record, tmp_path / name)
        tracker.log(0, {"loss": 1.0})
        tracker.close()
        unsent = Journal(tmp_path / name, record)
        unsent.append("metrics", step=1, values={"loss": 1.0})
        unsent.close()
    runs.client.delete_run(in_mlflow(runs, deleted).info.run_id)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ENTRIES).write_text("")  # a process that died before its first line
    assert ship(runs.tracking, root, tmp_path) == 1
    assert f"was deleted in MLflow; its journal is kept in {tmp_path / 'a'}" in caplog.text
    assert steps_of(runs, kept) == [0, 1]


@config
class MachineAndSteps:
    """Where a training runs, and what it computes."""

    cluster: Cluster
    steps: int


def test_settings_of_the_machines_may_change_on_resume_and_other_parameters_stay(runs, tmp_path, caplog):
    record = runs.start("pretrain")
    for folder, workers, steps in (("a", 2, 10), ("b", 1, 10), ("c", 1, 20)):
        tracker = runs.tracker(record, tmp_path / folder)
        tracker.settings(MachineAndSteps(cluster=Cluster(workers=workers, zero=Zero(stage=workers)), steps=steps))
        tracker.log(len(folder), {"loss": 1.0})
        tracker.close()
        assert ("keeps parameter steps = 10, now 20" in caplog.text) == (steps == 20)
    run = in_mlflow(runs, record)
    assert (run.data.tags["edlm.cluster.workers"], run.data.tags["edlm.cluster.zero.stage"]) == ("1", "1")
    assert run.data.params == {"steps": "10"}
    assert "workers" not in caplog.text


def test_what_mlflow_refuses_for_ever_is_named_and_does_not_block_the_rest(runs, tmp_path, caplog):
    record = runs.start("pretrain")
    tracker = runs.tracker(record, tmp_path)
    tracker.tags({"..": "a name that MLflow takes for a folder", "fine": "another"})
    tracker.log(0, {"loss": 1.0})
    tracker.close()
    assert "MLflow refuses .." in caplog.text
    assert steps_of(runs, record) == [0]
    assert in_mlflow(runs, record).data.tags["fine"] == "another"


def _forget(runs: Runs) -> None:
    """Close the database, as the end of a process does."""
    runs.client._tracking_client.store._dispose_engine()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def answers(monkeypatch) -> list[int]:
    """The threads that have waited for an answer of the server, one entry for each answer or error."""
    threads: list[int] = []
    real = requests.Session.request

    def spied(self, *arguments, **settings):
        try:
            return real(self, *arguments, **settings)
        finally:
            threads.append(threading.get_ident())

    monkeypatch.setattr(requests.Session, "request", spied)
    return threads


@pytest.mark.cluster
@pytest.mark.parametrize("fault", [pytest.param("killed", marks=pytest.mark.chaos), "frozen"])
def test_training_never_waits_for_a_server_and_nothing_is_lost(server, answers, tmp_path, caplog, monkeypatch, fault):
    monkeypatch.setattr(availability, "LONGEST_TIMEOUT_SECONDS", 4.0)
    tracking = Tracking(uri=server.uri, experiment=fault, request_timeout_seconds=4.0)  # 1 is too few on a busy machine
    runs = open_tracking(tracking, str(tmp_path))
    record = runs.start("pretrain")
    tracker = runs.tracker(record, tmp_path / "journal")
    for step in range(50):
        tracker.log(step, {"loss": float(step), "learning_rate": 1e-3})
    wait_for(lambda: (tmp_path / "journal/shipped-records.json").exists())

    answers.clear()
    server.kill() if fault == "killed" else server.signal(signal.SIGSTOP)
    for step in range(50, 2000):
        tracker.log(step, {"loss": float(step), "learning_rate": 1e-3})
    tracker.table("samples.json", {"text": ["a"]})
    assert threading.get_ident() not in answers
    assert list(history(tmp_path / "journal")["loss"]) == list(range(2000))
    wait_for(lambda: "does not answer" in caplog.text)
    tracker.finish("FINISHED")
    assert threading.get_ident() not in answers
    assert "a later command ships them" in caplog.text

    for thread in threading.enumerate():  # its last request ends in time, too, and must not be answered below
        if thread.name.startswith("shipping-"):
            thread.join(30)
    server.start() if fault == "killed" else server.signal(signal.SIGCONT)
    assert ship(tracking, str(tmp_path), tmp_path / "journal") == 1
    assert steps_of(runs, record) == steps_of(runs, record, "learning_rate") == list(range(2000))
    run = in_mlflow(runs, record)
    assert run.info.status == "FINISHED"
    assert [file.path for file in runs.client.list_artifacts(run.info.run_id)] == ["samples.json"]


@pytest.mark.cluster
def test_a_server_takes_a_local_folder_into_its_registry(server, tmp_path):
    runs = open_tracking(Tracking(uri=server.uri, experiment="registry"), str(tmp_path))
    (tmp_path / "model").mkdir()
    publish(tmp_path / "model", str(tmp_path / "model"))
    made = runs.registry.register(
        "english", str(tmp_path / "model"), runs.settled(None, "register"), "champion", "1" * 64
    )
    assert runs.registry.resolve("english", "champion") == made
    assert made.uri == f"file://{tmp_path}/model"


def test_a_server_that_hangs_up_is_asked_once_and_named(tmp_path):
    """Seven retries with growing pauses, MLflow's own way, would take four minutes."""
    calls = 0

    def hang_up() -> None:
        nonlocal calls
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            calls += 1
            line.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConfigurationError, match=rf"tracking\.uri: {uri} does not answer"):
            open_tracking(Tracking(uri=uri), str(tmp_path))
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert calls == 1


def test_a_server_that_is_not_there_at_the_start_is_named(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConfigurationError, match=rf"tracking\.uri: {uri} does not answer"):
        open_tracking(Tracking(uri=uri), str(tmp_path))
