"""What the workers of `test_workers` run: importable there, with faults that are given as plain data."""

import json
from collections.abc import Mapping

from torch import Tensor, nn

from tests import toy


def toy_objective(fault: tuple[str, int, int, str] | None) -> toy.Toy:
    """The toy on the 27 characters of prepared text; `fault` is (kind, step, batch index, mark)."""
    made = None
    if fault is not None:
        kind, step, index, mark = fault
        marked = {"kill": toy.Kill, "hang": toy.Hang, "leak": Leak}
        made = marked[kind](step, index, mark) if kind in marked else toy.Fault(step, index)
    objective = toy.Toy(fault=made)
    objective.trained[0] = nn.Embedding(27, 7)
    objective.trained[4] = nn.Linear(13, 27)
    return objective


class Leak(toy.Kill):
    """The worker ends with an error that holds a signed URL and a password, each time."""

    def wrong(self, loss: Tensor) -> Tensor:
        raise OSError(f"https://host/x?X-Amz-Signature={self.mark}, s3://me:{self.mark}@bucket, password={self.mark}")


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
