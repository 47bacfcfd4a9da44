"""Ray Train's trainer, without the actors that serve nothing here."""

from collections.abc import Callable
from typing import Any

from ray.train import Result, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.training.process_group import ProcessGroup

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Callbacks that each start an actor, which costs seconds of a core: of `ray.data`, whose datasets no worker reads, and
of the cleaner of abandoned workers, which needs the dashboard (`cluster.training.abandoned_workers` does not)."""


class Trainer(DataParallelTrainer):
    """Trainer that starts the controller and the workers only.

    `worker` is called without arguments on each worker; it alone knows what is trained, so that the controller need
    not import that. `autoscaled`: whether the cluster may get machines that an autoscaler has to be asked for.
    """

    def __init__(
        self,
        worker: Callable[[], None],
        process_group: ProcessGroup,
        scaling_config: ScalingConfig,
        run_config: RunConfig,
        autoscaled: bool,
    ) -> None:
        super().__init__(worker, backend_config=process_group, scaling_config=scaling_config, run_config=run_config)
        self._autoscaled = autoscaled

    def _create_default_callbacks(self) -> list:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        if not self._autoscaled:
            settings["scaling_policy"] = UnaidedScalingPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


class UnaidedScalingPolicy(FixedScalingPolicy):
    """Policy that does not start the actor through which Ray Train asks an autoscaler."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""
