"""A cluster of three machines that fail, and what a pipeline leaves that was submitted to it as a job.

Every machine is a network namespace of its own: Ray's head, its three nodes, the S3 store and the tracking server.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edlm.file_systems import file_system
from edlm.storage import committed
from tests.chaos.network_namespaces import NetworkMachine, network
from tests.chaos.ray_on_machines import RayJob, RayOnMachines, wait_for
from tests.chaos.tracked_runs import Points, TrackedRun, require_same_points, tracked
from tests.cluster.tracking.mlflow_server import MlflowServer, mlflow_server
from tests.s3_server import BUCKET, clients_of, environment, moto_server

STEPS, EVERY = 600, 100
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

    def tracked(self, place: str) -> list[TrackedRun]:
        """Return every run of a place in MLflow."""
        return tracked(self.mlflow.uri, place)


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


@contextmanager
def campaign_site() -> Iterator[CampaignSite]:
    """The machines with all that runs on them, until the context ends."""
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
    for run in site.tracked(job.name):
        assert run.name not in status, "a run is there twice"
        status[run.name], metrics[run.name] = run.status, run.metrics
    digests = {name: marker.digest for name, marker in markers.items() if marker is not None}
    return Outcome(digests, objects, metrics, status)


def without_launches(key: str) -> str:
    """Return the key as it is for every launch: copies of metrics, and the last checkpoint, have names of theirs."""
    return re.sub(r"(/journal/).*|(/step-\d+)-\w+", r"\1\2", key)


def require_same(actual: Outcome, expected: Outcome) -> None:
    assert actual.digests == expected.digests, "weights differ"
    assert actual.objects == expected.objects
    assert actual.status == expected.status
    for run, metrics in expected.metrics.items():
        require_same_points(actual.metrics[run], metrics)
