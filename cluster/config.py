"""Settings of the machines: how many workers, how they shard, where numbers and files go, how the service scales."""

from typing import Literal

from edlm.config import NonNegative, NonNegativeFloat, Positive, PositiveFloat, config


@config
class Zero:
    """How DeepSpeed shards the training state (ZeRO: Rajbhandari et al. 2020)."""

    stage: Literal[0, 1, 2, 3] = 2
    offload: bool = False
    """Keep the optimizer state in the host's memory (and the weights too, at stage 3)."""


@config
class Cluster:
    """The Ray cluster and the workers that a training stage asks for."""

    address: str | None = None
    """None: a private local Ray, while the command runs; inside a Ray job, the job's cluster. Else host:port."""
    workers: Positive = 2
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    zero: Zero = Zero()
    restarts: NonNegative = 3
    """How often the worker group is restarted from the last checkpoint before the stage fails."""
    start_timeout_seconds: PositiveFloat = 60.0
    """How long to wait for the workers' resources before failing with their names."""
    collective_timeout_seconds: PositiveFloat = 600.0
    """How long a worker may wait for its peers in a collective before the group is restarted."""


@config
class Tracking:
    """Where MLflow keeps runs and the model registry."""

    uri: str | None = None
    """None: an SQLite file under the storage root. Else a database or http(s) URI."""
    experiment: str = "edlm"
    request_timeout_seconds: PositiveFloat = 5.0


@config
class Serving:
    """The endpoint: address, the model it loads, and how replicas scale."""

    host: str = "127.0.0.1"
    port: Positive = 8000
    alias: str = "champion"
    min_replicas: NonNegative = 1
    max_replicas: Positive = 2
    target_ongoing_requests: PositiveFloat = 4.0
    max_ongoing_requests: Positive = 16
    max_queued_requests: Positive = 32
    cpus_per_replica: PositiveFloat = 1.0
    gpus_per_replica: NonNegativeFloat = 0.0
    upscale_delay_seconds: PositiveFloat = 10.0
    downscale_delay_seconds: PositiveFloat = 600.0
    request_timeout_seconds: PositiveFloat = 120.0
