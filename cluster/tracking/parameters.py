"""Configuration as MLflow parameters: flat, short enough, and without secrets."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

LONGEST_KEY = 250
LONGEST_VALUE = 6000  # characters; MLflow's limits

_SECRETS = {
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "credentials",
    "apikey",
    "authorization",
}
_KEYS_OF_SECRETS = re.compile(r"(?:^|[^a-z])(?:api|access|private|signing)[^a-z]?key")
_USER_IN_URI = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NOT_ALLOWED = re.compile(r"[^\w.\- :/]")


def redacted(tree: Any, key: str = "") -> Any:
    """`tree` with `***` for every value under a key that names a secret, and for user and password in URIs.

    A key's words count (`hf_token`, `apiKey`), not its letters: `tokenizer` and `tokens` are no secrets.
    """
    if _is_secret(key) and tree is not None:
        return "***"
    if isinstance(tree, Mapping):
        return {name: redacted(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return _USER_IN_URI.sub("***", tree) if isinstance(tree, str) else tree


def parameters(tree: Mapping[str, Any]) -> dict[str, str]:
    """`tree`, redacted, as MLflow takes it: one line of text for each leaf, under its dotted path.

    What is longer than MLflow allows ends with its length and the SHA-256 of the whole.
    """
    leaves = _leaves(redacted(tree), "")
    return {_cut(_NOT_ALLOWED.sub("_", key), LONGEST_KEY): _cut(value, LONGEST_VALUE) for key, value in leaves}


def _leaves(tree: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(tree, Mapping) and (tree or not path):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(tree, list) and any(isinstance(value, Mapping | list) for value in tree):
        return [leaf for index, value in enumerate(tree) for leaf in _leaves(value, f"{path}.{index}")]
    return [(path, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]


def _is_secret(key: str) -> bool:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    words = set(re.split(r"[^a-z0-9]+", spaced))
    return bool(words & _SECRETS) or bool(_KEYS_OF_SECRETS.search(spaced))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = f"...({len(text)}:{hashlib.sha256(text.encode()).hexdigest()[:12]})"
    return text[: limit - len(end)] + end
