"""Steps of DeepSpeed that wait for no device: `edlm.training.loop.fit` finds later what DeepSpeed asks for at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

INVALID = -1.0  # by which DeepSpeed marks a norm that is not finite


def ask_for_no_norm() -> None:
    """Let the optimizers of DeepSpeed (0.19.8) in this process step without a look at the norm of the gradient.

    They take a step whose gradient is not finite, too, which spoils the weights; `fit` raises NonFiniteLoss for it at
    the next log, and nothing is saved until then. A version that asks elsewhere would wait there.
    """
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    bf16_optimizer.is_invalid_grad_norm = stage_1_and_2.is_invalid_grad_norm = stage3.is_invalid_grad_norm = _is_never
    bf16_optimizer.clip_tensors_by_global_norm = _clip


def true_norm(norm: Tensor | float) -> Tensor:
    """Return a norm as the gradient has it: infinite where DeepSpeed marks it as INVALID."""
    given = torch.as_tensor(norm, dtype=torch.float64).detach()
    return torch.where(given == INVALID, torch.inf, given)


def _is_never(norm: Any) -> bool:  # noqa: ARG001
    return False


def _clip(
    input_tensors: Sequence[Tensor],
    max_norm: float,
    global_norm: Tensor,
    mpu: Any = None,  # noqa: ARG001
    eps: float = 1e-6,
) -> Tensor:
    """Scale the tensors by max_norm / norm, or by 1 if that is larger: DeepSpeed asks which it is."""
    factor = torch.clamp(max_norm / (global_norm + eps), max=1.0)
    for tensor in input_tensors:
        tensor.detach().mul_(factor)
    return global_norm
