"""How a training can end early: what its workers report, and the errors that its command makes of it."""

from dataclasses import dataclass
from typing import Any


class TrainingFailed(RuntimeError):
    """Failure of a training after all restarts; the message names the cause of the last."""


class TrainingStopped(SystemExit):
    """Exit of a command whose training was stopped by a signal; its status is the shell's for that signal."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(128 + signal)
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says of itself before it ends early."""

    rank: int
    where: str
    """Its machine and process."""
    cause: str
    """One line."""
    detail: str = ""
    """Stack or traceback."""
    error: Any = None
    """An exception that every restart would meet again, to be raised as it is."""
    hung: bool = False
    """Whether its training thread took no step."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.where}) {self.cause}"
