"""Process that reads a pickled checkpoint without executing anything in it, and writes its weights as safetensors.

python -I pickled_weights.py SOURCE TARGET [--raw]

`workflows.convert` starts it, with torch, safetensors and the standard library alone. It prints one line of JSON, the
facts of the checkpoint or an `error`.
"""

import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONTAINERS = ("state_dict", "model")
"""Keys of the weights in training checkpoints: Lightning's (MDLM, EDLM, Duo, BD3-LM) and SEDD's."""
SETTINGS = ("omegaconf.", "transformers.", "tokenizers.", "lightning.", "pytorch_lightning.", "typing.")
"""Packages of what Lightning keeps beside the weights: the settings and the tokenizer. They are read as placeholders:
nothing of these packages is imported or called."""
DEFAULTS = "collections.defaultdict"
TYPES = {DEFAULTS, *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool"))}
BUFFER = "rotary_emb.inv_freq"  # the only tensor of the published networks that is no parameter, so not averaged
WAY_OUT = (
    "ask its author for safetensors; or, if you trust it, load it with the program that wrote it and save the weights "
    "alone: torch.save(model.state_dict(), 'weights.pt')"
)


class Refused(ValueError):
    """A file that is not read, with the reason and the way out."""


class Placeholder:
    """An object of another package, without its content."""

    def __new__(cls, *_: object, **__: object) -> "Placeholder":
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load(source: Path) -> Any:
    """Return the content of a checkpoint; raise Refused if it holds anything but weights, settings and a tokenizer."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except (ValueError, RuntimeError):  # no zip archive: torch's older format, or no checkpoint at all
        foreign = []
    code = [name for name in foreign if not name.startswith(SETTINGS) and name not in TYPES]
    if code:
        raise Refused(f"it holds {', '.join(sorted(code))}, and reading these would execute code; {WAY_OUT}")
    placeholders: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (_empty if name == DEFAULTS else type(name, (Placeholder,), {}), name) for name in foreign
    ]
    try:
        with torch.serialization.safe_globals(placeholders):
            return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = f"it is no checkpoint that torch.load(weights_only=True) reads ({_reason(error)})"
        raise Refused(f"{reason}; {WAY_OUT}") from error


def weights_of(content: Any, raw: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights in a checkpoint, averaged (EMA) if it has averages and not `raw`, and facts about them."""
    if not isinstance(content, Mapping):
        raise Refused(f"it holds a {type(content).__name__}, not tensors by name; {WAY_OUT}")
    key = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
    state = content if key is None else content[key]
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        found = ", ".join(others[:8]) or "nothing"
        raise Refused(f"beside tensors it holds {found}; weights are looked for under {' and '.join(CONTAINERS)}")
    tensors, facts = dict(state), {"weights": "raw", "tensors": len(state)}
    ema = content.get("ema") if key is not None else None
    if isinstance(ema, Mapping) and ema.get("shadow_params") and not raw:
        tensors |= averages(tensors, ema["shadow_params"])
        facts |= {"weights": "ema", "ema_decay": ema.get("decay")}
    # Copies: safetensors refuses tensors that share memory.
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, facts


def averages(tensors: Mapping[str, Tensor], shadow: list[Tensor]) -> dict[str, Tensor]:
    """Return the averages by name. They have none themselves: they are in the order of the parameters.

    They belong to all parameters, or to those of one part (`backbone.`, `ebm.`); Refused unless exactly one part fits.
    """
    names = [name for name in tensors if not name.endswith(BUFFER)]
    parts = [names, *([n for n in names if n.startswith(f"{part}.")] for part in {n.partition(".")[0] for n in names})]
    shapes = [value.shape for value in shadow]
    fitting = {tuple(part) for part in parts if [tensors[name].shape for name in part] == shapes}
    if len(fitting) != 1:
        raise Refused(
            f"its {len(shadow)} averages (EMA) fit {len(fitting)} parts of its {len(names)} parameters in order, and "
            "they have no names; give --raw to take the weights that are not averaged"
        )
    return dict(zip(fitting.pop(), shadow, strict=True))


def _empty(*_: object) -> dict:
    """Return an empty dictionary in place of one with default values, which the pickle then fills."""
    return {}


def _reason(error: BaseException) -> str:
    """Return the reason for torch's error, which torch replaces by the advice to execute the pickle."""
    text = str(error.__context__ or error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def main(source: str, target: str, *options: str) -> None:
    try:
        tensors, facts = weights_of(load(Path(source)), "--raw" in options)
    except Refused as refusal:
        print(json.dumps({"error": str(refusal)}))
        raise SystemExit(1) from None
    save_file(tensors, target, metadata={"format": "pt", "weights": facts["weights"]})
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
