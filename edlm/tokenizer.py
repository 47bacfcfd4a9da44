"""Tokenizers: text to ids below `size` and back, each one a single tokenizer.json that travels with the model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models

FILE = "tokenizer.json"


class Tokenizer:
    """Text to ids and back, as the text of its tokenizer.json says; any program that reads that format agrees.

    Documents end with the token that the file's post-processor appends; without a post-processor, with a space. Only a
    vocabulary of whole words (the library's `WordLevel`, as of `Symbols`) has nothing between them.
    Raises ValueError for a text that the `tokenizers` library cannot read, or that appends anything else.
    """

    size: int
    """The number of ids, the separator's included: every id is below it."""
    separator: int | None
    """The id between documents; None where a space stands between them, as in text8, or nothing, as between symbols."""
    digest: str
    """The SHA-256 of tokenizer.json."""

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            self._rust = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"not a tokenizer.json that the tokenizers library reads: {error}") from error
        # Text that spells the separator is text: a document cannot end itself.
        self._rust.encode_special_tokens = True
        self.size = max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.separator = self._appended()
        self.digest = hashlib.sha256(text.encode("utf-8")).hexdigest()

    def _appended(self) -> int | None:
        ids = self._rust.encode("").ids
        joined = isinstance(self._rust.model, models.WordLevel) or self._rust.token_to_id(" ") is not None
        if len(ids) > 1 or (not ids and not joined):
            raise ValueError(
                f"its documents end with {len(ids)} tokens, not with one separator; "
                "make it with tokenizer.kind huggingface, which names the separator"
            )
        return ids[0] if ids else None

    def encode(self, text: str) -> Int32[np.ndarray, " l"]:
        """The ids of `text`, without a separator.

        ValueError where it is no Unicode text (half a surrogate pair), or holds what is not in an alphabet of symbols.
        """
        (ids,) = self._encode([text], add_special_tokens=False)
        return ids

    def encode_documents(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " l"]]:
        """The ids of each text as a document of a packed stream: followed by the separator, or by one space, if any.

        Before a space, a text without a letter is no token at all: two spaces would be no text of that alphabet.
        """
        space = self._rust.token_to_id(" ")
        if self.separator is not None or space is None:
            return self._encode(texts, add_special_tokens=True)
        return [
            ids[1:] if ids[0] == space else ids
            for ids in self._encode([f"{text} " for text in texts], add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " l"]) -> str:
        """The text of `ids`, separators spelt out; ValueError for an id that is no token, as the mask is none."""
        whole = [int(index) for index in ids]
        wrong = [index for index in whole if not 0 <= index < self.size]
        if wrong:
            raise ValueError(f"id {wrong[0]} is no token: the vocabulary has the ids 0 to {self.size - 1}")
        return self._rust.decode(whole, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Afterwards `folder` holds this tokenizer as tokenizer.json, with the digest `digest`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(self._text.encode("utf-8"))

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[Int32[np.ndarray, " l"]]:
        try:
            encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError as error:  # what the library says of a text that has no UTF-8
            raise ValueError("the text holds half of a surrogate pair, which is no character; remove it") from error
        except Exception as error:  # the library raises no narrower class for a letter outside an alphabet of symbols
            unknown = next(letter for text in texts for letter in text if self._rust.token_to_id(letter) is None)
            raise ValueError(f"the text holds {unknown!r}, which is no symbol of this vocabulary") from error
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model or data folder; ValueError where its tokenizer.json is missing or damaged."""
    path = folder / FILE
    try:
        return Tokenizer(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {FILE}; copy the one that the model was trained with") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore a good copy") from error
