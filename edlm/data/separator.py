"""Separator tokens: detection of those that text can spell, which cannot separate documents, and their prevention.

Special tokens are read as text (`Tokenizer` sets `encode_special_tokens`), so only the model of a tokenizer.json can
produce one from text, and only if its vocabulary holds it: for an unknown character, for a byte, by merging pieces, or
because the text contains it literally. The literal case is prevented without loss: `parting` splits the text within
each occurrence, after all other steps that the file applies before its model reads the text. The cases follow the
models of the `tokenizers` library, version 0.23 (tokenizers/src/models).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from edlm.data.stable_prefix import BYTE_PIECE


@dataclass(frozen=True)
class TokenInText:
    """How text can yield a token."""

    reason: str
    literal_only: bool = False
    """True if text yields this token only by containing it literally (at least two characters)."""


def token_in_text(rust: tokenizers.Tokenizer, model: Mapping[str, Any], index: int) -> TokenInText | None:
    """Return how text can yield the token `index`; None if it cannot. `model`: that of `rust`, as in tokenizer.json."""
    added = rust.get_added_tokens_decoder().get(index)
    if added is not None and not added.special:
        return TokenInText("it is an added token that is not special, so it is looked for in every text")
    piece = rust.model.id_to_token(index)
    if piece is None:
        return None
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    unknown = index == model["unk_id"] if model["type"] == "Unigram" else piece == model["unk_token"]
    if unknown and not _reads_every_byte(rust, model, prefix, suffix):
        return TokenInText("letters that the vocabulary lacks become it")
    if model.get("byte_fallback") and BYTE_PIECE.fullmatch(piece):
        return TokenInText("a byte of letters that the vocabulary lacks becomes it")
    letters = piece.removeprefix(prefix).removesuffix(suffix)
    if model["type"] == "BPE" and not model["ignore_merges"] and len(letters) > 1 and not _merged(model, piece, prefix):
        return None
    if letters != piece or len(letters) < 2:
        return TokenInText("it is a letter or a part of words")
    return TokenInText("it becomes one token where it stands in a text", literal_only=True)


def parting(piece: str) -> pre_tokenizers.PreTokenizer:
    """Return a step that splits texts after the first character of each `piece`, so that no token is that piece."""
    return pre_tokenizers.Split(Regex(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})"), "merged_with_previous")


def is_parted(rust: tokenizers.Tokenizer, piece: str) -> bool:
    """Return whether texts are split within every `piece` just before the model reads them."""
    last = _last_step(rust)
    return last is not None and len(piece) > 1 and last == json.loads(parting(piece).__getstate__())


def _last_step(rust: tokenizers.Tokenizer) -> Mapping[str, Any] | None:
    """Return the last step of the pre-tokenizer, as in tokenizer.json."""
    step = None if rust.pre_tokenizer is None else json.loads(rust.pre_tokenizer.__getstate__())
    while step is not None and step["type"] == "Sequence":
        step = step["pretokenizers"][-1] if step["pretokenizers"] else None
    return step


def _merged(model: Mapping[str, Any], piece: str, prefix: str) -> bool:
    """Return whether a merge of a BPE model produces the piece."""
    pairs = [[piece[:i], prefix + piece[i:]] for i in range(1, len(piece))]
    return any(pair in model["merges"] for pair in pairs if all(part in model["vocab"] for part in pair))


def _reads_every_byte(rust: tokenizers.Tokenizer, model: Mapping[str, Any], prefix: str, suffix: str) -> bool:
    """Return whether a BPE model reads only byte characters and knows all of them, so that none is unknown to it."""
    last = _last_step(rust)
    if model["type"] != "BPE" or prefix or last is None or last["type"] != "ByteLevel":
        return False
    letters = pre_tokenizers.ByteLevel.alphabet()
    return all(letter + end in model["vocab"] for letter in letters for end in {"", suffix})
