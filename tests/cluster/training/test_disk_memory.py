"""Tensors in files of a folder: they leave nothing, and a folder that cannot hold them is refused with what to do."""

import signal
import subprocess
import sys

import pytest
import torch

from cluster.training.disk_memory import DiskMemory
from edlm.config import ConfigurationError
from tests.paths import PROJECT

HOLDING = """
import sys, time, torch
from cluster.training.disk_memory import DiskMemory
held = DiskMemory(sys.argv[1]).zeros_like(torch.empty(2**20)).add_(1)
print(held.sum().item(), flush=True)
time.sleep(60)
"""


def test_a_tensor_is_as_in_memory_with_its_gradient(tmp_path):
    weight = torch.arange(6.0).view(2, 3).requires_grad_()
    weight.grad = torch.full((2, 3), 0.5)
    addresses = weight.data_ptr(), weight.grad.data_ptr()
    disk = DiskMemory(str(tmp_path))
    disk.take_over([weight])
    assert weight.data_ptr() != addresses[0]
    assert weight.grad.data_ptr() != addresses[1]
    torch.optim.SGD([weight], lr=2.0).step()
    disk.flush()
    assert weight.tolist() == [[-1, 0, 1], [2, 3, 4]]


def test_a_process_that_is_killed_leaves_no_file(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == f"{2.0**20}\n"
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_space_is_free_again_when_the_tensors_are_gone(tmp_path):
    disk = DiskMemory(str(tmp_path))
    held = disk.room([torch.ones(3), torch.ones(0), torch.ones(2, 2, dtype=torch.float64)])
    assert [one.tolist() for one in held] == [[0, 0, 0], [], [[0, 0], [0, 0]]]
    last = held.pop().add_(1)
    del held
    assert len(disk._files) == 1  # the last tensor is in it
    assert last.eq(1).all()
    del last
    assert len(disk._files) == 0


def test_a_folder_that_is_missing_or_not_to_be_written_to_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cluster\.zero\.offload_folder: /nowhere is no folder .* make it"):
        DiskMemory("/nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is no folder"):
        DiskMemory(str(tmp_path / "file"))


def test_what_no_disk_has_room_for_is_refused_with_its_size(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"offload_folder: .* no room for 4,611,686,018,427,387,904 bytes more"
    ):
        DiskMemory(str(tmp_path)).zeros_like(torch.empty(2**62, dtype=torch.uint8, device="meta"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_disk_has_lost_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    disk = DiskMemory(str(tmp_path))
    held = disk.zeros_like(torch.ones(3))
    held[:] = 1

    def lost(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", lost)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}'"):
        disk.flush()
