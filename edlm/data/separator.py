"""Whether text can spell a token, which then cannot stand between documents, and what prevents it.

Special tokens are read as text (`Tokenizer` sets `encode_special_tokens`), so only the model of a tokenizer.json can
make one out of text, and only where its vocabulary holds it: for an unknown letter, for a byte, by merging pieces, or
because it stands in the text. What stands there is prevented without a loss, by `parting` the text within it after all
that the file does to a text before its model reads it. The cases follow the models of the `tokenizers` library, version
0.23 (tokenizers/src/models).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from edlm.data.decoder import BYTE_PIECE


@dataclass(frozen=True)
class Spelling:
    """How text becomes a token."""

    how: str
    stands: bool = False
    """Whether it does so only where the token stands in the text as it is, in two letters or more."""


def spelling(rust: tokenizers.Tokenizer, index: int) -> Spelling | None:
    """How text becomes the token `index`; None where it cannot."""
    added = rust.get_added_tokens_decoder().get(index)
    if added is not None and not added.special:
        return Spelling("it is an added token that is not special, so it is looked for in every text")
    piece = rust.model.id_to_token(index)
    if piece is None:
        return None
    model = json.loads(rust.model.__getstate__())
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    unknown = index == model["unk_id"] if model["type"] == "Unigram" else piece == model["unk_token"]
    if unknown and not _reads_every_byte(rust, model, prefix, suffix):
        return Spelling("letters that the vocabulary lacks become it")
    if model.get("byte_fallback") and BYTE_PIECE.fullmatch(piece):
        return Spelling("a byte of letters that the vocabulary lacks becomes it")
    letters = piece.removeprefix(prefix).removesuffix(suffix)
    if model["type"] == "BPE" and not model["ignore_merges"] and len(letters) > 1 and not _merged(model, piece, prefix):
        return None
    if letters != piece or len(letters) < 2:
        return Spelling("it is a letter or a part of words")
    return Spelling("it becomes one token where it stands in a text", stands=True)


def parting(piece: str) -> pre_tokenizers.PreTokenizer:
    """What parts a text after the first letter of each `piece` in it, so that no token of the text is that piece."""
    return pre_tokenizers.Split(Regex(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})"), "merged_with_previous")


def is_parted(rust: tokenizers.Tokenizer, piece: str) -> bool:
    """Whether texts are parted within every `piece` just before the model reads them."""
    last = _last_step(rust)
    return last is not None and len(piece) > 1 and last == json.loads(parting(piece).__getstate__())


def _last_step(rust: tokenizers.Tokenizer) -> Mapping[str, Any] | None:
    """The last step of its pre-tokenizer, as in tokenizer.json."""
    step = None if rust.pre_tokenizer is None else json.loads(rust.pre_tokenizer.__getstate__())
    while step is not None and step["type"] == "Sequence":
        step = step["pretokenizers"][-1] if step["pretokenizers"] else None
    return step


def _merged(model: Mapping[str, Any], piece: str, prefix: str) -> bool:
    """Whether a merge of a BPE model makes the piece."""
    return any(left + right[len(prefix) :] == piece for left, right in model["merges"])


def _reads_every_byte(rust: tokenizers.Tokenizer, model: Mapping[str, Any], prefix: str, suffix: str) -> bool:
    """Whether a BPE model is given nothing but byte letters and knows all of them: then nothing is unknown to it."""
    last = _last_step(rust)
    if model["type"] != "BPE" or prefix or last is None or last["type"] != "ByteLevel":
        return False
    letters = pre_tokenizers.ByteLevel.alphabet()
    return all(letter + end in model["vocab"] for letter in letters for end in {"", suffix})
