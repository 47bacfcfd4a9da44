"""Checks that a network taken from transformers computes what the library does, made once, as it is opened."""

from typing import Any, TypeVar

from torch import Tensor, nn

from edlm.config import ConfigurationError

N = TypeVar("N", bound=nn.Module)
TOLERANCE = 1e-4  # of float32 log-probabilities, relative to the largest plus 1


def rebuilt(opened: nn.Module, fresh: N) -> N:
    """Return `fresh`, built from the configuration alone as a model folder's is, with the opened network's weights."""
    fresh.load_state_dict(opened.state_dict())
    return fresh.eval().requires_grad_(False)


def require_close(named: str, model: Any, what: str, actual: Tensor, expected: Tensor) -> None:
    """Raise ConfigurationError, naming the architecture, unless log-probabilities agree, also on which are impossible.

    An architecture disagrees if it caps its logits, or if its buffers do not follow from its configuration.
    """
    possible = expected.isfinite()
    if actual.shape == expected.shape and (actual.isfinite() == possible).all():
        difference = (actual - expected)[possible].abs().max().item()
        if difference <= TOLERANCE * (1 + expected[possible].abs().max().item()):
            return
        problem = f"they differ by {difference:.2g} nats"
    else:
        problem = "they are impossible in one of the two alone"
    raise ConfigurationError(
        f"{named} cannot be used: {what} are not the logits of {type(model).__name__} itself ({problem}); only "
        "architectures whose logits are a linear function of their last features can be"
    )
