"""What is said about a run reaches MLflow once, in SQLite or on a server, however the server behaves."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cluster.config import Tracking
from cluster.tracking.leftovers import end_abandoned
from cluster.tracking.provenance import machine, packages
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import LAST_FAILURE, RunTracker
from cluster.tracking.runs import open_registry, open_tracking
from cluster.tracking.upload import ship
from cluster.training.outcomes import TrainingStopped
from edlm.config import ConfigurationError, config
from edlm.storage import publish
from tests.cluster.tracking.histories import Story, in_mlflow, steps_of

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_a_pipeline_with_a_stage_is_reported_whole(runs, root, tmp_path, monkeypatch):
    parent = runs.start("pipeline")
    record = runs.start("pretrain", parent=parent, tags={"edlm.code": "abc", "api_key": "do_not_tell"})
    tracker = runs.tracker(record, tmp_path / "journal")
    tracker.settings(Story())
    tracker.dataset("english", root, "5" * 64, "training", {"tokens": 7, "documents": 2})
    for step in range(1100):
        tracker.log(step, {"loss": 3.0 / (step + 1), "gain_nats/t_0.00_0.25": 0.5})
    tracker.table("samples.json", {"candidates": [1, 8], "text": ["the cat", "der Bär"]})
    figure = Figure()
    figure.subplots().plot([1, 2])
    tracker.figure("figures/curves.png", figure)
    tracker.finish("FINISHED")

    run = in_mlflow(runs, record)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == in_mlflow(runs, parent).info.run_id
    assert run.data.tags["edlm.code"] == "abc"
    assert run.data.tags["edlm.version"]
    assert run.data.tags["edlm.cluster.zero.stage"] == "2"
    assert run.data.params["windows.1"] == "[0.5, 1.0]"
    assert len(run.data.params["notes"]) == 6000
    assert steps_of(runs, record) == list(range(1100))
    for folder in (tmp_path / "journal", tmp_path / "of another machine"):
        assert runs.history(record, folder)["loss"][2] == 1.0
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("english", "5" * 36)
    assert json.loads(data.dataset.profile) == {"tokens": 7, "documents": 2, "sha256": "5" * 64}
    assert data.tags[0].value == "training"
    artifacts = Path(run.info.artifact_uri)
    assert artifacts.is_relative_to(Path(root) / "artifacts")
    assert (artifacts / "figures/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "stage: 2" in (artifacts / "config.yaml").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", runs.client.tracking_uri)  # which load_table reads
    table = runs.client.load_table(run.info.experiment_id, "samples.json", run_ids=[run.info.run_id])
    assert table.to_dict("list") == {"candidates": [1, 8], "text": ["the cat", "der Bär"]}
    reported = b"".join(path.read_bytes() for path in Path(root).rglob("*") if path.is_file())
    for secret in (b"do_not_tell", b"user:password"):
        assert secret not in reported


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (RuntimeError("s3://me:do_not_tell@x is away\nTraceback"), "FAILED", "RuntimeError: s3://***@x is away"),
        (TrainingStopped("stopped by SIGTERM", 15), "KILLED", "TrainingStopped: stopped by SIGTERM"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_run_that_an_error_ended_has_its_cause_on_one_line_and_keeps_it_when_it_goes_on(
    runs, tmp_path, error, status, cause
):
    record = runs.start("pretrain")
    runs.tracker(record, tmp_path).fail(error)
    run = in_mlflow(runs, record)
    assert (run.info.status, run.data.tags[LAST_FAILURE]) == (status, cause)
    again = runs.tracker(record, tmp_path)
    again.begin()
    again.finish("FINISHED")
    run = in_mlflow(runs, record)
    assert (run.info.status, run.data.tags[LAST_FAILURE]) == ("FINISHED", cause)


def test_a_run_knows_when_where_and_from_what_it_was_made_by_its_journal_and_by_mlflow(runs, tmp_path):
    record = runs.start("evaluate")
    tracker = runs.tracker(record, tmp_path / "here")
    running = runs.facts(record, tmp_path / "here")
    assert running is not None
    assert (running.status, running.ended) == ("RUNNING", None)
    assert running.machine == machine()
    assert running.packages == packages()
    tracker.picture("report/bound.png", b"drawn already")
    tracker.finish("FINISHED")
    ended = runs.facts(record, tmp_path / "here")
    assert ended == runs.facts(record, tmp_path / "elsewhere")
    assert ended is not None
    assert ended.ended is not None
    assert ended.ended >= ended.started == running.started
    assert (ended.commit, ended.uncommitted_changes) == (running.commit, running.uncommitted_changes)
    artifacts = Path(in_mlflow(runs, record).info.artifact_uri)
    assert (artifacts / "report/bound.png").read_bytes() == b"drawn already"
    assert runs.facts(runs.start("never heard of"), tmp_path / "elsewhere") is None


def test_values_that_are_no_finite_numbers_are_kept(runs, tmp_path):
    record = runs.start("pretrain")
    tracker = runs.tracker(record, tmp_path / "here")
    for step, value in enumerate([float("nan"), float("inf"), float("-inf"), 1.0]):
        tracker.log(step, {"loss": value})
    tracker.close()
    assert steps_of(runs, record) == [0, 1, 2, 3]
    values = runs.history(record, tmp_path / "elsewhere")["loss"]
    assert values[0] != values[0]
    assert values[1] > 1e300
    assert values[2] < -1e300


@config
class Wide:
    """A configuration with more settings than MLflow takes at once."""

    settings: dict[str, int]


def test_more_parameters_than_a_request_may_hold_are_reported(runs, tmp_path):
    record = runs.start("pretrain")
    tracker = runs.tracker(record, tmp_path)
    tracker.settings(Wide(settings={f"p{number}": number for number in range(250)}))
    tracker.close()
    assert len(in_mlflow(runs, record).data.params) == 250


def test_mistakes_in_calling_the_tracker_are_named(runs, tmp_path):
    tracker = runs.tracker(runs.start("pretrain"), tmp_path)
    with pytest.raises(ValueError, match="metric 'gain\\?'"):
        tracker.log(0, {"gain?": 1.0})
    with pytest.raises(ValueError, match="columns of one length"):
        tracker.table("a.json", {"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="does not stay below"):
        tracker.text("../a.txt", "")
    tracker.close()
    with pytest.raises(ValueError, match="journal of run"):
        runs.tracker(runs.start("other"), tmp_path)


def test_an_alias_stands_for_a_committed_folder_and_its_digest(runs, tmp_path):
    name = "english"
    run_id = runs.settled(None, "register")
    with pytest.raises(ConfigurationError, match=r"no model 'english' is registered \(registered: none\); run"):
        runs.registry.resolve(name, "champion")
    with pytest.raises(ConfigurationError, match="is not committed"):
        runs.registry.register(name, str(tmp_path), run_id, "champion", "1" * 64)
    with pytest.raises(ValueError, match=r"s3://\*\*\*@bucket"):
        runs.registry.register(name, "s3://user:password@bucket/model", run_id, "champion", "1" * 64)
    for number in "12":
        folder = tmp_path / f"model {number}"
        folder.mkdir()
        publish(folder, str(folder))
        made = runs.registry.register(name, str(folder), run_id, "champion", number * 64, {"steps": "3"})
        again = runs.registry.register(name, str(folder), run_id, "champion", number * 64)
        assert made == again == runs.registry.resolve(name, "champion")
        assert (made.version, made.uri, made.digest) == (number, f"file://{folder}", number * 64)
    assert runs.client.get_model_version(name, "1").source == f"file://{tmp_path}/model 1"
    with pytest.raises(ConfigurationError, match=r"no alias 'chief' \(aliases: champion -> version 2\)"):
        runs.registry.resolve(name, "chief")
    runs.client.delete_model_version_tag(name, "2", "edlm.digest")
    with pytest.raises(ConfigurationError, match=r"version 2 has no tag edlm\.digest"):
        runs.registry.resolve(name, "champion")


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "databricks", "sqlite:///mlflow.db", ""])
def test_an_address_that_not_every_worker_understands_is_refused(tmp_path, uri):
    with pytest.raises(ConfigurationError, match=r"tracking\.uri"):
        open_tracking(Tracking(uri=uri), str(tmp_path))


def test_remote_storage_needs_a_tracking_server():
    with pytest.raises(ConfigurationError, match=r"tracking\.uri: missing; storage at s3://bucket/runs"):
        open_tracking(Tracking(), "s3://bucket/runs")


def test_a_storage_in_which_mlflow_keeps_no_artifacts_needs_a_tracking_server(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no artifacts at az://box/runs/artifacts; .* a tracking server"):
        open_tracking(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"), "az://box/runs")


def test_a_damaged_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all, " * 100)
    with pytest.raises(ConfigurationError, match=r"mlflow\.db does not answer .*file is not a database"):
        open_tracking(Tracking(), str(tmp_path))


def test_asking_where_nothing_was_registered_makes_nothing(tmp_path):
    root = tmp_path / "runs"
    with pytest.raises(ConfigurationError, match=r"no model is registered, .*runs/mlflow\.db; run `make run`"):
        open_registry(Tracking(), str(root))
    elsewhere = tmp_path / "elsewhere.db"
    with pytest.raises(ConfigurationError, match=r"no database .*elsewhere\.db"):
        open_registry(Tracking(uri=f"sqlite:///{elsewhere}"), str(root))
    assert list(tmp_path.iterdir()) == []


def test_a_relative_root_is_refused():
    with pytest.raises(ConfigurationError, match="storage root 'runs' is relative"):
        open_tracking(Tracking(), "runs")


def test_a_deleted_experiment_is_named(runs, root):
    (experiment,) = runs.client.search_experiments(filter_string=f"name = '{runs.tracking.experiment}'")
    runs.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigurationError, match="was deleted in MLflow"):
        open_tracking(runs.tracking, root)


def test_a_stage_that_a_pipeline_was_killed_in_leaves_no_pipeline_running(runs, tmp_path):
    def tracked(name: str) -> RunRecord:
        record = runs.start(name)
        tracker = runs.tracker(record, tmp_path / name)
        tracker.begin()
        trackers.append(tracker)
        return record

    trackers: list[RunTracker] = []
    killed, finished, alive = tracked("killed"), tracked("finished"), tracked("alive")
    trackers[0].close()  # by the end of its process
    trackers[1].finish("FINISHED")
    end_abandoned(tmp_path)
    ship(runs.tracking, runs.root, tmp_path)
    trackers[2].close()
    statuses = [in_mlflow(runs, record).info.status for record in (killed, finished, alive)]
    assert statuses == ["KILLED", "FINISHED", "RUNNING"]


def test_the_id_of_a_run_that_mlflow_has_not_is_that_of_a_new_one(runs):
    record = runs.start("register")
    run_id = runs.settled(record, "register")
    assert runs.settled(record, "register") == run_id == in_mlflow(runs, record).info.run_id
    runs.client.delete_run(run_id)
    other = runs.settled(record, "register")
    assert other not in (run_id, runs.settled(None, "register"))
    assert runs.client.get_run(other).info.status == "FINISHED"


TOGETHER = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store  # once, for all processes
from cluster.config import Tracking
from cluster.tracking.runs import open_tracking
for attempt in range(3):
    root, begun = os.path.join(sys.argv[1], str(attempt)), []
    for _ in range(4):
        begun.append(os.fork())
        if begun[-1] == 0:
            open_tracking(Tracking(), root)
            os._exit(0)
    print([os.waitpid(process, 0)[1] for process in begun], sorted(os.listdir(root)), flush=True)
"""


@pytest.mark.chaos
def test_commands_that_begin_together_on_a_fresh_database_all_open_it(tmp_path):
    """MLflow's own migrations, in four processes at once, leave a database that none of them can open."""
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.stdout.splitlines(), done.stderr) == (["[0, 0, 0, 0] ['.mlflow.db.lock', 'mlflow.db']"] * 3, "")


@pytest.mark.cluster
def test_a_first_start_prints_nothing_also_after_one_that_was_killed_in_it(tmp_path):
    """MLflow alone prints some fifty lines about the tables of its new database."""
    (tmp_path / ".mlflow.db.new").write_text("half a database")
    done = subprocess.run(first_start(tmp_path), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def first_start(root: Path) -> list[str]:
    code = (
        "import sys; from cluster.config import Tracking; from cluster.tracking.runs import open_tracking\n"
        "open_tracking(Tracking(), sys.argv[1])"
    )
    return [sys.executable, "-c", code, str(root)]


def test_metrics_that_a_checkpoint_counts_with_are_on_the_disk_before_it_is(runs, tmp_path, monkeypatch):
    """A power cut takes what was written and not synced; here that of other threads, which ship, does not count."""
    tracker, on_disk, fsync = runs.tracker(runs.start("pretrain"), tmp_path), [], os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        if threading.current_thread() is threading.main_thread():
            on_disk.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())

    monkeypatch.setattr(os, "fsync", synced)
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    assert on_disk == []
    tracker.secure()
    assert on_disk[0].count(b'"metrics"') == 3
    tracker.close()
