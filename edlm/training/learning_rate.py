"""Learning-rate schedule: linear warm-up, then a constant rate or a cosine decay to 0."""

import math

from edlm.training.settings import Training


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of step 0, 1, ...: a function of the step alone, so checkpoints need not store it."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.decay == "constant":
        return training.learning_rate
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
