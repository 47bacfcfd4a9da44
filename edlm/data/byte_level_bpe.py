"""Byte-level BPE in bulk: the ids that the `tokenizers` library gives, by `tiktoken`, in a fraction of its time.

Both split a text into words by the expression of GPT-2 (Radford et al. 2019) and merge the bytes of each word, the pair
of lowest rank first. The library looks for pairs in the list of merges; tiktoken takes any two neighbours that form a
token. These are the same if the library spells every token by merging its bytes, and no two merges form one token: two
neighbours that form a token t are what t's own bytes had become at this rank, and from there t's only merge is of them.
"""

import json
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from jaxtyping import Int32
from tokenizers import models

from edlm.data.token_bytes import byte_letters

# The words of GPT-2's expression, 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, in three
# fifths of its time: the group has nothing but what an automaton finds, and where it has none, the text goes on with
# white space, of which the last alternative meets single characters only.
WORDS = r"(?:'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+$|\s+(?!\S)|\s"
PROBE = "It's 1,024 naïve words:\n\n  猫 \u0085\t🙂"
NEVER_READ = "\0"  # without a special token, which is read as text here, tiktoken looks for one at every letter
LONGEST = 500_000  # characters of a document; tiktoken gives up in a run of a million white-space characters
SPLITTING = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


class ByteLevelBPE:
    """Documents to ids, as a tokenizer.json says."""

    def __init__(self, ids: Mapping[bytes, int], separator: int | None) -> None:
        """`ids`: of each token's bytes, in the order of their merges, after those of the 256 bytes."""
        self._of_tokens, self._separator = ids, separator
        self._ids = np.array([*ids.values()], dtype=np.int32)
        self._ending = [] if separator is None else [separator]
        ranks = {token: rank for rank, token in enumerate(ids)}
        special = {NEVER_READ: len(ranks)}
        self._words = tiktoken.Encoding("", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special)

    @staticmethod
    def of_text(text: str) -> "ByteLevelBPE":
        """Return the encoder with this `text`, of which nothing is checked: in a tenth of `byte_level_bpe`'s time."""
        ids, separator = json.loads(text)
        return ByteLevelBPE({token.encode("latin-1"): index for token, index in ids.items()}, separator)

    @property
    def text(self) -> str:
        """The encoder as JSON: the ids in order, each by the code points of its token's bytes, and the separator."""
        ids = {token.decode("latin-1"): index for token, index in self._of_tokens.items()}
        return json.dumps([ids, self._separator])

    def encode(self, document: str) -> Int32[np.ndarray, " l"]:
        """Return the ids of `document` and of the separator, if any; raise UnicodeEncodeError if it is no Unicode."""
        ranks = self._words.encode_to_numpy(document, disallowed_special=())
        ids = np.empty(len(ranks) + len(self._ending), dtype=np.int32)
        ids[: len(ranks)] = self._ids[ranks]
        ids[len(ranks) :] = self._ending
        return ids


def byte_level_bpe(
    rust: tokenizers.Tokenizer, definition: Mapping[str, Any], separator: int | None
) -> ByteLevelBPE | None:
    """Return the encoder of a tokenizer that is byte-level BPE, which reads special tokens as text.

    None if it is of another kind, splits words in another way, or puts more than the separator after a document.
    `definition` is what the library writes as its tokenizer.json.
    """
    model = definition["model"]
    # `ignore_merges` takes whole words as tokens that their bytes may not merge to.
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    plain = not any(model.get(name) for name in options)
    added = definition["added_tokens"]
    if (
        model["type"] != "BPE"
        or not plain
        or any(definition[name] is not None for name in ("normalizer", "truncation", "padding"))
        or SPLITTING.items() - (definition["pre_tokenizer"] or {}).items()
        or not all(token["special"] for token in added)
        or (ids := _ids_by_rank(rust.model, model, {token["content"] for token in added})) is None
    ):
        return None
    encoder = ByteLevelBPE(ids, separator)
    return encoder if encoder.encode(PROBE).tolist() == rust.encode(PROBE).ids else None


def _ids_by_rank(bpe: tokenizers.models.Model, model: Mapping[str, Any], special: set[str]) -> dict[bytes, int] | None:
    """Return the ids of bytes and merged tokens in the order of their merges; None if merging tells them not apart."""
    vocabulary, letters = model["vocab"], byte_letters()
    merged = ["".join(pair) for pair in model["merges"]]
    pieces = [*letters, *merged]
    if len(set(pieces)) < len(pieces) or vocabulary.keys() - special - set(pieces) or set(pieces) - vocabulary.keys():
        return None
    assert isinstance(bpe, models.BPE)
    if any(len(bpe.tokenize(piece)) > 1 for piece in merged):
        return None
    value = {ord(letter): byte for byte, letter in enumerate(letters)}
    spelt = "".join(pieces).translate(value).encode("latin-1")  # at once: a byte per letter
    ends = accumulate(map(len, pieces), initial=0)
    return {spelt[start:end]: vocabulary[piece] for piece, (start, end) in zip(pieces, pairwise(ends), strict=True)}
