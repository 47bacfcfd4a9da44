"""The one process of `test_deepspeed_engine`: every objective, stage and precision on a device; curves as JSON.

python -m tests.gpu.zero_worker DEVICE PORT OUTPUT
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from edlm.training.settings import Training
from tests.cluster.training.zero_objectives import objectives, science_rows
from tests.cluster.training.zero_worker import curve

# On the CPU two real workers try all stages in float32 (tests/cluster/training/test_deepspeed_engine.py);
# here is what is left.
STAGES = {"cuda": (1, 2, 3), "cpu": (2,)}
PRECISIONS = {"cuda": ("float32", "bfloat16"), "cpu": ("bfloat16",)}
HALF = 2  # steps before the checkpoint


def training(precision: str) -> Training:
    return Training(steps=4, batch=8, accumulation=2, learning_rate=1e-3, precision=precision, checkpoint_every=HALF)


def cases(device: str) -> list[tuple[str, int, str]]:
    """(objective, stage, precision)."""
    names = objectives() if device == "cuda" else ("denoising", "next token", "conditional", "residual")
    return [(name, stage, precision) for name in names for stage in STAGES[device] for precision in PRECISIONS[device]]


def key(name: str, stage: int, precision: str) -> str:
    return f"{name}, stage {stage}, {precision}"


def resumed(name: str, stage: int, precision: str, device: torch.device) -> dict[str, list[list[float]]]:
    """The first steps, and those that another engine takes from their state."""
    settings = training(precision)
    begun = ZeroEngine(objectives()[name](), settings, Zero(stage=stage), device)
    first = curve(begun, settings, science_rows, halt=True)
    actual = begun.state()
    assert actual is not None
    again = ZeroEngine(objectives()[name](), settings, Zero(stage=stage), device)
    again.load(actual, HALF)
    return {"curve": [*first, *curve(again, settings, science_rows)]}


def main(device: str, port: str, output: str) -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    results = {}
    for case in cases(device):
        try:
            results[key(*case)] = resumed(*case, place)
        except Exception:  # one that fails leaves the others their figures
            results[key(*case)] = {"error": traceback.format_exc()}
        Path(output).write_text(json.dumps(results), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
