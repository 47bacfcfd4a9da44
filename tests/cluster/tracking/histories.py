"""Settings that a run logs, and what MLflow has of its metrics."""

from cluster.config import Cluster
from cluster.tracking.runs import Runs
from edlm.config import config


@config
class Story:
    """A configuration with a secret, a long text and a list."""

    cluster: Cluster = Cluster()
    hf_token: str = "hf_do_not_tell"
    corpus: str = "s3://user:password@bucket/text"
    notes: str = "n" * 7000
    windows: tuple[tuple[float, float], ...] = ((0.0, 0.5), (0.5, 1.0))


def steps_of(runs: Runs, run_id: str, metric: str = "loss") -> list[int]:
    """Every point that MLflow has of a metric, a doubled one twice."""
    return sorted(point.step for point in runs.client.get_metric_history(run_id, metric))
