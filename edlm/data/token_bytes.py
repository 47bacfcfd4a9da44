"""Bytes that each token adds to a text, for tokenizers whose texts are the bytes of their tokens one after another.

A byte-level vocabulary spells bytes, also parts of characters; others spell characters, and may drop the space before
the first token of a text. The cases follow the decoders of the `tokenizers` library, version 0.23.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers

from edlm.data.stable_prefix import BYTE_PIECE


@dataclass(frozen=True)
class TokenBytes:
    """Bytes of every token by id; None for ids without a token, and for special tokens."""

    first: tuple[bytes | None, ...]
    """As the first token of a text."""
    following: tuple[bytes | None, ...]
    """After other tokens."""


def token_bytes(rust: tokenizers.Tokenizer, kinds: frozenset[str], pieces: Mapping[int, str], size: int) -> TokenBytes:
    """Return the bytes of the `pieces` by id, `size` ids in all; `kinds` are the types of the decoder's steps.

    Raise ValueError for a decoder with which a token adds different bytes after different tokens.
    """
    decoder = rust.decoder
    if decoder is None or kinds & {"BPEDecoder", "CTC"}:
        cause = (
            "without a decoder, spaces join them" if decoder is None else f"its decoder is {', '.join(sorted(kinds))}"
        )
        raise ValueError(f"a constraint needs texts that are the bytes of their tokens, one after another; {cause}")

    def added(piece: str, before: list[str]) -> bytes:
        if "ByteLevel" in kinds:
            return _from_letters(piece)
        if "ByteFallback" in kinds and BYTE_PIECE.fullmatch(piece) and int(piece[3:-1], 16) > 127:
            return bytes([int(piece[3:-1], 16)])  # a part of a character
        return decoder.decode([*before, piece]).removeprefix(decoder.decode(before)).encode()

    # Before any token: a word, which no decoder changes.
    word = [next((piece for piece in pieces.values() if decoder.decode([piece]).isalpha()), "")]
    first, following = (
        tuple(added(pieces[index], before) if index in pieces else None for index in range(size))
        for before in ([], word)
    )
    return TokenBytes(first, following)


def byte_letters() -> list[str]:
    """Return the character that represents each byte in byte-level vocabularies (Radford 2019, `bytes_to_unicode`)."""
    printable = re.compile(r"[!-~¡-¬®-ÿ]")
    others = iter(range(256, 512))
    return [chr(byte) if printable.match(chr(byte)) else chr(next(others)) for byte in range(256)]


_BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


def _from_letters(piece: str) -> bytes:
    """Return the bytes that a byte-level decoder makes of a piece: its own UTF-8 if a letter of it spells no byte."""
    return bytes(_BYTES[letter] for letter in piece) if all(letter in _BYTES for letter in piece) else piece.encode()
