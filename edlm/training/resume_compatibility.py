"""Resume compatibility: which finished trainings may take more steps, as if all had been asked for at first."""

from collections.abc import Mapping
from typing import Any

from edlm.config import plain
from edlm.training.settings import Training

REPORTING = ("log_every", "checkpoint_every")  # settings without an influence on the weights


def incompatibility(earlier: Mapping[str, Any], step: int, training: Training) -> str | None:
    """Return why a checkpoint of `earlier` after `step` steps cannot resume as `training`; None if it can.

    `earlier` are settings as `plain` returns them. It can if nothing changed but the number of steps, and the learning
    rate of the steps taken does not depend on that number: a constant rate, or warm-up.
    """
    now = plain(training)
    names = [name for name in {**earlier, **now} if name not in (*REPORTING, "steps")]
    if changed := [name for name in names if earlier.get(name) != now.get(name)]:
        return "; ".join(f"{name} changed {earlier.get(name)} -> {now.get(name)}" for name in changed)
    if step > training.steps:
        return f"it has taken {step} steps, more than steps: {training.steps}"
    if earlier["steps"] != training.steps and training.decay != "constant" and step > training.warmup_steps:
        return (
            f"{training.decay} decay to step {earlier['steps']} ends there, and to step {training.steps} it has other "
            "learning rates before it (decay: constant can be continued)"
        )
    return None


def keeps_final_state(training: Training) -> bool:
    """Return whether the state after the last step can be of use to a longer training."""
    return training.decay == "constant"
