"""Which part of a text stands whatever tokens follow, derived from the decoder of its tokenizer.json.

A decoder of the `tokenizers` library is a chain of steps. Each maps a list of pieces, at first one a token, to another.
A step that looks at single pieces and at those before them can change nothing that was said; the others are listed here
with what they may still change. The derivation follows the library's source, version 0.23 (tokenizers/src/decoders).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

REPLACEMENT = "\ufffd"  # what a decoder writes for a letter of which only some bytes are there
BYTE_PIECE = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # what ByteFallback takes for a byte
BYTE_LETTERS = frozenset("<0x+>123456789ABCDEFabcdef")


class Unstreamable(ValueError):
    """Any part of the text may change, for all that is known, until the last token is there."""


@dataclass(frozen=True)
class Growth:
    """What of the text of some tokens may change as more tokens follow."""

    letters: int = 0
    """So many letters at its end."""
    partial: bool = False
    """Its last letter, where that is U+FFFD: bytes that follow may complete it."""
    byte_runs: bool = False
    """The text of a run of byte pieces at its end: one byte that fits no letter makes all of them U+FFFD."""
    fused: bool = False
    """Whether the steps so far have joined the pieces into one text."""

    def certain(self, text: str) -> str:
        """The part of `text` that stands, its run of byte pieces being left out already."""
        text = text[: max(0, len(text) - self.letters)]
        return text[:-1] if self.partial and text.endswith(REPLACEMENT) else text


def growth(decoder: Mapping[str, Any] | None, pieces: Iterable[str]) -> Growth:
    """What may change in the texts of a decoder, given as in tokenizer.json, of the vocabulary `pieces`.

    Raises Unstreamable where no bound on that is known.
    """
    steps = list(_flat(decoder)) if decoder is not None else []  # without a decoder, a space stands between tokens
    suffixes = [step["suffix"] for step in steps if step["type"] == "BPEDecoder"]
    if suffixes:
        # The last piece is told from the others: it alone is followed by no space.
        inside = any(suffixes[0] in piece.removesuffix(suffixes[0]) for piece in pieces)
        if len(steps) > 1 or not suffixes[0] or inside:
            raise Unstreamable("BPEDecoder is one step of several, or its suffix stands within a token")
        return Growth()
    so_far = Growth()
    for i, step in enumerate(steps):
        if step["type"] == "ByteFallback" and not all(map(_keeps_bytes, steps[:i])):
            raise Unstreamable("its decoder changes pieces before ByteFallback looks for bytes among them")
        if so_far.partial:
            so_far = replace(so_far, partial=False, letters=so_far.letters + 1)
        so_far = _after(so_far, step)
    return so_far


def _flat(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flat(step)


def _keeps_bytes(step: Mapping[str, Any]) -> bool:
    """Whether a step makes byte pieces of byte pieces and of nothing else."""
    pattern = step.get("pattern", {}).get("String", "")
    return step["type"] == "Replace" and bool(set(pattern) - BYTE_LETTERS and set(step["content"]) - BYTE_LETTERS)


def _after(before: Growth, step: Mapping[str, Any]) -> Growth:
    """What may change after a step, given what may change before it."""
    match step:
        case {"type": "Strip", "stop": stop} if stop > 0:
            raise ValueError(
                f"its decoder strips {stop} letters from the end of pieces (Strip), and the tokenizers library breaks "
                "off where a piece is empty; take that step out of tokenizer.json, or set its stop to 0"
            )
        case {"type": "Fuse"}:
            return replace(before, fused=True)
        case {"type": "Metaspace" | "Strip"}:  # single letters, or the first of a text
            return before
        case {"type": "Replace" | "WordPiece" | "CTC"} if not before.fused:
            return before
        case {"type": "ByteLevel"} if not before.fused:
            return replace(before, fused=True, partial=True)
        case {"type": "ByteFallback"} if not before.fused:
            return replace(before, byte_runs=True)
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            # The last letters may be the beginning of the pattern, and so may those before what could change already.
            return replace(before, letters=(before.letters + len(pattern) - 1) * max(1, len(content)))
    raise Unstreamable(f"its decoder has a step {step['type']}, which may change any part of the text")
