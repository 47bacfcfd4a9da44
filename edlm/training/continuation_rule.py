"""Rule of continuation: which finished trainings may take more steps, as if they had all been asked for at first."""

from collections.abc import Mapping
from typing import Any

from edlm.config import plain
from edlm.training.settings import Training

REPORTING = ("log_every", "checkpoint_every")  # settings without an influence on the weights


def obstacle(earlier: Mapping[str, Any], step: int, training: Training) -> str | None:
    """Return why the state after `step` steps of the `earlier` settings is no state of `training`; None if it is one.

    `earlier` are settings as `plain` returns them. The state is the same if nothing changed but the number of steps,
    and the learning rate of the steps taken does not depend on it: a constant one, or warm-up.
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
