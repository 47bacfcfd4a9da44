"""Where a worker's state lies: in memory, or in files of a folder, which are mapped into it."""

import os
from pathlib import Path
from unittest import mock

import torch

from cluster.training.deepspeed_engine import ZeroEngine


def in_memory(engine: ZeroEngine, folder: Path) -> list[str]:
    """Kinds of state, gradients and the copies for checkpoints, of which something is in no file of the folder."""
    assert engine.room is not None
    flats = {kind: list(flats.values()) for kind, flats in engine._kinds().items()}
    flats["gradient"] = [master.grad for master in engine._masters if master.grad is not None]
    flats["copy"] = engine.room([torch.ones(3), torch.ones(2, dtype=torch.float64)])
    assert all(flats[kind] for kind in ("weights", "gradient", "exp_avg", "exp_avg_sq", "ema", "best")), sorted(flats)
    mapped = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if str(folder) in line
    ]
    return [
        kind
        for kind, tensors in flats.items()
        if not all(any(low <= one.data_ptr() < high for low, high in mapped) for one in tensors)
    ]


def saves_what_a_disk_has_lost(engine: ZeroEngine) -> bool:
    """Whether the engine gives its state away although the disk reports that it has lost something."""
    with mock.patch.object(os, "fdatasync", side_effect=OSError(5, "Input/output error")):
        try:
            engine.part()
        except OSError:
            return False
    return True
