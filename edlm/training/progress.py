"""Progress lines of a training: what trains, and one every `log_every` steps and at every validation."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
from torch import nn

from edlm.models.execution import computes_bfloat16
from edlm.training.early_stopping import finished
from edlm.training.interfaces import Engine
from edlm.training.settings import Training
from edlm.training.validation import METRIC


class ProgressLines:
    """Reporter that formats the metrics of some steps as a line each, and passes the lines to `say`."""

    def __init__(self, name: str, training: Training, length: int, say: Callable[[str], None]) -> None:
        self._name, self._training, self._say = name, training, say
        self._tokens = training.batch * length
        self._since, self._steps = time.perf_counter(), 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Count the step, and report it if it is due: every `log_every` steps, at a validation and after the last."""
        self._steps += 1
        if (step + 1) % self._training.log_every == 0 or step + 1 == self._training.steps or METRIC in metrics:
            self._say(self._line(step, metrics))

    def stop(self, engine: Engine) -> None:
        """Report an early stop; nothing if all steps are taken, or a request ended the training before."""
        if engine.step < self._training.steps and finished(engine, self._training):
            self._say(
                f"[{self._name}] stops early after step {engine.step}: {self._training.early_stopping_patience} "
                f"validations in a row were not below {engine.validation[0]:.4f}"
            )

    def _line(self, step: int, metrics: Mapping[str, float]) -> str:
        training = self._training
        seconds_per_step = (time.perf_counter() - self._since) / self._steps
        remaining = timedelta(seconds=round(seconds_per_step * (training.steps - step - 1)))
        validation = f"  validation {metrics[METRIC]:.4f}" if METRIC in metrics else ""
        gain = f"  gain {metrics['gain_nats']:.2f} nats" if "gain_nats" in metrics else ""
        return (
            f"[{self._name}] step {step + 1}/{training.steps}  loss {metrics['loss_nats_per_token']:.4f}"
            f"{validation}{gain}  lr {metrics['learning_rate']:.1e}  |grad| {metrics['gradient_norm']:.2f}"
            f"  {self._tokens / seconds_per_step:,.0f} tokens/s  {remaining} left"
        )


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Return how many parameters of a module train, of how many; nothing if all do."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in module.parameters()]
    trained, every = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    return {} if trained == every else {"trained_parameters": trained, "parameters": every}


def say_emulation(name: str, training: Training, device: torch.device, say: Callable[[str], None]) -> None:
    """Report that a training in bfloat16 is on a device without instructions for it."""
    if training.precision == "bfloat16" and not computes_bfloat16(device):
        say(
            f"[{name}] precision: bfloat16 is emulated here, more slowly than float32: this {device.type} has no "
            "instructions for it; set precision: float32"
        )


def say_counts(name: str, counts: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Report how many parameters train, if not all do."""
    if counts:
        say(f"[{name}] trains {counts['trained_parameters']:,} of {counts['parameters']:,} parameters")
