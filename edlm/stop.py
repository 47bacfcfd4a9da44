"""Stop strings: where a text ends, the same whether it is looked at whole or as it grows.

Of several stop strings the one that is complete first ends the text, and where two are complete at the same letter the
longer one: what comes later can then change nothing.
"""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a decoder writes for a letter of which only some bytes are there


def cut(text: str, stops: Sequence[str]) -> int | None:
    """How many letters of `text` stand before the first stop string; None where it holds none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def settled(text: str, stops: Sequence[str]) -> int:
    """How many letters at the beginning of a text that still grows are sure to belong to it.

    Not sure are the end that may be the beginning of a stop string, and letters of which only some bytes are there.
    """
    sure = len(text.rstrip(REPLACEMENT))
    reach = max((len(stop) for stop in stops), default=1) - 1
    for at in range(max(0, sure - reach), sure):
        if any(stop.startswith(text[at:sure]) for stop in stops):
            return at
    return sure


def tokens_of(text: str, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """How many of the tokens it takes to spell `text`, which their whole text begins with."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if decode(tokens[:middle]).startswith(text):
            high = middle
        else:
            low = middle + 1
    return low
