"""A real MLflow server that is away, or behind a proxy that refuses, delays or loses: all arrives that can, once."""

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import Tracking
from cluster.tracking import availability, shipping
from cluster.tracking.leftovers import LeftoverShipping
from cluster.tracking.runs import Runs, open_tracking
from cluster.tracking.upload import ship
from edlm.config import load
from tests.cluster.tracking.histories import Story, in_mlflow, steps_of
from tests.cluster.tracking.mlflow_server import MlflowServer, mlflow_server
from tests.faulty_proxy import FaultyProxy, ProxyFault, no_fault
from tests.paths import SMALLEST
from workflows.experiment import Experiment
from workflows.stage import StageContext
from workflows.stage_runner import RunningSession

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
FILES = ["config.yaml", "curves.txt", "samples.json"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr(availability, "_known", {})
    monkeypatch.setattr(shipping, "LONGEST_PAUSE_SECONDS", 2.0)
    with FaultyProxy(server.uri) as proxy:
        yield proxy


@pytest.fixture
def runs(proxy, tmp_path, request) -> Runs:
    tracking = Tracking(uri=proxy.uri, experiment=request.node.name, request_timeout_seconds=3.0)
    return open_tracking(tracking, str(tmp_path))


def train(runs: Runs, folder: Path, steps: int = 200):
    """The record of a run that reports what a training does."""
    parent = runs.start("pipeline")
    pipeline = runs.tracker(parent, folder.parent / "pipeline")
    record = runs.start("pretrain", parent=parent)
    tracker = runs.tracker(record, folder)
    tracker.begin()
    tracker.settings(Story())
    tracker.dataset("english", runs.root, "5" * 64, "training", {})
    for step in range(steps):
        tracker.log(step, {"loss": math.nan if step % 5 == 0 else float(step), "learning_rate": 1e-3})
    tracker.text("curves.txt", "drawn")
    tracker.table("samples.json", {"text": ["a"]})
    tracker.finish("FINISHED")
    pipeline.finish("FINISHED")
    return record


def arrived(runs: Runs, proxy: FaultyProxy, record, folder: Path, attempts: int = 5) -> list[str]:
    """Send what is left, check that all the numbers are there once and no run is there twice, and return the files."""
    for _ in range(attempts):
        try:
            ship(runs.tracking, runs.root, folder)
            break
        except ValueError:  # the server did not answer, in time or at all
            continue
    proxy.fault = no_fault
    run = in_mlflow(runs, record)
    assert run.info.status == "FINISHED"
    active = runs.client.search_runs([run.info.experiment_id])
    by_name = {other.info.run_name: other for other in active}
    assert sorted(other.info.run_name for other in active) == ["pipeline", "pretrain"]
    assert by_name["pretrain"].data.tags["mlflow.parentRunId"] == by_name["pipeline"].info.run_id
    assert {other.info.status for other in active} == {"FINISHED"}
    assert steps_of(runs, record) == steps_of(runs, record, "learning_rate")
    return sorted(file.path for file in runs.client.list_artifacts(run.info.run_id))


@pytest.mark.parametrize("status", [403, 413])
def test_refused_files_are_kept_aside_and_everything_else_arrives(runs, proxy, tmp_path, caplog, status):
    proxy.fault = lambda method, *_: ProxyFault(status=status) if method == "PUT" else None
    record = train(runs, tmp_path / "journal")
    assert arrived(runs, proxy, record, tmp_path) == []
    assert steps_of(runs, record) == list(range(200))
    assert sorted(path.name for path in (tmp_path / "journal" / "refused").iterdir()) == FILES
    assert sum("refuses the file" in line for line in caplog.messages) == 3
    assert ship(runs.tracking, runs.root, tmp_path) == 0


def test_slow_files_arrive_and_metrics_do_not_wait_for_them(runs, proxy, tmp_path):
    proxy.fault = lambda method, *_: ProxyFault(delay_seconds=8.0) if method == "PUT" else None
    record = train(runs, tmp_path / "journal")
    assert steps_of(runs, record) == list(range(200))
    assert in_mlflow(runs, record).info.status == "FINISHED"
    assert arrived(runs, proxy, record, tmp_path) == FILES


def test_a_server_that_takes_longer_than_the_timeout_for_everything_gets_everything_once(runs, proxy, tmp_path):
    proxy.fault = lambda method, *_: ProxyFault(delay_seconds=4.0) if method != "GET" else None
    record = train(runs, tmp_path / "journal")
    assert arrived(runs, proxy, record, tmp_path) == FILES
    assert steps_of(runs, record) == list(range(200))


def test_batches_that_are_too_large_are_split_and_inputs_that_are_refused_are_passed_over(
    runs, proxy, tmp_path, caplog
):
    def too_large(_method: str, path: str, size: int) -> ProxyFault | None:
        refused = "log-inputs" in path or ("log-batch" in path and size > 5000)
        return ProxyFault(status=413) if refused else None

    proxy.fault = too_large
    record = train(runs, tmp_path / "journal")
    assert arrived(runs, proxy, record, tmp_path) == FILES
    assert steps_of(runs, record) == list(range(200))
    refused = [line for line in caplog.messages if "MLflow refuses" in line]
    assert [line.split(" of run")[0] for line in refused] == [
        "MLflow refuses notes",
        "MLflow refuses the data set english",
    ]


@pytest.mark.parametrize("path", ["runs/create", "log-batch", "log-inputs", "runs/update", "set-tag", "artifacts/"])
def test_an_answer_that_is_lost_leads_to_nothing_twice(runs, proxy, tmp_path, path):
    lost: list[str] = []

    def lose(method: str, asked: str, _size: int) -> ProxyFault | None:
        if path not in asked or method == "GET" or len(lost) >= 2:
            return None
        lost.append(asked)
        return ProxyFault(lost=True)

    proxy.fault = lose
    record = train(runs, tmp_path / "journal")
    assert arrived(runs, proxy, record, tmp_path) == FILES
    assert steps_of(runs, record) == list(range(200))
    assert lost


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_stages_go_on_while_the_server_is_away_and_are_reported_when_it_is_back(server, runs, tmp_path, fault):
    session = RunningSession(load(Experiment, SMALLEST), str(tmp_path), runs, runs.start("smallest"))
    records = {}

    def work(work: StageContext) -> None:
        tracker = work.tracker()
        tracker.log(0, {"loss": 1.0})
        tracker.close()
        (work.folder / "output").write_text(work.stage)
        records[work.stage] = session.run_of(work.determined.folder)

    leftovers = LeftoverShipping(runs.tracking, runs.root, tmp_path / "smallest" / "work")
    leftovers.start()
    first = session.run_stage("prepare", {}, {}, ("workflows.prepare",), work)
    server.kill() if fault == signal.SIGKILL else server.signal(signal.SIGSTOP)
    second = session.run_stage("pretrain", {}, {"data": first}, ("workflows.prepare",), work)
    third = session.run_stage("evaluate", {}, {"model": second}, ("workflows.prepare",), work)
    assert session.history_of(third) == {"loss": {0: 1.0}}
    server.start() if fault == signal.SIGKILL else server.signal(signal.SIGCONT)
    leftovers.stop()
    ship(runs.tracking, runs.root, tmp_path)
    run_ids = {in_mlflow(runs, record).info.run_id for record in records.values()}
    (experiment_id,) = {in_mlflow(runs, record).info.experiment_id for record in records.values()}
    by_name = {run.info.run_name: run for run in runs.client.search_runs([experiment_id])}
    assert by_name.keys() == {"smallest", "prepare", "pretrain", "evaluate"}
    assert len(run_ids) == 3
    for stage, record in records.items():
        assert by_name[stage].info.status == "FINISHED"
        assert by_name[stage].data.tags["mlflow.parentRunId"] == by_name["smallest"].info.run_id
        assert steps_of(runs, record) == [0]
