"""Settings of the machines: how many workers, how they shard, where numbers and files go, how the service scales."""

import ipaddress
from typing import Literal

from edlm.config import ConfigurationError, NonNegative, NonNegativeFloat, Positive, PositiveFloat, config
from edlm.models.execution import Precision


@config
class Zero:
    """How DeepSpeed shards the training state (ZeRO: Rajbhandari et al. 2020)."""

    stage: Literal[0, 1, 2, 3] = 2
    """What is sharded: 0 nothing, 1 the optimizer's state, 2 the gradients too, 3 the weights too. In bfloat16 0 is
    taken for 1: DeepSpeed adds up gradients in float32 only where it shards."""
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
    """The endpoint: address, who may ask, the model it loads, what a replica takes on, and how replicas scale."""

    host: str = "127.0.0.1"
    port: Positive = 8000
    key_file: str | None = None
    """File with the hashes of API keys. None: nobody is asked for a key, and only this machine is listened to."""
    open: bool = False
    """Listen beyond this machine without a key file: whoever reaches the port may ask."""
    hosts: tuple[str, ...] | None = None
    """Names in the Host header answered beside `host` and loopback's. None: no others on loopback, any beyond."""
    alias: str = "champion"
    cache: str | None = None
    """Folder of verified copies of models, on each machine. None: in the folder for temporary files."""
    slots: Positive = 16
    """Texts that a replica fills at once."""
    waiting: NonNegative = 64
    """Texts that may wait for a place in a replica; more are refused with 429."""
    patience_seconds: PositiveFloat = 10.0
    """A text that would wait longer than this for its place is refused with 429."""
    request_timeout_seconds: PositiveFloat = 120.0
    """The longest deadline of a request, and its deadline where it names none."""
    max_work: Positive = 2**14
    """Passes of the denoiser that one request may cost."""
    work_per_second: PositiveFloat | None = None
    """Passes of the denoiser that each API key may use on average, in each replica. None: all there are."""
    burst_seconds: PositiveFloat = 60.0
    """A key that was idle may use so many seconds' worth at once."""
    drain_seconds: NonNegativeFloat | None = None
    """How long texts on their way may take when the endpoint is taken down. None: as long as the longest deadline."""
    max_queued_requests: Positive = 32
    """Requests that may wait in the proxy for a replica that takes them."""
    min_replicas: NonNegative = 1
    """0: without requests no replica runs, and the first request waits until one has started."""
    max_replicas: Positive = 2
    target_backlog_seconds: PositiveFloat = 2.0
    """Seconds of work that a replica has before it; more in the mean, and another replica is started."""
    upscale_delay_seconds: NonNegativeFloat = 10.0
    downscale_delay_seconds: NonNegativeFloat = 600.0
    downscale_to_zero_delay_seconds: NonNegativeFloat = 600.0
    """The last replica goes after this long without a request, where `min_replicas` is 0."""
    cpus_per_replica: PositiveFloat = 1.0
    gpus_per_replica: NonNegativeFloat = 0.0
    """A fraction shares a GPU among replicas."""
    precision: Precision = "float32"
    """Of the networks. bfloat16 is for GPUs and processors that compute it faster; on others it is slower."""
    compiled: bool = False
    """Compile the networks' layers before a replica, or a new model in it, answers: some seconds. On a processor that
    needs g++, on a GPU there are CUDA graphs with it."""

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ConfigurationError(
                f"serving.min_replicas: {self.min_replicas} is more than serving.max_replicas, {self.max_replicas}"
            )
        if self.gpus_per_replica > 1 and not self.gpus_per_replica.is_integer():
            raise ConfigurationError(
                f"serving.gpus_per_replica: {self.gpus_per_replica:g}; give a fraction below 1, or a whole number"
            )
        if self.key_file is None and not self.open and not is_loopback(self.host):
            raise ConfigurationError(
                f"serving.host: {self.host} is no loopback address, and no key would be asked for; name a "
                "serving.key_file, or say --serving.open that whoever reaches the port may ask"
            )


def require_asked(serving: Serving, listening: str) -> None:
    """Nothing where only this machine reaches `listening`, at which Serve listens for HTTP, or keys are asked for.

    ConfigurationError where strangers might ask, though `serving.host` says that they could not.
    """
    if serving.key_file is None and not serving.open and not is_loopback(listening):
        raise ConfigurationError(
            f"serving.host: {serving.host}, but Serve listens on {listening} (http_options.host, from when it was "
            "started), which is no loopback address, and no key would be asked for; name a serving.key_file, or say "
            f"serving.open that whoever reaches the port may ask, or `serve shutdown -y` and start it on {serving.host}"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine's own programs can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
