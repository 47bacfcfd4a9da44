"""When to run more replicas or fewer: by the seconds of work before them, for requests differ a thousandfold."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

BACKLOG = "backlog_seconds"  # what each replica tells of itself


class ByBacklog:
    """A policy of Ray Serve: as many replicas as share the work so that each has `target_backlog_seconds` before it.

    Where not every replica has told yet, as many as share the requests so that each has `target_ongoing_requests`.
    Serve itself keeps to the bounds and the delays that are configured.
    """

    def __init__(self, target_backlog_seconds: float, target_ongoing_requests: float) -> None:
        self.target_backlog_seconds = target_backlog_seconds
        self.target_ongoing_requests = target_ongoing_requests

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas wanted; 0 where nobody asks anything."""
        requests = context.total_num_requests
        told = (context.aggregated_metrics or {}).get(BACKLOG, {})
        if told and all(replica in told for replica in context.running_replicas):
            wanted = sum(told.values()) / self.target_backlog_seconds
        else:
            wanted = requests / self.target_ongoing_requests
        return max(math.ceil(wanted), 1 if requests > 0 else 0), {}
