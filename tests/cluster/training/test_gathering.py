"""Beside a group that exchanges tensors of devices, workers exchange those of their hosts over gloo."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed
import torch.testing._internal.distributed.fake_pg  # registers the backend "fake"

from cluster.training.gathering import Gathering, host_group


def exchange(rank: int, store: Path, result: Connection) -> None:
    """Send what a worker gathers of [rank, 7], where the group of all exchanges nothing, as on a host without a GPU."""
    torch.distributed.init_process_group(
        "fake", store=torch.distributed.FileStore(str(store), 2), rank=rank, world_size=2
    )
    hosts = host_group()
    result.send(Gathering(2, hosts)(torch.tensor([float(rank), 7.0])).tolist())
    torch.distributed.destroy_process_group()


def test_numbers_of_hosts_reach_all_workers_whatever_connects_their_devices(tmp_path):
    processes = multiprocessing.get_context("spawn")
    pairs = [processes.Pipe(duplex=False) for _ in range(2)]
    workers = [
        processes.Process(target=exchange, args=(rank, tmp_path / "store", sending))
        for rank, (_, sending) in enumerate(pairs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [receiving.recv() for receiving, _ in pairs] == [[[0.0, 7.0], [1.0, 7.0]]] * 2
