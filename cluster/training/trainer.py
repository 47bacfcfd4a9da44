"""Ray Train's trainer, without the actors that serve nothing here."""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Callbacks that each start an actor, which costs seconds of a core: of `ray.data`, whose datasets no worker reads, and
of the cleaner of abandoned workers, which needs the dashboard (`cluster.training.abandoned_workers` does not)."""


class Trainer(TorchTrainer):
    """`TorchTrainer` that starts the controller and the workers only."""

    def _create_default_callbacks(self) -> list:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]
