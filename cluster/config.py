"""Cluster settings: workers, sharding, locations of metrics and artifacts, serving and autoscaling."""

import ipaddress
import os
from typing import Literal

from cluster.model_sources import require_prefixes
from edlm.checkpoints.snapshot_retention import Retention
from edlm.config import ConfigurationError, NonNegative, NonNegativeFloat, Positive, PositiveFloat, config
from edlm.models.execution import Precision

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job supervisor for the entrypoint


@config
class Zero:
    """Sharding of the training state by DeepSpeed (ZeRO: Rajbhandari et al. 2020)."""

    stage: Literal[0, 1, 2, 3] = 2
    """What is sharded: 0 nothing, 1 the optimizer state, 2 also the gradients, 3 also the weights. In bfloat16, 0 is
    treated as 1: DeepSpeed accumulates gradients in float32 only when it shards."""
    offload: bool = False
    """Keep the optimizer state (and at stage 3 the weights) in host memory; not at stage 0."""
    offload_folder: str | None = None
    """Folder of each machine on a local disk, best an NVMe one: what `offload` keeps of the optimizer at stage 3 is in
    files there, of which host memory holds what fits. They have no names and end with their worker. None: all is in
    host memory."""

    def __post_init__(self) -> None:
        if self.offload and self.stage == 0:
            raise ConfigurationError(
                "cluster.zero.offload: true at stage 0, where DeepSpeed keeps the optimizer state on the device; set "
                "cluster.zero.stage to 1, 2 or 3, or offload: false"
            )
        if self.offload_folder is not None and not (self.offload and self.stage == 3):
            raise ConfigurationError(
                f"cluster.zero.offload_folder: {self.offload_folder} at stage {self.stage} with offload: "
                f"{str(self.offload).lower()}; it is for stage 3 with offload: true. Set both, or leave the folder out"
            )


@config
class Cluster:
    """Ray cluster, and the workers that a training stage requests."""

    address: str | None = None
    """Address of the Ray cluster, host:port. None: the cluster of the enclosing Ray job, or else a private local Ray
    while the command runs."""
    workers: Positive = 2
    """Processes of a training stage; they share the rows of every step, and the training state as `zero` says."""
    min_workers: Positive | None = None
    """Fewest workers that a training goes on with while the cluster has no room for all `workers`; it waits
    `start_timeout_seconds` for them. None: it waits for all. Rows, noise and batch of a step stay the same; sizes among
    which a batch does not divide are passed over."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPU cores reserved per worker and per task of the evaluation; torch uses as many threads, at least one."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs reserved per worker and per task of the evaluation. 0: they compute on the CPU."""
    zero: Zero = Zero()
    """Sharding of the training state over the workers."""
    restarts: NonNegative = 3
    """Maximum restarts of a training from its last checkpoint before the stage fails."""
    recovery_timeout_seconds: PositiveFloat = 1800.0
    """Time that a training whose machine was lost or drained waits for the workers' resources, before it fails."""
    checkpoints: Retention = Retention()
    """Retention of the checkpoints of a training that goes on."""
    checkpoint_patience_seconds: PositiveFloat = 600.0
    """Time for which writing a checkpoint is tried again while the storage refuses, or waits for other workers, before
    the training fails; it goes on meanwhile, up to the next checkpoint."""
    start_timeout_seconds: PositiveFloat = 60.0
    """Timeout for the workers' resources; the error names the missing ones."""
    collective_timeout_seconds: PositiveFloat = 600.0
    """Timeout of a worker in a collective, after which training is restarted. A worker that takes no step for four
    fifths of it, or for which the others wait so long, is named with where it stands, and ended."""
    transfer_timeout_seconds: PositiveFloat = 3600.0
    """Timeout of a worker for what is no step, while no other waits for it: its network, the checkpoint that it resumes
    from, its copy of the data, the result. After it the worker is named with where it stands, and ended."""

    def __post_init__(self) -> None:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ConfigurationError(
                f"cluster.min_workers: {self.min_workers} is more than cluster.workers, {self.workers}"
            )


@config
class Tracking:
    """Location of the MLflow runs and the model registry."""

    uri: str | None = None
    """URI of the tracking server (http or https) or database. None: an SQLite file under the storage root."""
    experiment: str = "edlm"
    """Name of the MLflow experiment that holds the runs; it is created if there is none."""
    request_timeout_seconds: PositiveFloat = 5.0
    """Timeout of one request to the tracking server. A training does not wait for the server: metrics go to a journal
    first."""


@config
class Serving:
    """HTTP endpoint: address, access, model, limits of a replica, and autoscaling."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback, `key_file` or `open` is required."""
    port: Positive = 8000
    """TCP port to listen on."""
    key_file: str | None = None
    """File of API key hashes. None: no key is required, and only loopback is listened on, unless `open` is set."""
    open: bool = False
    """Listen beyond this machine without a key file: any client that reaches the port may send requests."""
    hosts: tuple[str, ...] | None = None
    """Accepted Host header names besides `host` and loopback. None: no others on loopback, any beyond it."""
    alias: str = "champion"
    """Alias in the model registry. The register stage sets it, and the endpoint serves the version that it refers to
    when it is deployed."""
    cache: str | None = None
    """Folder of verified model copies on each machine, with mode 0700. None: EDLM_CACHE, else `cache` in a local
    EDLM_HOME, else ~/.cache/edlm."""
    sources: tuple[str, ...] = ("file://", "s3://", "s3a://", "gs://", "az://", "abfs://")
    """Places from which replicas load models, whatever the registry names: schemes, or folders such as
    s3://bucket/models."""
    slots: Positive = 16
    """Sequences that a replica runs at once."""
    waiting: NonNegative = 64
    """Sequences that may wait for a slot of a replica; more are rejected with 429."""
    patience_seconds: PositiveFloat = 10.0
    """A sequence whose estimated wait for a slot is longer than this is rejected with 429."""
    request_timeout_seconds: PositiveFloat = 120.0
    """Maximum deadline of a request, and the default if it names none."""
    keep_alive_seconds: PositiveFloat = 15.0
    """Longest silence of a stream, after which a comment is sent, so that no proxy takes the connection for dead."""
    max_work: Positive = 2**14
    """Maximum cost of one request, in denoiser passes."""
    work_per_second: PositiveFloat | None = None
    """Average rate limit per API key and replica, in denoiser passes per second. None: unlimited."""
    burst_seconds: PositiveFloat = 60.0
    """Burst of a key that was idle, in seconds of its average rate."""
    drain_seconds: NonNegativeFloat | None = None
    """Time for accepted sequences to finish when the endpoint is taken down. None: the longest deadline."""
    max_queued_requests: Positive = 32
    """Requests that may queue in the proxy for an available replica."""
    min_replicas: NonNegative = 1
    """Minimum number of replicas. 0: none runs without requests, and the first request waits until one has started."""
    max_replicas: Positive = 2
    """Maximum number of replicas; autoscaling stays between `min_replicas` and this."""
    target_backlog_seconds: PositiveFloat = 2.0
    """Target backlog per replica, in seconds of work; if the mean exceeds it, another replica is started."""
    upscale_delay_seconds: NonNegativeFloat = 10.0
    """Time that the backlog must exceed its target before a replica is added."""
    downscale_delay_seconds: NonNegativeFloat = 600.0
    """Time that the backlog must stay below its target before a replica is removed."""
    downscale_to_zero_delay_seconds: NonNegativeFloat = 600.0
    """Time without a request after which the last replica is stopped, if `min_replicas` is 0."""
    cpus_per_replica: PositiveFloat = 1.0
    """CPU cores reserved per replica; torch uses as many threads, at least one."""
    gpus_per_replica: NonNegativeFloat = 0.0
    """GPUs reserved per replica; 0: the replica computes on the CPU. A fraction shares one GPU among replicas."""
    precision: Precision = "float32"
    """Precision of the networks. bfloat16 is for GPUs and CPUs that compute it faster; on others it is slower."""
    compiled: bool = False
    """Compile the blocks of the networks before a replica, or a new model in it, answers; takes some seconds. Needs g++
    on a CPU, Triton and a C compiler on a GPU, where CUDA graphs are recorded."""

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ConfigurationError(
                f"serving.min_replicas: {self.min_replicas} is more than serving.max_replicas, {self.max_replicas}"
            )
        require_prefixes(self.sources)
        if self.gpus_per_replica > 1 and not self.gpus_per_replica.is_integer():
            raise ConfigurationError(
                f"serving.gpus_per_replica: {self.gpus_per_replica:g}; give a fraction below 1, or a whole number"
            )
        if self.key_file is None and not self.open and not is_loopback(self.host):
            raise ConfigurationError(
                f"serving.host: {self.host} is not a loopback address, and no API key would be required; set "
                "serving.key_file, or set --serving.open to serve any client that reaches the port"
            )


def require_asked(serving: Serving, listening: str) -> None:
    """Raise ConfigurationError if remote clients can reach `listening` without a key, unless `serving.open` is set.

    `listening` is the address of Serve's HTTP proxy, which may be public although `serving.host` is loopback.
    """
    if serving.key_file is None and not serving.open and not is_loopback(listening):
        raise ConfigurationError(
            f"serving.host: {serving.host}, but Serve listens on {listening} (http_options.host, from when it was "
            "started), which is not a loopback address, and no API key would be required; set serving.key_file, or say "
            "serving.open to serve any client that reaches the port, or run `serve shutdown -y` and start it on "
            f"{serving.host}"
        )


def is_loopback(host: str) -> bool:
    """Return whether `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_private(cluster: Cluster) -> bool:
    """Return whether this command runs its own Ray."""
    return cluster.address is None and IN_A_JOB not in os.environ
