"""Training checkpoints as Lightning writes them, and a pickle that executes something."""

import os
from collections import OrderedDict
from pathlib import Path

from tests.published.checkpoints import published

ROTARY = "backbone.rotary_emb.inv_freq"


class Executes:
    """On being unpickled, makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def lightning(settings: object = None) -> dict:
    """A training checkpoint with averages, twice the weights, and what Lightning keeps beside them."""
    state = OrderedDict((f"backbone.{name}", tensor) for name, tensor in published("denoiser", 1).items())
    shadow = [2 * tensor for name, tensor in state.items() if name != ROTARY]
    return {
        "state_dict": state,
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow},
        "hyper_parameters": {"config": settings},
        "global_step": 7,
    }
