"""Configuration as MLflow parameters: flat, of limited length, and without secrets."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

LONGEST_KEY = 250
LONGEST_VALUE = 6000  # characters; MLflow's limits
MACHINE_SECTIONS = ("cluster", "serving", "storage", "tracking")

_SECRETS = {
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "credentials",
    "apikey",
    "authorization",
    "token",
}
_NO_SECRETS = {"token_temperature", "token_temperatures"}  # settings of samplers
_KEYS_OF_SECRETS = re.compile(r"(?:^|[^a-z])(?:api|access|private|signing)[^a-z]?key")
_USER_IN_URI = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NOT_ALLOWED = re.compile(r"[^\w.\- :/]")


def redacted(tree: Any, key: str = "") -> Any:
    """Return `tree` with `***` for every value under a key that names a secret, and for user and password in URIs.

    Whole words of a key are matched (`hf_token`, `apiKey`): `tokenizer` and `tokens` are no secrets, and
    `token_temperatures` are settings of a sampler.
    """
    if _is_secret(key) and tree is not None:
        return "***"
    if isinstance(tree, Mapping):
        return {name: redacted(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return _USER_IN_URI.sub("***", tree) if isinstance(tree, str) else tree


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


def _is_secret(key: str) -> bool:
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    words = re.split(r"[^a-z0-9]+", separated)
    if separated in _NO_SECRETS:
        return False
    return bool(_SECRETS.intersection(words)) or bool(_KEYS_OF_SECRETS.search(separated))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    suffix = f"...({len(text)}:{hashlib.sha256(text.encode()).hexdigest()[:12]})"
    return text[: limit - len(suffix)] + suffix
