"""What the workers of `test_workers` run: importable there, with faults that are given as plain data."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tests import toy


def toy_objective(fault: tuple[str, int, int, str] | None) -> toy.Toy:
    """The toy on the 27 characters of prepared text; `fault` is (kind, step, batch index, mark)."""
    made = None
    if fault is not None:
        kind, step, index, mark = fault
        marked = {"kill": toy.Kill, "hang": toy.Hang, "stop": toy.Stop, "leak": Leak, "hoard": Hoard}
        made = marked[kind](step, index, mark) if kind in marked else toy.Fault(step, index)
        if kind == "hang at the start" and torch.distributed.get_rank() == 1 and not Path(mark).exists():
            Path(mark).touch()
            time.sleep(600)
    objective = toy.Toy(fault=made)
    objective.trained[0] = nn.Embedding(27, 7)
    objective.trained[4] = nn.Linear(13, 27)
    return objective


class Leak(toy.Kill):
    """The worker ends with an error that holds a signed URL and a password, each time."""

    def wrong(self, loss: Tensor) -> Tensor:
        raise OSError(f"https://host/x?X-Amz-Signature={self.mark}, s3://me:{self.mark}@bucket, password={self.mark}")


class Hoard(toy.Kill):
    """The worker takes memory, each time, until it is killed, or has 8 GiB."""

    def wrong(self, loss: Tensor) -> Tensor:
        taken = []
        while len(taken) < 128:
            taken.append(b"1" * 2**26)
            time.sleep(0.03)
        return loss


class FileTracker:
    """A `Tracker` that appends each step to a file."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def secure(self) -> None:
        """The file is on a disk that all share."""

    def close(self) -> None:
        self._file.close()
