"""Stable prefix of a text, whatever tokens follow, derived from the decoder of its tokenizer.json.

A decoder of the `tokenizers` library is a chain of steps. Each maps a list of pieces, initially one per token, to
another. A step that depends only on single pieces and those before them cannot change earlier text; the others are
listed here with what they may still change. The derivation follows the library's source, version 0.23
(tokenizers/src/decoders).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

REPLACEMENT = "\ufffd"  # a decoder's output for a character with missing bytes
BYTE_PIECE = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # pieces that ByteFallback reads as a byte
BYTE_LETTERS = frozenset("<0x+>123456789ABCDEFabcdef")


@dataclass(frozen=True)
class Growth:
    """Part of a decoded text that may change as more tokens follow."""

    letters: int = 0
    """Number of characters at its end that may change."""
    partial: bool = False
    """Whether a final U+FFFD may change: following bytes may complete the character."""
    byte_runs: bool = False
    """Whether the text of a final run of byte pieces may change: one invalid byte makes all of them U+FFFD."""
    fused: bool = False
    """Whether the steps so far have joined the pieces into one text."""

    def stable_prefix(self, text: str) -> str:
        """Return the stable prefix of `text`, from which a final run of byte pieces is already removed."""
        text = text[: max(0, len(text) - self.letters)]
        return text[:-1] if self.partial and text.endswith(REPLACEMENT) else text


def growth(decoder: Mapping[str, Any] | None, pieces: Iterable[str]) -> Growth:
    """Return what may change in texts of `decoder`, given as in tokenizer.json, with the vocabulary `pieces`.

    Raises ValueError if no bound is known, so that any part of a text may change until its last token.
    """
    steps = list(_flat(decoder)) if decoder is not None else []  # without a decoder, tokens are joined by spaces
    suffixes = [step["suffix"] for step in steps if step["type"] == "BPEDecoder"]
    if suffixes:
        # The last piece is treated differently: it alone is followed by no space.
        suffix_inside = any(suffixes[0] in piece.removesuffix(suffixes[0]) for piece in pieces)
        if len(steps) > 1 or not suffixes[0] or suffix_inside:
            raise _unstreamable(
                f"BPEDecoder is one step of several, or its suffix {suffixes[0]!r} is empty or stands within a token",
                "make BPEDecoder the only step, with a suffix that tokens have only at their end",
            )
        return Growth()
    bound_so_far = Growth()
    for i, step in enumerate(steps):
        if step["type"] == "ByteFallback" and not all(map(_keeps_bytes, steps[:i])):
            raise _unstreamable(
                f"the step {steps[0]['type']} may change pieces before ByteFallback reads bytes from them",
                "put ByteFallback first",
            )
        if bound_so_far.partial:
            bound_so_far = replace(bound_so_far, partial=False, letters=bound_so_far.letters + 1)
        bound_so_far = _after(bound_so_far, step)
    return bound_so_far


def step_kinds(decoder: Mapping[str, Any]) -> frozenset[str]:
    """Return the types of the steps of a decoder, given as in tokenizer.json."""
    return frozenset(step["type"] for step in _flat(decoder))


def _flat(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flat(step)


def _keeps_bytes(step: Mapping[str, Any]) -> bool:
    """Return whether a step outputs byte pieces for byte pieces and for nothing else."""
    pattern = step.get("pattern", {}).get("String", "")
    return step["type"] == "Replace" and bool(set(pattern) - BYTE_LETTERS and set(step["content"]) - BYTE_LETTERS)


def _after(before: Growth, step: Mapping[str, Any]) -> Growth:
    """Return what may change after a step, given what may change before it."""
    match step:
        case {"type": "Strip", "stop": stop} if stop > 0:
            raise ValueError(
                f"its decoder strips {stop} letters from the end of pieces (Strip), and the tokenizers library breaks "
                "off where a piece is empty; take that step out of tokenizer.json, or set its stop to 0"
            )
        case {"type": "Fuse"}:
            return replace(before, fused=True)
        case {"type": "Metaspace" | "Strip"}:  # affects single characters, or the first ones of a text
            return before
        case {"type": "Replace" | "WordPiece" | "CTC"} if not before.fused:
            return before
        case {"type": "ByteLevel"} if not before.fused:
            return replace(before, fused=True, partial=True)
        case {"type": "ByteFallback"} if not before.fused:
            return replace(before, byte_runs=True)
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            # The last characters may begin the pattern, and so may those before the ones that could already change.
            return replace(before, letters=(before.letters + len(pattern) - 1) * max(1, len(content)))
    raise _unstreamable(
        f"after the pieces are joined, the step {step['type']} may change any part of the text",
        f"put {step['type']} before the step that joins them, or take it out",
    )


def _unstreamable(cause: str, way_out: str) -> ValueError:
    return ValueError(
        f"texts of its decoder cannot be streamed: {cause}; change the decoder in tokenizer.json ({way_out}), "
        "which changes no token, and prepare the data with it"
    )
