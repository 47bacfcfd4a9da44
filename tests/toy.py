"""A tiny objective with a frozen part and dropout, and its rows, for tests of training."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edlm.data.batches import Rows
from edlm.training.settings import Training

VOCABULARY, LENGTH, BATCH = 11, 6, 8


class Toy(nn.Module):
    """Predicts the next token from the last; what is frozen scales nothing but must not move."""

    def __init__(self, dropout: float = 0.1, fault: "Fault | None" = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.trained = nn.Sequential(
            nn.Embedding(VOCABULARY, 7), nn.Linear(7, 13), nn.GELU(), nn.Dropout(dropout), nn.Linear(13, VOCABULARY)
        )
        self.fault = fault

    def forward(self, rows: Rows):
        logits = self.trained(rows.tokens[:, :-1]).float()
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), rows.tokens[:, 1:].flatten(), reduction="none")
        by_row = nll.view(len(rows.tokens), -1).mean(dim=1)
        loss = by_row.mean()
        if self.fault is not None:
            loss = self.fault.strike(loss, rows)
        return loss, {"t": (rows.batch_index + 0.5) / rows.global_batch_size, "gain_nats": by_row.detach()}


@dataclass(frozen=True)
class Fault:
    """A fault at one step, on the worker that computes the row at batch index `index`."""

    step: int
    index: int

    def strike(self, loss: torch.Tensor, rows: Rows) -> torch.Tensor:
        return self.wrong(loss) if rows.step == self.step and self.index in rows.batch_index.tolist() else loss

    def wrong(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * torch.nan


class InfiniteGradient(Fault):
    """A finite loss whose gradient is not."""

    def wrong(self, loss: torch.Tensor) -> torch.Tensor:
        return loss + (loss - loss.detach()).sqrt()


@dataclass(frozen=True)
class Kill(Fault):
    """The worker dies, the first time."""

    mark: str

    def wrong(self, loss: torch.Tensor) -> torch.Tensor:
        if not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


class Hang(Kill):
    """The worker takes no further step, the first time, and stays alive outside of any collective."""

    def wrong(self, loss: torch.Tensor) -> torch.Tensor:
        if not Path(self.mark).exists():
            Path(self.mark).touch()
            time.sleep(600)
        return loss


class Stop(Kill):
    """The worker's process is stopped, the first time; the mark holds its number."""

    def wrong(self, loss: torch.Tensor) -> torch.Tensor:
        if not Path(self.mark).exists():
            Path(self.mark).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return loss


def rows(step: int, start: int, stop: int) -> Rows:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step))
    return Rows(tokens[start:stop], step, torch.arange(start, stop), BATCH)


def training(**changes) -> Training:
    settings = {
        "steps": 6, "batch": BATCH, "accumulation": 2, "learning_rate": 1e-2, "warmup_steps": 2, "clip": 0.3,
        "ema": 0.9, "weight_decay": 0.01, "checkpoint_every": 2,
    }  # fmt: skip
    return Training(**{**settings, **changes})
