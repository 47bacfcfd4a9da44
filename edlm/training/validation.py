"""Validation loss: the objective's loss on fixed rows of the validation split, with fixed noise."""

from pathlib import Path

import torch
from torch import Tensor

from edlm.config import ConfigurationError
from edlm.data.batches import Rows, whole_rows
from edlm.data.token_file import TokenFile, read_summary
from edlm.training.interfaces import Engine
from edlm.training.settings import Training

METRIC = "validation_nats_per_token"
STEP = -1  # of the keys of the noise: no training step has it


def validation_rows(data: Path, training: Training) -> Rows | None:
    """Return the rows that every validation is computed on; None if the training has no validation.

    Raise ConfigurationError if the prepared folder `data` has no validation split.
    """
    if training.validate_every is None:
        return None
    summary = read_summary(data)
    if "validation" not in summary.splits:
        raise ConfigurationError(
            f"validate_every is {training.validate_every}, but {data} has no validation split, only "
            f"{', '.join(summary.splits)}; prepare it with shares.validation or a validation corpus"
        )
    return whole_rows(TokenFile.open(data, "validation"), summary.length, training.validation_rows, STEP)


def validation_losses(engine: Engine, rows: Rows, size: int) -> tuple[Tensor, float]:
    """Return the losses of all ranks' batches [world_size, batches] and the mean loss of the rows; all ranks call it.

    The ranks divide the rows into batches of `size`. The noise is a function of the row, so the mean does not depend on
    the number of ranks, up to rounding.
    """
    count = len(rows.tokens)
    starts = range(0, count, size * engine.world_size)
    losses = []
    with engine.evaluating() as loss_of:
        for start in starts:
            first = start + engine.rank * size
            part = rows.slice(first, first + size)
            # A rank without rows computes one that does not count: every rank must make the same calls.
            losses.append(loss_of(part if len(part.tokens) else rows.slice(0, 1)).float())
    gathered = engine.gather(torch.stack(losses)).double().cpu()
    ranks = range(engine.world_size)
    weights = [[len(rows.tokens[start + rank * size :][:size]) for start in starts] for rank in ranks]
    return gathered, ((gathered * torch.tensor(weights)).sum() / count).item()
