"""Tokenizers: text to ids below `size` and back; each is a single tokenizer.json stored with the model."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models

from edlm.data.byte_level_bpe import LONGEST, ByteLevelBPE, byte_level_bpe
from edlm.data.separator import is_parted, token_in_text
from edlm.data.stable_prefix import BYTE_PIECE, growth, step_kinds
from edlm.data.token_bytes import TokenBytes, token_bytes

FILE = "tokenizer.json"
HALF_A_PAIR = "the text holds half of a surrogate pair, which is no character; remove it"


class Tokenizer:
    """Mapping of text to ids and back, defined by a tokenizer.json; any program that reads that format agrees.

    Documents end with the token that the file's post-processor appends; without a post-processor, with a space. Only a
    vocabulary of whole words (the library's `WordLevel`, as in `Symbols`) has nothing between them.
    No text can spell that token: a document cannot end itself. Raises ValueError for a file that the `tokenizers`
    library cannot read, that appends anything else, whose separator text could spell, or whose decoder may change any
    part of a text until its last token, so that it cannot be streamed.
    """

    size: int
    """Number of ids, including the separator's: every id is below it."""
    separator: int | None
    """Id between documents; None if they are separated by a space, as in text8, or by nothing, as for symbols."""
    text: str
    """Content of tokenizer.json."""
    digest: str
    """SHA-256 of tokenizer.json."""
    special_tokens: tuple[str, ...]
    """Texts of the special tokens, which texts do not spell (`encode`)."""

    def __init__(self, text: str) -> None:
        try:
            rust = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(
                f"not a tokenizer.json that the tokenizers library reads ({error}); restore a good copy"
            ) from error
        self._open(text, rust, json.loads(rust.to_str()))

    @classmethod
    def of(cls, rust: tokenizers.Tokenizer) -> "Tokenizer":
        """Return the tokenizer that the library has made, which must not change any more, to encode documents with."""
        text, tokenizer = rust.to_str(), cls.__new__(cls)
        definition = json.loads(text)
        tokenizer._open(text, rust, definition)
        tokenizer.bulk = byte_level_bpe(rust, definition, tokenizer.separator)  # while the definition is at hand
        return tokenizer

    def _open(self, text: str, rust: tokenizers.Tokenizer, definition: Mapping[str, Any]) -> None:
        self.text, self._rust = text, rust
        # Text that looks like a special token is read as text.
        self._rust.encode_special_tokens = True
        added = self._rust.get_added_tokens_decoder().values()
        self.special_tokens = tuple(token.content for token in added if token.special)
        vocabulary = self._rust.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        self.separator = self._appended()
        model = definition["model"]
        self._require_unspelt(model)
        self.digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
        self._growth = growth(definition["decoder"], vocabulary)
        # Unigram names its unknown token by id, the others by text.
        self._unknown = model.get("unk_id", self._rust.token_to_id(model.get("unk_token") or ""))

    def _appended(self) -> int | None:
        ids = self._rust.encode("").ids
        joined = isinstance(self._rust.model, models.WordLevel) or self._rust.token_to_id(" ") is not None
        if len(ids) > 1 or (not ids and not joined):
            raise ValueError(
                f"its documents end with {len(ids)} tokens, not with one separator; "
                "make it with tokenizer.kind huggingface, which names the separator"
            )
        return ids[0] if ids else None

    def _definition(self) -> dict[str, Any]:
        """Return tokenizer.json as the library writes it: tens of milliseconds with tens of thousands of tokens."""
        return json.loads(self._rust.to_str())

    def _require_unspelt(self, model: Mapping[str, Any]) -> None:
        """Raise ValueError if text can spell the separator."""
        if self.separator is None or (reason := self._spelt(self.separator, model)) is None:
            return
        token = self._rust.id_to_token(self.separator)
        raise ValueError(
            f"text can spell the separator {token!r}: {reason}; make the tokenizer again with tokenizer.kind "
            "huggingface, which prevents that or says which separator to name, and prepare the data again"
        )

    def spelt(self, index: int) -> str | None:
        """Return how text can spell the token `index`; None if it cannot."""
        return self._spelt(index, self._definition()["model"])

    def _spelt(self, index: int, model: Mapping[str, Any]) -> str | None:
        route, token = token_in_text(self._rust, model, index), self._rust.id_to_token(index)
        if route is None or (route.literal_only and token is not None and is_parted(self._rust, token)):
            return None
        return route.reason

    def encode(self, text: str) -> Int32[np.ndarray, " l"]:
        """Return the ids of `text`, without a separator.

        Raises ValueError if it is not Unicode text (half a surrogate pair), or has a character that is not in an
        alphabet of symbols.
        """
        (ids,) = self._encode([text], add_special_tokens=False)
        return ids

    def encode_spelt(self, text: str) -> Int32[np.ndarray, " l"]:
        """Return the ids of a text that spells special tokens, as a chat template does: never of a user's own text."""
        return np.array(self._spelling.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    @property
    def special_tokens_sought_after_normalizing(self) -> tuple[str, ...]:
        """Texts of the special tokens that `encode_spelt` also finds in spellings that normalize to them."""
        if self._definition()["normalizer"] in (None, {"type": "Sequence", "normalizers": []}):
            return ()
        added = self._rust.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special and token.normalized)

    @functools.cached_property
    def _spelling(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.text)

    def encode_documents(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " l"]]:
        """Return the ids of each text as a document of a packed stream, followed by the separator or one space, if any.

        Where a space follows, a text without letters has no tokens: that alphabet's text has no two adjacent spaces.
        Raises ValueError as `encode` does.
        """
        if self.bulk is not None:
            return self._in_bulk(self.bulk, texts)
        space = self._rust.token_to_id(" ")
        if self.separator is not None or space is None:
            return self._encode(texts, add_special_tokens=True)
        return [
            ids[1:] if ids[0] == space else ids
            for ids in self._encode([f"{text} " for text in texts], add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " l"]) -> str:
        """Return the text of `ids`, separators spelled out; raise ValueError for ids that are not tokens (the mask)."""
        checked = [int(index) for index in ids]
        invalid = [index for index in checked if not 0 <= index < self.size]
        if invalid:
            raise ValueError(f"id {invalid[0]} is no token: the vocabulary has the ids 0 to {self.size - 1}")
        return self._rust.decode(checked, skip_special_tokens=False)

    def stable_prefix(self, ids: Sequence[int]) -> str:
        """Return the prefix of the text of `ids` that is stable whatever ids follow."""
        end = len(ids)
        while self._growth.byte_runs and end and self._is_byte(ids[end - 1]):
            end -= 1
        return self._growth.stable_prefix(self.decode(ids[:end]))

    def ids(self) -> dict[str, int]:
        """Return the id of each token, by its text in the file; ids without a token are not among them."""
        return self._rust.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def bytes_of_tokens(self) -> TokenBytes:
        """Bytes that each token adds to a text.

        Raises ValueError if they depend on the tokens around it, or if later tokens change them.
        """
        decoder = self._rust.decoder
        kinds = step_kinds(json.loads(decoder.__getstate__())) if decoder is not None else frozenset()
        if self._growth.letters:
            raise ValueError(
                "its decoder replaces letters across tokens, and a constraint needs texts that it does not"
            )
        special = set(self.special_tokens)
        pieces = {index: piece for piece, index in self.ids().items() if piece not in special}
        return token_bytes(self._rust, kinds, pieces, self.size)

    def lost(self, text: str) -> list[str]:
        """Return the characters of `text` of which nothing remains, in order.

        These are letters and digits represented by no token except white space, and what the unknown token represents.
        """
        if self.bulk is not None:  # it has every byte
            return []
        encoding = self._rust.encode(text, add_special_tokens=False)
        kept, unknown = bytearray(len(text)), bytearray(len(text))
        blank = {index: not self._rust.decode([index], skip_special_tokens=False).strip() for index in {*encoding.ids}}
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index == self._unknown:
                unknown[start:end] = b"\1" * (end - start)
            elif not blank[index]:
                kept[start:end] = b"\1" * (end - start)
        return [
            letter
            for letter, known, missing in zip(text, kept, unknown, strict=True)
            if not known and (letter.isalnum() or (missing and not letter.isspace()))
        ]

    def save(self, folder: Path) -> None:
        """Write this tokenizer to `folder` as tokenizer.json, with the digest `digest`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(self.text.encode("utf-8"))

    def _encodes(self, text: str) -> bool:
        try:
            self._rust.encode(text, add_special_tokens=False)
        except Exception:  # as in `_encode`, which reports it
            return False
        return True

    def _is_byte(self, index: int) -> bool:
        """Return whether ByteFallback reads the id as a byte, or the decoder skips it as unused."""
        piece = self._rust.id_to_token(index)
        return piece is None or BYTE_PIECE.fullmatch(piece) is not None

    @functools.cached_property
    def bulk(self) -> ByteLevelBPE | None:
        """Encoder of documents in bulk; None if this is no byte-level BPE."""
        return byte_level_bpe(self._rust, self._definition(), self.separator)

    def _in_bulk(self, bulk: ByteLevelBPE, texts: Sequence[str]) -> list[Int32[np.ndarray, " l"]]:
        try:
            return [
                bulk.encode(text) if len(text) <= LONGEST else self._encode([text], add_special_tokens=True)[0]
                for text in texts
            ]
        except UnicodeEncodeError as error:
            raise ValueError(HALF_A_PAIR) from error

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[Int32[np.ndarray, " l"]]:
        rust = self._rust  # not below: opening it may fail for other reasons
        try:
            encodings = rust.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError as error:  # the library's error for a text that UTF-8 cannot encode
            raise ValueError(HALF_A_PAIR) from error
        except Exception as error:  # the library raises no narrower class for a character outside the alphabet
            letters = dict.fromkeys(letter for text in texts for letter in text)
            unknown = next((letter for letter in letters if not self._encodes(letter)), None)
            if unknown is None:  # a vocabulary of words: one of them is unknown, though its letters are tokens
                raise ValueError(
                    f"the tokenizer cannot encode the text: {error}; give tokenizer.json an unknown token (unk_token)"
                ) from error
            raise ValueError(f"the text holds {unknown!r}, which is no symbol of this vocabulary") from error
        encoded = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        for text, ids in zip(texts, encoded, strict=True):
            # `_require_unspelt` rules this out for the library version that it was derived from.
            if self.separator is not None and self.separator in (ids[:-1] if add_special_tokens else ids):
                raise ValueError(f"the text {text[:80]!r} spells the separator, which this tokenizer should prevent")
        return encoded


class DocumentTokenizer(Tokenizer):
    """Tokenizer of a process that encodes documents: it opens its file when more is asked of it than `bulk` does."""

    def __init__(self, text: str, bulk: ByteLevelBPE) -> None:
        self.text, self.bulk = text, bulk

    def __getattr__(self, name: str) -> Any:
        """Return what opening the file sets."""
        if name not in ("_rust", "special_tokens", "size", "separator", "digest", "_growth", "_unknown"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super().__init__(self.text)
        return getattr(self, name)


def open_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model or data folder; raise ValueError if tokenizer.json is missing or damaged."""
    path = folder / FILE
    try:
        return Tokenizer(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {FILE}; copy the one that the model was trained with") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
