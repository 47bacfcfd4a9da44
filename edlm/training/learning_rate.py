"""Learning-rate schedule: linear warm-up, then a constant rate, a cosine decay, or a constant rate and a last decay."""

import math
from fractions import Fraction

from edlm.training.settings import Training


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of step 0, 1, ...: a function of the step alone, so checkpoints need not store it."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    stable = stable_steps(training)
    if training.decay == "constant" or step < stable:
        return training.learning_rate
    remaining = (training.steps - step) / max(1, training.steps - stable)
    if training.decay == "wsd":
        return training.learning_rate * remaining
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - remaining)))


def stable_steps(training: Training) -> int:
    """Return the number of first steps whose learning rate does not depend on `steps`, if these become more.

    All with a constant rate, those before the decay with `wsd`, and the warm-up with `cosine`.
    """
    if training.decay == "constant":
        return training.steps
    if training.decay == "cosine":
        return min(training.warmup_steps, training.steps)
    share = Fraction(str(training.decay_share))  # as it is written: 0.07 x 100 is above 7 in float64
    return training.steps - math.ceil(share * training.steps)
