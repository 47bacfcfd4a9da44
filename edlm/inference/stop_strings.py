"""Stop strings: where a text ends, the same whether it is looked at whole or as it grows.

Of several stop strings the one that is complete first ends the text, and where two are complete at the same letter the
longer one: what comes later can then change nothing.
"""

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> int | None:
    """How many letters of `text` stand before the first stop string; None where it holds none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def settled(text: str, stops: Sequence[str]) -> int:
    """How many letters at the beginning of a text that still grows stand before anything that may become a stop."""
    reach = max((len(stop) for stop in stops), default=1) - 1
    for at in range(max(0, len(text) - reach), len(text)):
        if any(stop.startswith(text[at:]) for stop in stops):
            return at
    return len(text)
