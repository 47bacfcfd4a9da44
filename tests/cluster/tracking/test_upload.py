"""What was logged reaches MLflow once, whatever fails on the way there, and training waits for nothing."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cluster.config import Cluster, Tracking
from cluster.tracking import upload
from cluster.tracking.journal import ENTRIES, Journal, history
from cluster.tracking.runs import RunTracker, open_tracking
from cluster.tracking.upload import Shipping, ship
from edlm.config import ConfigurationError
from edlm.storage import publish
from tests.cluster.tracking.histories import Story, steps_of

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.mark.cluster
@pytest.mark.parametrize("journal_survives", [True, False], ids=["same machine", "other machine"])
def test_after_a_kill_no_step_is_reported_twice(root, tmp_path, journal_survives):
    """The worker dies by SIGKILL at step 30, with half a line written; the next one resumes from step 20."""
    tracking = Tracking(experiment=f"killed, {journal_survives}")
    runs = open_tracking(tracking, root)
    run_id = runs.start("pretrain")
    made_of = (tracking, root, run_id, tmp_path / "first")
    doomed = (
        "import os, pickle, sys, time\n"
        "from cluster.tracking.runs import RunTracker\n"
        "made_of = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "tracker = RunTracker(*made_of)\n"
        "for step in range(30): tracker.log(step, {'loss': float(step)})\n"
        "while not (made_of[3] / 'shipped_bytes').exists(): time.sleep(0.05)\n"
        "with (made_of[3] / 'journal.jsonl').open('a') as file: file.write('{\"kind\": \"metr')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.run([sys.executable, "-c", doomed, pickle.dumps(made_of).hex()], timeout=60)
    assert child.returncode == -signal.SIGKILL
    runs.resume(run_id)
    tracker = RunTracker(tracking, root, run_id, tmp_path / ("first" if journal_survives else "second"))
    for step in range(20, 50):
        tracker.log(step, {"loss": float(step), "new": 1.0})
    tracker.close()
    assert steps_of(runs, run_id, "new") == list(range(20, 50))
    assert ship(tracking, root, tmp_path) == (1 if journal_survives else 2)  # what the dead worker had not sent, too
    assert steps_of(runs, run_id) == list(range(50))


def test_an_unexpected_error_of_shipping_is_logged_with_its_cause_and_shipping_goes_on(
    runs, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(upload, "INTERVAL_SECONDS", 0.05)
    run_id = runs.start("damaged")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / upload.MARK).write_text("no number")
    tracker = runs.tracker(run_id, tmp_path / "journal")
    tracker.log(0, {"loss": 1.0})
    wait_for(lambda: "cannot be sent to MLflow; trying again" in caplog.text)
    assert "no number" in caplog.text
    (tmp_path / "journal" / upload.MARK).write_text("0")
    wait_for(lambda: steps_of(runs, run_id) == [0])
    tracker.finish("FINISHED")


def test_shipping_again_changes_nothing(runs, root, tmp_path):
    run_id = runs.start("pretrain")
    tracker = runs.tracker(run_id, tmp_path)
    tracker.log(0, {"loss": 1.0})
    tracker.settings(Story())
    tracker.dataset("english", root, "5" * 64, "training", {})
    tracker.table("samples.json", {"text": ["a"]})
    tracker.finish("FAILED")
    before = runs.client.get_run(run_id).to_dictionary()
    (tmp_path / "shipped_bytes").unlink()
    assert ship(runs.tracking, root, tmp_path) == 1
    assert runs.client.get_run(run_id).to_dictionary() == before
    assert steps_of(runs, run_id) == [0]


def test_a_run_that_was_deleted_does_not_keep_the_others_from_being_shipped(runs, root, tmp_path, caplog):
    deleted, kept = runs.start("deleted"), runs.start("kept")
    for name, run_id in (("a", deleted), ("b", kept)):
        tracker = runs.tracker(run_id, tmp_path / name)
        tracker.log(0, {"loss": 1.0})
        tracker.close()
        unsent = Journal(tmp_path / name, run_id)
        unsent.append("metrics", step=1, values={"loss": 1.0})
        unsent.close()
    runs.client.delete_run(deleted)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ENTRIES).write_text("")  # a process that died before its first line
    assert ship(runs.tracking, root, tmp_path) == 1
    assert f"MLflow rejected the journal in {tmp_path / 'a'}" in caplog.text
    assert steps_of(runs, kept) == [0, 1]


def test_a_parameter_that_changed_on_resume_stops_nothing(runs, tmp_path, caplog):
    run_id = runs.start("pretrain")
    for folder, workers in (("a", 2), ("b", 1)):
        tracker = runs.tracker(run_id, tmp_path / folder)
        tracker.settings(Cluster(workers=workers))
        tracker.log(workers, {"loss": 1.0})
        tracker.close()
    assert runs.client.get_run(run_id).data.params["workers"] == "2"
    assert "keeps parameter workers = 2, now 1" in caplog.text
    assert steps_of(runs, run_id) == [1, 2]


def test_what_mlflow_refuses_for_ever_is_reported_and_does_not_block_the_rest(runs, tmp_path, caplog):
    run_id = runs.start("pretrain")
    tracker = runs.tracker(run_id, tmp_path)
    tracker.tags({"..": "a name that MLflow takes for a folder"})
    tracker.log(0, {"loss": 1.0})
    tracker.close()
    assert "MLflow rejected tags" in caplog.text
    assert steps_of(runs, run_id) == [0]


class MlflowServer:
    """A real MLflow server in a process group of its own, on a port that stays the same."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        stores = [f"--backend-store-uri=sqlite:///{self.folder}/m.db", f"--artifacts-destination={self.folder}/files"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command + stores, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            try:
                requests.get(f"{self.uri}/health", timeout=1).raise_for_status()
            except requests.RequestException:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError((self.folder / "log").read_text())

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    if server.process is not None:
        server.kill()


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


def wait_for(condition) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.cluster
@pytest.mark.parametrize("fault", [pytest.param("killed", marks=pytest.mark.chaos), "frozen"])
def test_training_never_waits_for_a_server_and_nothing_is_lost(server, answers, tmp_path, caplog, fault):
    tracking = Tracking(uri=server.uri, experiment=fault, request_timeout_seconds=4.0)  # 1 is too few on a busy machine
    runs = open_tracking(tracking, str(tmp_path))
    run_id = runs.start("pretrain")
    tracker = runs.tracker(run_id, tmp_path / "journal")
    for step in range(50):
        tracker.log(step, {"loss": float(step), "learning_rate": 1e-3})
    wait_for(lambda: (tmp_path / "journal/shipped_bytes").exists())

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
    assert "ship them later" in caplog.text

    for thread in threading.enumerate():  # its last request ends in time, too, and must not be answered below
        if isinstance(thread, Shipping):
            thread.join(30)
    server.start() if fault == "killed" else server.signal(signal.SIGCONT)
    assert ship(tracking, str(tmp_path), tmp_path / "journal") == 1
    assert steps_of(runs, run_id) == steps_of(runs, run_id, "learning_rate") == list(range(2000))
    assert runs.client.get_run(run_id).info.status == "FINISHED"
    assert [file.path for file in runs.client.list_artifacts(run_id)] == ["samples.json"]


@pytest.mark.cluster
def test_a_server_takes_a_local_folder_into_its_registry(server, tmp_path):
    runs = open_tracking(Tracking(uri=server.uri, experiment="registry"), str(tmp_path))
    (tmp_path / "model").mkdir()
    publish(tmp_path / "model", str(tmp_path / "model"))
    made = runs.registry.register("english", str(tmp_path / "model"), runs.start("register"), "champion", "1" * 64)
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
