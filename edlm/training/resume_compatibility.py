"""Resume compatibility: which finished trainings may take more steps, as if all had been asked for at first."""

from collections.abc import Mapping
from typing import Any

from edlm.config import parse, plain
from edlm.training.learning_rate import stable_steps
from edlm.training.settings import Training

REPORTING = ("log_every", "checkpoint_every", "activation_checkpointing", "profile")
"""Settings without an influence on the weights."""


def incompatibility(earlier: Mapping[str, Any], step: int, training: Training) -> str | None:
    """Return why a checkpoint of `earlier` after `step` steps cannot resume as `training`; None if it can.

    `earlier` are settings as `plain` returns them, perhaps of a version that had fewer. It can if nothing changed but
    the number of steps, and the learning rate of the steps taken does not depend on that number: a constant rate,
    warm-up, or the steps of `wsd` before its decay.
    """
    before = parse(Training, dict(earlier))
    then, now = plain(before), plain(training)
    names = [name for name in now if name not in (*REPORTING, "steps")]
    if changed := [name for name in names if then[name] != now[name]]:
        return "; ".join(f"{name} changed {then[name]} -> {now[name]}" for name in changed)
    if step > training.steps:
        return f"it has taken {step} steps, more than steps: {training.steps}"
    if before.steps != training.steps and step > min(stable_steps(before), stable_steps(training)):
        return (
            f"{training.decay} decay to step {before.steps} ends there, and to step {training.steps} it has other "
            "learning rates before it (decay: constant and wsd can be continued)"
        )
    return None


def continuable_step(training: Training, taken: int) -> int | None:
    """Return after which of the steps taken the state of a finished training is kept, for a longer one; None: no state.

    With `wsd` it is the state before the decay: continued, the rate stays high until the decay of the longer training.
    """
    return None if training.decay == "cosine" else min(taken, stable_steps(training))
