"""Configuration as MLflow parameters: flat, of limited length, and without secrets."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from edlm.redaction import redacted

LONGEST_KEY = 250
LONGEST_VALUE = 6000  # characters; MLflow's limits
MACHINE_SECTIONS = ("cluster", "serving", "storage", "tracking")

_NOT_ALLOWED = re.compile(r"[^\w.\- :/]")


def parameters(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return `tree`, redacted, as MLflow parameters: one string per leaf, under its dotted path.

    A text longer than MLflow allows is cut and ends with its length and the first 12 digits of its SHA-256.
    """
    leaves = _leaves(redacted(tree), "")
    return {_cut(_NOT_ALLOWED.sub("_", key), LONGEST_KEY): _cut(value, LONGEST_VALUE) for key, value in leaves}


def machine_settings(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sections of a configuration that say where it runs and not what it computes, and the other ones."""
    machines = {name: value for name, value in tree.items() if name in MACHINE_SECTIONS}
    return machines, {name: value for name, value in tree.items() if name not in MACHINE_SECTIONS}


def _leaves(tree: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(tree, Mapping) and (tree or not path):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(tree, list) and any(isinstance(value, Mapping | list) for value in tree):
        return [leaf for index, value in enumerate(tree) for leaf in _leaves(value, f"{path}.{index}")]
    return [(path, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    suffix = f"...({len(text)}:{hashlib.sha256(text.encode()).hexdigest()[:12]})"
    return text[: limit - len(suffix)] + suffix
