"""Arguments of the model: what `--model_args` sets, and which generation settings of a task are understood."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from edlm.config import ConfigurationError, NonNegative, Positive, PositiveFloat, config, parse
from edlm.inference.settings import LEAST_SEED, MAX_SEED

Bound = Literal["sampler", "nelbo", "exact_order"]
MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given holds
# Generation settings of other models, with the values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1),
    "num_return_sequences": (None, 1),
}


@config
class ModelArguments:
    """Arguments of `--model edlm`, as in `--model_args uri=edlm-tiny@champion,draws=32`."""

    uri: str
    """Model: the folder or the URI of a bundle, or NAME@ALIAS of a registered model."""
    bound: Bound = "sampler"
    """What stands for log p. `sampler`: minus the bound of the T-step sampler; `nelbo`: minus that of continuous time,
    without an energy; `exact_order`: log p itself of ANOTHER DISTRIBUTION, the sampler that unmasks the most certain
    first in fixed counts."""
    draws: Annotated[int, pydantic.Field(ge=2)] = 16
    """Noise samples per text for the two bounds."""
    steps: Positive | None = None
    """T. None: as registered, also for the settings below."""
    candidates: NonNegative | None = None
    """k; 1 is plain diffusion, 0 draws exactly from a normalised energy."""
    energy: str | None = None
    """Name of the energy that chooses among candidates."""
    energy_temperature: PositiveFloat | None = None
    """tau of the importance weights exp(-E / tau)."""
    temperature: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] | None = None
    """Token temperature of generated texts. None: the task's; 0, the likeliest tokens, where it does not sample."""
    seed: Annotated[int, pydantic.Field(ge=LEAST_SEED, le=MAX_SEED)] = 0
    """Seed of every likelihood, and of the first generated text of a call; the i-th has `seed` + i."""
    max_gen_toks: Positive = 256
    """Tokens of a generated text, unless the task sets them."""
    batch_size: Positive = 1
    """Texts per pass where they are generated or replayed; a bound computes its draws together."""
    device: str = "cpu"
    """Device of the networks. The harness's command line gives cuda unless told otherwise; without one, the CPU."""


def model_arguments(given: Mapping[str, Any]) -> ModelArguments:
    """Return the arguments. Raise ConfigurationError for an unknown or a wrong one, naming it and what is allowed."""
    arguments = dict(given)
    size = arguments.get("batch_size")
    if isinstance(size, str):  # the harness's own option is a text, because others also take "auto"
        if not size.isdecimal():
            raise ConfigurationError(f"batch_size is {size!r}; give a number, the texts per pass of the network")
        arguments["batch_size"] = int(size)
    return parse(ModelArguments, arguments, "--model_args")


@dataclass(frozen=True)
class GenerationSettings:
    """What a task asks of a generated text."""

    max_tokens: int
    temperature: float
    stop: tuple[str, ...]


def generation_settings(asked: Mapping[str, Any], arguments: ModelArguments) -> GenerationSettings:
    """Return the settings of a request. Raise ConfigurationError for one that would change the text and is unknown."""
    asked = dict(asked)
    until, samples, temperature = (asked.pop(name, None) for name in ("until", "do_sample", "temperature"))
    lengths = [length for name in MAX_TOKENS if (length := asked.pop(name, None)) is not None]
    for name, value in asked.items():
        if value not in NEUTRAL.get(name, ()):
            neutral = f"; only {name} = {NEUTRAL[name][-1]} is" if name in NEUTRAL else ""
            known = ", ".join(("until", "do_sample", "temperature", *MAX_TOKENS))
            raise ConfigurationError(
                f"generation_kwargs.{name} = {value!r} is not understood{neutral}; this model takes {known}"
            )
    if arguments.temperature is not None:
        temperature = arguments.temperature
    elif samples is False or (samples is None and not temperature):
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0
    stops = () if until is None else (until,) if isinstance(until, str) else tuple(until)
    return GenerationSettings(int(lengths[0]) if lengths else arguments.max_gen_toks, float(temperature), stops)
