"""The pipeline as a job on a cluster of three machines that fail: it ends as one that nothing disturbed.

python -m pytest -m chaos tests/chaos/test_three_nodes.py

Every machine is a network namespace of its own: Ray's head, its three nodes, the S3 store and the tracking server.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from edlm.file_systems import file_system
from edlm.storage import committed
from tests.chaos.network_namespaces import NetworkMachine, network
from tests.chaos.ray_on_machines import RayJob, RayOnMachines, wait_for
from tests.chaos.repeatable_metrics import is_repeatable
from tests.cluster.tracking.mlflow_server import MlflowServer, mlflow_server
from tests.s3_server import BUCKET, clients_of, environment, moto_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

STEPS, EVERY = 600, 100
ELASTIC_STEPS = 1800  # of which it takes the first hundreds with fewer workers, while a new machine starts
EXPERIMENT = f"""
name: nodes
data:
  corpus: {{kind: embedded}}
  tokenizer: {{kind: characters}}
  length: 16
  shares: {{validation: 0.1, judge: 0.2}}
denoiser: {{width: 16, layers: 1, heads: 2}}
pretrain: {{steps: {STEPS}, batch: 12, checkpoint_every: {EVERY}, log_every: 50, decay: constant}}
register: {{model: nodes, sampler: {{steps: 4, candidates: 1}}}}
# Room for one worker a node, and a replica beside it: the third node is spare.
cluster: {{workers: 2, cpus_per_worker: 0.6, start_timeout_seconds: 20}}
serving: {{cpus_per_replica: 0.2, max_replicas: 1}}
"""
STRUCK = rf"\[pretrain\] step {EVERY + 50}/"
END_SECONDS = 600.0
NOTICED_SECONDS = 90.0
TOLERANCE = 1e-3  # nats
Points = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class CampaignSite:
    """The machines of the campaign, and what runs on them."""

    cluster: RayOnMachines
    store: NetworkMachine
    tracking: NetworkMachine
    mlflow: MlflowServer
    experiment: Path

    def submit(self, name: str, *settings: str, place: str | None = None) -> RayJob:
        """Submit the pipeline, with a place in the store and an MLflow experiment of this name, or those of `place`."""
        place = name if place is None else place
        where = f"--storage s3://{BUCKET}/{place} --tracking.uri {self.mlflow.uri} --tracking.experiment {place}"
        return self.cluster.submit(name, f"workflows.pipeline {self.experiment} {where} {' '.join(settings)}")

    def machine_of_rank_0(self, name: str) -> NetworkMachine:
        """Return the machine that writes the metrics of this run."""
        journals = [
            (path.stat().st_mtime, node)
            for node in self.cluster.nodes
            for path in (node.folder / "home").rglob("pretrain-*/journal/entries.jsonl")
        ]
        assert journals, f"no node has a journal of {name}"
        return max(journals, key=lambda entry: entry[0])[1]

    def restore(self) -> None:
        """End all jobs, and mend what a case that failed has left: no case is to fail for another one."""
        for machine in (*self.cluster.nodes, self.store, self.tracking):
            machine.connect()
        self.cluster.stop_jobs()
        for node in self.cluster.nodes:
            if not self.cluster.runs_on(node):
                self.cluster.start_node(node)


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow."""

    name: str
    status: str
    metrics: Points
    """Of every metric each point, in order."""


@dataclass(frozen=True)
class Outcome:
    """What a pipeline leaves behind, as far as an undisturbed one leaves the same."""

    digests: dict[str, str]
    """SHA-256 of every stage's output, by its folder."""
    objects: set[str]
    """Keys in the store, below its place in it."""
    metrics: dict[str, Points]
    """Of every run in MLflow, and of every metric: each point, in order."""
    status: dict[str, str]


@pytest.fixture(scope="module")
def site() -> Iterator[CampaignSite]:
    folder = Path(tempfile.mkdtemp(prefix="edlm-", dir="/tmp"))  # a short path: the names of Ray's sockets are limited
    (folder / "nodes.yaml").write_text(EXPERIMENT)
    try:
        with (
            network(("head", "a", "b", "c", "store", "tracking"), folder) as machines,
            moto_server(folder, machines["store"].address, machines["store"].within) as s3,
            mlflow_server(folder, machines["tracking"].address, machines["tracking"].within) as mlflow,
            clients_of(s3.endpoint),
        ):
            nodes = [machines[name] for name in "abc"]
            cluster = RayOnMachines(machines["head"], nodes, environment(s3.endpoint))
            yield CampaignSite(cluster, machines["store"], machines["tracking"], mlflow, folder / "nodes.yaml")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def restored(site) -> Iterator[None]:
    yield
    site.restore()


@pytest.fixture(scope="module")
def undisturbed(site) -> Outcome:
    return outcome(site, site.submit("undisturbed"))


def outcome(site: CampaignSite, job: RayJob) -> Outcome:
    """Wait for the job, check that no process of it is left, and return what it left."""
    log = job.ended(END_SECONDS)
    assert "Traceback" not in log, log
    assert "stops early" not in log, log
    wait_for(lambda: not site.cluster.of_jobs(), 60.0, site.cluster.of_jobs)
    system, root = file_system(f"s3://{BUCKET}/{job.name}")
    objects = {without_launches(path.removeprefix(f"{root}/")) for path in system.find(root)}
    folders = {key.split("/")[1] for key in objects if key.endswith("/_COMMITTED.json")}
    markers = {name: committed(f"s3://{BUCKET}/{job.name}/nodes/{name}") for name in folders}
    metrics, status = {}, {}
    for run in tracked(site, job.name):
        assert run.name not in status, "a run is there twice"
        status[run.name], metrics[run.name] = run.status, run.metrics
    digests = {name: marker.digest for name, marker in markers.items() if marker is not None}
    return Outcome(digests, objects, metrics, status)


def tracked(site: CampaignSite, place: str) -> list[TrackedRun]:
    """Return every run of an MLflow experiment."""
    client = MlflowClient(site.mlflow.uri)
    experiment = client.get_experiment_by_name(place)
    assert experiment is not None
    return [
        TrackedRun(
            str(run.info.run_name),
            run.info.status,
            {
                metric: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
                for metric in run.data.metrics
            },
        )
        for run in client.search_runs([experiment.experiment_id])
    ]


def without_launches(key: str) -> str:
    """Return the key as it is for every launch: copies of metrics, and the last checkpoint, have names of theirs."""
    return re.sub(r"(/journal/).*|(/step-\d+)-\w+", r"\1\2", key)


def require_same(actual: Outcome, expected: Outcome) -> None:
    assert actual.digests == expected.digests, "weights differ"
    assert actual.objects == expected.objects
    assert actual.status == expected.status
    for run, metrics in expected.metrics.items():
        require_same_points(actual.metrics[run], metrics)


def require_same_points(actual: Points, expected: Points) -> None:
    assert actual.keys() == expected.keys()
    for name, points in expected.items():
        steps = sorted(step for step, _ in actual[name])
        assert steps == sorted(step for step, _ in points), f"{name}: points are lost, or there twice"
        if is_repeatable(name):
            assert sorted(actual[name]) == sorted(points), f"{name} differs"


def test_an_undisturbed_pipeline_leaves_what_it_should(undisturbed):
    assert {name.rpartition("-")[0] for name in undisturbed.digests} == {"prepare", "pretrain", "register"}
    assert undisturbed.status == dict.fromkeys(("nodes", "prepare", "pretrain", "register"), "FINISHED")
    steps = [step for step, _ in sorted(undisturbed.metrics["pretrain"]["loss_nats_per_token"])]
    assert steps == list(range(STEPS))


def killed(site: CampaignSite, job: RayJob) -> None:
    """A node loses its power and its disk: that of the first worker. Another one takes its place."""
    node = site.machine_of_rank_0(job.name)
    node.kill()
    shutil.rmtree(node.folder / "home")
    job.until("restart 1 of at most", NOTICED_SECONDS)
    site.cluster.start_node(node)


def cut_off(site: CampaignSite, job: RayJob) -> None:
    """A node is unreachable until the cluster has given it up; back again, its Ray ends, and is started anew."""
    node = site.machine_of_rank_0(job.name)
    node.cut_off()
    job.until(rf"a machine with workers is gone, or cannot be reached: {node.address}; restart 1", NOTICED_SECONDS)
    job.until("resumes after step", NOTICED_SECONDS)
    node.connect()
    wait_for(lambda: not site.cluster.runs_on(node), 60.0, node.processes)
    site.cluster.start_node(node)


def without_services(site: CampaignSite, _: RayJob) -> None:
    """The tracking server is unreachable for a minute, and the store for twenty seconds of it."""
    site.tracking.cut_off()
    time.sleep(20)
    site.store.cut_off()
    time.sleep(20)
    site.store.connect()
    time.sleep(20)
    site.tracking.connect()


@pytest.mark.parametrize("fault", [killed, cut_off, without_services])
def test_a_pipeline_that_is_struck_ends_as_one_that_is_not(
    site, undisturbed, fault: Callable[[CampaignSite, RayJob], None]
):
    job = site.submit(fault.__name__.replace("_", "-"))
    job.until(STRUCK, END_SECONDS)
    fault(site, job)
    require_same(outcome(site, job), undisturbed)
    if fault in (killed, cut_off):
        assert len(re.findall(r"restart \d of at most", job.log)) == 1, job.log


def test_three_workers_go_on_as_two_without_a_machine_and_as_three_with_a_new_one(site, undisturbed):
    job = site.submit("elastic", "--cluster.workers 3 --cluster.min_workers 2", f"--pretrain.steps {ELASTIC_STEPS}")
    job.until(STRUCK, END_SECONDS)
    node = site.machine_of_rank_0(job.name)
    node.kill()
    job.until("the cluster has room for 2 of 3 workers: trains with them", NOTICED_SECONDS)
    site.cluster.start_node(node)
    resumed = job.until(r"there is room for 3 workers: saved after step (\d+), goes on with them", END_SECONDS)
    actual = outcome(site, job)
    assert f"resumes after step {resumed[1]}\n" in job.log
    expected, losses = (sorted(one.metrics["pretrain"]["loss_nats_per_token"]) for one in (undisturbed, actual))
    assert [step for step, _ in losses] == list(range(ELASTIC_STEPS))
    assert dict(losses[:STEPS]) == pytest.approx(dict(expected), abs=TOLERANCE), "sums over other workers, no more"


def test_a_drained_machine_and_a_stopped_job_leave_a_last_checkpoint(site, undisturbed):
    job = site.submit("drained")
    job.until(STRUCK, END_SECONDS)
    node = site.machine_of_rank_0(job.name)
    site.cluster.drain(node)
    saved = job.until(r"a machine is drained: saved after step (\d+), goes on without it", NOTICED_SECONDS)
    job.until(rf"resumes after step {saved[1]}\n", NOTICED_SECONDS)
    assert node != site.machine_of_rank_0(job.name)
    site.cluster.stop_jobs()
    stopped = job.until(r"pretrain was stopped by SIGTERM and saved after step (\d+)", NOTICED_SECONDS)
    again = site.submit("stopped", place="drained")
    assert f"resumes after step {stopped[1]}\n" in again.ended(END_SECONDS)
    (run,) = (run for run in tracked(site, "drained") if run.name == "pretrain")
    require_same_points(run.metrics, undisturbed.metrics["pretrain"])
    for name, digest in undisturbed.digests.items():
        marker = committed(f"s3://{BUCKET}/drained/nodes/{name}")
        assert marker is not None
        assert marker.digest == digest, f"{name} differs"
    node.kill()  # nothing new would run there
    site.cluster.start_node(node)
