"""Snapshots as several ranks write them."""

import torch

from edlm.checkpoints.snapshot_retention import snapshot_folder
from edlm.checkpoints.snapshot_writer import commit, write_part
from edlm.checkpoints.state_slices import StateSlice, shared_out, whole
from edlm.storage import join


def parts_of(state: dict[str, torch.Tensor], workers: int) -> list[list[StateSlice]]:
    slices = [whole(name, tensor) for name, tensor in state.items()]
    return [shared_out(slices, rank, workers) for rank in range(workers)]


def saved(uri: str, state: dict[str, torch.Tensor], workers: int, step: int = 1) -> str:
    snapshot = join(uri, snapshot_folder(step, "test"))
    for rank, part in enumerate(parts_of(state, workers)):
        write_part(snapshot, rank, part)
    commit(snapshot, step, "test", workers)
    return snapshot
