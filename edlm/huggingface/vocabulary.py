"""Vocabulary of a network that others trained, compared with the experiment's tokenizer token by token."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edlm.config import ConfigurationError


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of the experiment's tokenizer."""

    ids: Mapping[str, int]
    """Id of each token, by its text in tokenizer.json."""
    size: int
    """Number of ids; some may have no token."""
    separator: int | None
    """Id between documents, if any."""


def require_same(network: str, theirs: Mapping[str, int], special: Collection[int], ours: Vocabulary) -> None:
    """Raise ConfigurationError, naming sizes and a differing token, unless every id means the same token in both.

    The experiment's tokenizer may lack special tokens of the network's, such as its mask, and nothing else.
    """
    their_tokens = {index: token for token, index in theirs.items()}
    our_tokens = {index: token for token, index in ours.ids.items()}
    for index in sorted(their_tokens.keys() | our_tokens.keys()):
        there, here = their_tokens.get(index), our_tokens.get(index)
        if there == here or (here is None and index in special):
            continue
        raise ConfigurationError(
            f"{network} has another vocabulary than data.tokenizer: {len(their_tokens)} tokens there and "
            f"{len(our_tokens)} here; id {index} is {_shown(there)} there and {_shown(here)} here; "
            "set data.tokenizer to that of the network (kind: huggingface, uri: its folder), or name another network"
        )


def id_of(network: str, theirs: Mapping[str, int], token: str, setting: str) -> int:
    """Return the id of a token. Raise ConfigurationError if the network's vocabulary lacks it."""
    if token not in theirs:
        raise ConfigurationError(f"{setting}: {token!r} is no token of {network}; spell it as in its tokenizer.json")
    return theirs[token]


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)
