"""Stop strings: the end of a text, identical for a complete and for a growing text.

The stop string that is completed first ends the text; of two completed at the same character, the longer one. Later
text therefore cannot change the result.
"""

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> int | None:
    """Return the number of characters of `text` before the first stop string; None if it contains none."""
    matches = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(matches)[1] if matches else None


def stop_free_length(text: str, stops: Sequence[str]) -> int:
    """Return the number of characters of a growing text before anything that may become a stop string."""
    reach = max((len(stop) for stop in stops), default=1) - 1
    for start in range(max(0, len(text) - reach), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)
