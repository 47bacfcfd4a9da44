"""Elastic range: with how many workers a training goes on where its cluster has no room for all of them.

Ray Train's own range (`ScalingConfig(num_workers=(min, max))`) is not used: it takes sizes that a batch does not divide
among, still counts a machine that is gone, and grows by ending the workers without a checkpoint.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray._private.state import available_resources_per_node, total_resources_per_node

from cluster.config import Cluster
from cluster.runtime.ray_connection import require_resources
from edlm.training.settings import Training, share

POLL_SECONDS = 0.5
ROUNDING = 1e-6  # of resources, which are sums of fractions


@dataclass
class ElasticRange:
    """The numbers of workers of one training, all of which a batch divides among, and the present one."""

    what: str
    """Of whom errors speak."""
    sizes: Sequence[int]
    """Largest first; one: not elastic."""
    needed: Mapping[str, float]
    """Resources of a worker."""
    alone: bool
    """Whether nothing else runs on the cluster, and no machine joins it."""
    patience_seconds: float
    """For room for the largest, before fewer are taken."""
    size: int = 0

    def settle(self, seconds: float) -> None:
        """Set `size` to the largest for which there is room; wait for the smallest for up to `seconds`.

        Raise ConfigurationError that names the missing resources, if there is none then.
        """
        patience = 0.0 if self.alone else min(seconds, self.patience_seconds)
        began = time.monotonic()
        while len(self.sizes) > 1 and (waited := time.monotonic() - began) < max(seconds, POLL_SECONDS):
            fitting = self._fitting(room(self.needed, total=self.alone))
            if fitting is not None and (fitting == self.sizes[0] or waited >= patience):
                self.size = fitting
                return
            time.sleep(POLL_SECONDS)
        left = max(0.0, seconds - (time.monotonic() - began))
        least = self.sizes[-1]
        require_resources(self.what, {name: amount * least for name, amount in self.needed.items()}, left)
        self.size = least

    def growth(self) -> int | None:
        """Return with how many workers more than now the cluster has room to go on; None if it has not."""
        if self.alone or self.size == self.sizes[0]:
            return None
        larger = self._fitting(self.size + room(self.needed))
        return larger if larger is not None and larger > self.size else None

    def _fitting(self, workers: int) -> int | None:
        return next((size for size in self.sizes if size <= workers), None)


def elastic_range(
    name: str, training: Training, cluster: Cluster, needed: Mapping[str, float], alone: bool
) -> ElasticRange:
    """Return the range that the settings ask for.

    Raise ConfigurationError if a batch does not divide among all workers.
    """
    share(training, cluster.workers)
    least = cluster.workers if cluster.min_workers is None else cluster.min_workers
    sizes = [
        size for size in range(cluster.workers, least - 1, -1) if training.batch % (size * training.accumulation) == 0
    ]
    what = f"{sizes[-1]} workers of {name}"
    return ElasticRange(what, sizes, needed, alone, cluster.start_timeout_seconds)


def room(needed: Mapping[str, float], total: bool = False) -> int:
    """Return for how many workers, each on one machine, the cluster has free resources; `total`: has any at all."""
    by_node = (total_resources_per_node if total else available_resources_per_node)()
    return sum(
        min(int(node.get(name, 0.0) / amount + ROUNDING) for name, amount in needed.items())
        for node in by_node.values()
    )
