"""Early stopping: the lowest validation loss so far, and whether a training ends before its last step."""

import math

import torch
from torch import Tensor

from edlm.training.interfaces import Engine
from edlm.training.settings import Training


def unvalidated() -> Tensor:
    """Return the `validation` of an engine before the first one."""
    return torch.tensor([math.inf, 0.0], dtype=torch.float64)


def finished(engine: Engine, training: Training) -> bool:
    """Return whether all steps are taken, or the validation loss has not improved for too long."""
    patience = training.early_stopping_patience
    return engine.step >= training.steps or (patience is not None and engine.validation[1].item() >= patience)


def record_validation(engine: Engine, loss: float, training: Training) -> None:
    """Update the engine's lowest validation loss, and its best weights if they are kept."""
    lowest, since = engine.validation.tolist()
    if loss < lowest and training.keep_best:
        engine.remember_best()
    values = [loss, 0.0] if loss < lowest else [lowest, since + 1]
    engine.validation = torch.tensor(values, dtype=torch.float64)
