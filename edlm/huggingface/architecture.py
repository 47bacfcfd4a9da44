"""Architectures of the transformers library as plain values: recorded in model folders, and built without the hub."""

import json
from collections.abc import Mapping
from typing import Any

import pydantic
import torch

from edlm.config import ConfigurationError
from edlm.huggingface.remote_code import Code, failures_named, remote_code, require_consent, written
from edlm.huggingface.source import library
from edlm.models.float32_summed_layers import sum_in_float32

Architecture = Mapping[str, pydantic.JsonValue]


def recorded(configuration: Any, classes: Mapping[str, str] | None = None) -> dict[str, pydantic.JsonValue]:
    """Return the whole configuration of a network, as in config.json, without the path that it was read from.

    `classes` are those of its makers' code, if any, as `auto_map` has them.
    """
    values = json.loads(configuration.to_json_string(use_diff=False))
    whole = {name: value for name, value in values.items() if name not in ("_name_or_path", "auto_map")}
    if classes:
        whole["auto_map"] = dict(classes)
    return whole


def built(auto_class: str, architecture: Architecture, code: Code) -> Any:
    """Build a network in float32 with fresh weights, by one of the library's classes `AutoModelFor...`.

    Raise ConfigurationError for an architecture that the installed library does not have, or not with this head, and
    if `code` of the network's makers defines it and there is no consent to it, it fails, or is not all that would run.
    """
    transformers, values = library(), dict(architecture)
    factory, kind = getattr(transformers, auto_class), values.pop("model_type", None)
    if code:
        require_consent(code)
    try:
        if code:
            _require_own(architecture)
            with written(code, architecture) as folder, failures_named("the network", code):
                if remote_code("the network", folder, None)[0] != dict(code):
                    raise ConfigurationError(
                        "the network: auto_map of its architecture and its files of code do not belong together: "
                        f"{architecture.get('auto_map')} and {', '.join(sorted(code))}; import it again"
                    )
                configuration = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
                network = factory.from_config(configuration, trust_remote_code=True, dtype=torch.float32)
        else:
            configuration = transformers.AutoConfig.for_model(kind, **values)
            network = factory.from_config(configuration, trust_remote_code=False, dtype=torch.float32)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise ConfigurationError(
            f"the installed transformers {transformers.__version__} builds no {auto_class} of the architecture {kind!r}"
            f"; the network was saved with {values.get('transformers_version')}: {error}"
        ) from error
    sum_in_float32(network)
    return network


def _require_own(architecture: Architecture) -> None:
    """Raise ConfigurationError if the library would read code in the folder that the architecture names."""
    if "_name_or_path" in architecture:
        raise ConfigurationError(
            f"the network: its architecture has _name_or_path {architecture['_name_or_path']!r}, from which the "
            "library would run other code than that of the model folder; remove it"
        )
