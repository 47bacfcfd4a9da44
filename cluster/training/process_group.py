"""Process group of Ray Train's workers, set up by functions of Ray that only the workers import.

`ray.train.torch` imports torch, which costs each process that does more than two seconds; Ray Train's controller, for
which the workers wait, needs nothing of it.
"""

import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

LEAVING_SECONDS = 30.0
log = logging.getLogger(__name__)


@dataclass
class ProcessGroup(BackendConfig):
    """Settings of torch's process group; `backend` is "gloo" or "nccl"."""

    backend: str
    timeout_seconds: int

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroupBackend

    @property
    def train_func_context(self) -> Any:
        return _on_own_device

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "timeout_seconds": self.timeout_seconds}


class _ProcessGroupBackend(Backend):
    share_cuda_visible_devices = True  # workers of a machine see the GPUs of all, as NCCL needs

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        address, port = worker_group.execute_single(0, get_address_and_port)
        settings = {"backend": backend_config.backend, "timeout_s": backend_config.timeout_seconds}
        size = len(worker_group)
        joining: list[Any] = [
            worker_group.execute_single_async(
                rank, _join, address, port, world_rank=rank, world_size=size, init_method="env://", **settings
            )
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        leaving: list[Any] = worker_group.execute_async(_leave, len(worker_group) > 1)
        try:
            ray.get(leaving, timeout=LEAVING_SECONDS)
        except GetTimeoutError:
            log.warning("a worker has not left the process group after %g seconds", LEAVING_SECONDS)


def _join(address: str, port: int, **settings: Any) -> None:
    """Join the process group, on a worker."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(**settings)


def _leave(destroy: bool) -> None:
    """Leave the process group, on a worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy)


def _on_own_device() -> AbstractContextManager[None]:
    """Return the context in which a worker trains, on its own GPU if it has one."""
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()
