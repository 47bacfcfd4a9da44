"""How many repeats a bound needs: they are doubled until that no longer pays."""

from collections.abc import Callable

from edlm.likelihood import Estimate, difference

MOST_REPEATS = 64


def tightened(
    bound: Callable[[int], Estimate], repeats: int, tightness: float | None, length: int
) -> tuple[Estimate, int, float | None]:
    """(bound, its repeats, what the last doubling gained in nats per token; None where nothing was doubled).

    The bound falls as repeats grow; with `tightness` they are doubled until a doubling gains less than that, which is
    then a measure of what is left, or until there are 64.
    """
    estimate, gained = bound(repeats), None
    while tightness is not None and repeats < MOST_REPEATS and (gained is None or gained >= tightness):
        better = bound(2 * repeats)
        gained = difference(estimate, better).mean / length
        estimate, repeats = better, 2 * repeats
    return estimate, repeats, gained
