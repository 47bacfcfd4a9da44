"""Training of one process for a number of seconds, whatever the number of steps is then."""

import time
from pathlib import Path

from torch import Tensor

from edlm.data.batches import Batches
from edlm.data.token_file import TokenFile, read_summary
from edlm.training.interfaces import Engine, Objective
from edlm.training.local_engine import LocalEngine
from edlm.training.local_training import Log
from edlm.training.loop import fit
from edlm.training.settings import Training

WARM = 5  # steps that are not timed
ENDLESS = 10**9  # steps: the time ends a training
SEED = 0


def train_for(seconds: float, objective: Objective, data: Path, training: Training, log: Log) -> dict[str, Tensor]:
    """Train on a prepared folder until the time is over, more steps than are not timed, and return the weights.

    Raise NonFiniteLoss.
    """
    end = time.monotonic() + seconds
    engine = LocalEngine(objective, training)
    batches = Batches(TokenFile.open(data, "train"), read_summary(data).length, training.batch, SEED)

    def is_over() -> bool:
        return time.monotonic() > end and engine.step > 2 * WARM

    fit(engine, batches.rows, training, SEED, log, _unsaved, stop=is_over)
    return engine.export()


def _unsaved(engine: Engine) -> None:
    """Keep no checkpoint of minutes of training."""
