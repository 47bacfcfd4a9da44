"""Autoscaling by backlog in seconds of work, because the costs of requests differ a thousandfold."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

BACKLOG = "backlog_seconds"  # metric reported by each replica


class ByBacklog:
    """Ray Serve autoscaling policy that targets a backlog of `target_backlog_seconds` per replica.

    Until every running replica has reported its backlog, it targets `target_ongoing_requests` requests per replica.
    Replicas that have stopped do not count, although Serve may still hold their last reports.
    Serve itself applies the configured bounds and delays.
    """

    def __init__(self, target_backlog_seconds: float, target_ongoing_requests: float) -> None:
        self.target_backlog_seconds = target_backlog_seconds
        self.target_ongoing_requests = target_ongoing_requests

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the desired number of replicas; 0 if there is no work."""
        requests = context.total_num_requests
        backlogs = (context.aggregated_metrics or {}).get(BACKLOG, {})
        running = context.running_replicas
        if running and all(replica in backlogs for replica in running):
            desired = sum(backlogs[replica] for replica in running) / self.target_backlog_seconds
        else:
            desired = requests / self.target_ongoing_requests
        return max(math.ceil(desired), 1 if requests > 0 else 0), {}
