"""Architectures of the transformers library as plain values: recorded in model folders, and built without the hub."""

import json
from collections.abc import Mapping
from typing import Any

import pydantic
import torch

from edlm.config import ConfigurationError
from edlm.huggingface.source import library
from edlm.models.float32_summed_layers import sum_in_float32

Architecture = Mapping[str, pydantic.JsonValue]


def recorded(configuration: Any) -> dict[str, pydantic.JsonValue]:
    """Return the whole configuration of a network, as in config.json, without the path that it was read from."""
    values = json.loads(configuration.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name != "_name_or_path"}


def built(auto_class: str, architecture: Architecture) -> Any:
    """Build a network in float32 with fresh weights, by one of the library's classes `AutoModelFor...`.

    Raise ConfigurationError for an architecture that the installed library does not have, or not with this head.
    """
    transformers, values = library(), dict(architecture)
    kind = values.pop("model_type", None)
    try:
        configuration = transformers.AutoConfig.for_model(kind, **values)
        network = getattr(transformers, auto_class).from_config(configuration, dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"the installed transformers {transformers.__version__} builds no {auto_class} of the architecture {kind!r}"
            f"; the network was saved with {values.get('transformers_version')}: {error}"
        ) from error
    sum_in_float32(network)
    return network
