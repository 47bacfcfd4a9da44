"""Comparison: how much better one row is than another, or than plain diffusion at the same cost, and how sure that is.

Lower is better in everything that is compared, and a gain is what is lower by. Where both sides kept the number of
every sequence, and of the same sequences, differences are paired. Others count with the errors of both sides, as if
they were independent; rows that saw the same sequences are not, so that such an error is an upper limit.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from workflows.reporting.quantities import STEPS, Quantity, measured
from workflows.reporting.samplers import PLAIN, UNIFORM, Row, planned, same_sampler

DOUBT, BEYOND_DOUBT = 2.0, 3.0  # standard errors


class Verdict(StrEnum):
    """What a difference and its standard error allow to say."""

    BETTER = "better"
    PERHAPS_BETTER = "perhaps better"
    TIE = "no difference"
    PERHAPS_WORSE = "perhaps worse"
    WORSE = "worse"
    UNKNOWN = "error unknown"


@dataclass(frozen=True)
class Comparison:
    """A gain in the unit of what is compared; positive is better."""

    gain: float
    standard_error: float
    paired: bool

    @property
    def sigmas(self) -> float:
        """The gain in standard errors; infinite where it has no scatter at all, and 0 where it is exactly 0."""
        if self.gain == 0:
            return 0.0
        return self.gain / self.standard_error if self.standard_error else math.copysign(math.inf, self.gain)

    @property
    def verdict(self) -> Verdict:
        """Beyond 3 standard errors a difference counts, within 2 it is none."""
        if math.isnan(self.sigmas):
            return Verdict.UNKNOWN
        if abs(self.sigmas) < DOUBT:
            return Verdict.TIE
        if abs(self.sigmas) < BEYOND_DOUBT:
            return Verdict.PERHAPS_BETTER if self.gain > 0 else Verdict.PERHAPS_WORSE
        return Verdict.BETTER if self.gain > 0 else Verdict.WORSE


@dataclass(frozen=True)
class NotComparable:
    """A comparison that the measurements do not allow, and why."""

    reason: str
    cheaper: Comparison | None = None
    """With the dearest plain diffusion measured, where that still costs less than the row."""


Outcome = Comparison | NotComparable


@dataclass(frozen=True)
class Level:
    """What a row is compared with: a value, its standard error, and the value of every sequence where it was kept."""

    value: float
    standard_error: float
    each: Sequence[float] = ()


def level(row: Row, y: Quantity) -> Level:
    """A measured row as something to compare with."""
    return Level(y.value(row), y.error_of(row), y.each_of(row))


def gain_over(one: Level, row: Row, y: Quantity) -> Comparison:
    """What the row is lower by, paired sequence by sequence where both sides allow it."""
    each = y.each_of(row)
    if not each or len(each) != len(one.each):
        return unpaired(one.value, one.standard_error, row, y)
    gains = [theirs - own for theirs, own in zip(one.each, each, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return Comparison(statistics.fmean(gains), error, paired=True)


def same_steps(row: Row, rows: Sequence[Row], y: Quantity) -> Outcome:
    """The row against plain diffusion with as many steps, paired where the row brings its gain with it."""
    if y.gain is not None:
        return _finite(Comparison(y.gain.value(row), y.gain.error_of(row), paired=True))
    twin = next((p for p in plain_curve(row, rows, y) if p["steps"] == row["steps"]), None)
    if twin is None:
        return NotComparable(f"plain diffusion was not measured at T = {row['steps']}")
    return _finite(gain_over(level(twin, y), row, y))


def against_uniform(row: Row, rows: Sequence[Row], y: Quantity) -> Outcome:
    """The row against the same sampler with uniform weights, the control that a gain is not of k draws alone."""
    if planned(row):
        return NotComparable("a plan has no one k for all steps")
    if not row["candidates"]:
        return NotComparable("exact sampling has no candidates to weigh uniformly")
    controls = (r for r in rows if r["energy"] == UNIFORM and r["steps"] == row["steps"])
    twin = next(
        (r for r in controls if same_sampler(r, row, besides=("legacy", "energy_temperature")) and not r["legacy"]),
        None,
    )
    if twin is None:
        return NotComparable("the control was not measured for this sampler")
    return _finite(gain_over(level(twin, y), row, y))


def same_cost(row: Row, rows: Sequence[Row], y: Quantity, cost: Quantity) -> Outcome:
    """The row against plain diffusion at the same cost, interpolated linearly in the logarithm of the cost.

    Refused beyond the costs at which plain diffusion was measured: there is no extrapolation.
    """
    curve = sorted(measured(plain_curve(row, rows, y), cost, y), key=cost.value)
    if not measured([row], cost, y):
        return NotComparable(f"{cost.name} of the row were not measured")
    if len(curve) < 2:
        return NotComparable(f"of plain diffusion {len(curve)} {cost.name} were measured, and two are needed")
    at = cost.value(row)
    first, last = cost.value(curve[0]), cost.value(curve[-1])
    if at < first:
        return NotComparable(f"plain diffusion was measured from {first:.3g} {cost.name} on, this is {at:.3g}")
    if at > last:
        cheaper = gain_over(level(curve[-1], y), row, y)
        return NotComparable(f"plain diffusion was measured up to {last:.3g} {cost.name}, this is {at:.3g}", cheaper)
    return gain_over(interpolated(curve, y, cost, at), row, y)


def interpolated(curve: Sequence[Row], y: Quantity, cost: Quantity, at: float) -> Level:
    """y of the curve at a cost within it; its standard error is that of two fully correlated neighbours.

    The curve is sorted by cost. Between neighbours y is a straight line in log cost; where plain diffusion's curve is
    convex, as it is as a rule, the line lies above it, which favours what it is compared with.
    """
    after = next(i for i, row in enumerate(curve) if cost.value(row) >= at)
    right = curve[after]
    if cost.value(right) == at:
        return level(right, y)
    before, behind = level(curve[after - 1], y), level(right, y)
    share = math.log(at / cost.value(curve[after - 1])) / math.log(cost.value(right) / cost.value(curve[after - 1]))

    def between(one: float, other: float) -> float:
        return (1 - share) * one + share * other

    each = [between(*pair) for pair in zip(before.each, behind.each, strict=False)]
    return Level(between(before.value, behind.value), between(before.standard_error, behind.standard_error), each)


def equal_plain_steps(row: Row, rows: Sequence[Row], y: Quantity) -> float | NotComparable:
    """How many steps plain diffusion needs to be as good as the row, interpolated in log T; none is extrapolated."""
    curve = sorted(measured(plain_curve(row, rows, y), y), key=STEPS.value)
    wanted = y.value(row)
    if not curve or not math.isfinite(wanted):
        return NotComparable("not measured")
    if wanted > y.value(curve[0]):
        return NotComparable(f"less than {curve[0]['steps']}")
    for left, right in pairwise(curve):
        if y.value(right) <= wanted <= y.value(left):
            drop = y.value(left) - y.value(right)
            share = (y.value(left) - wanted) / drop if drop else 0.0
            return left["steps"] * (right["steps"] / left["steps"]) ** share
    return (
        float(curve[-1]["steps"]) if wanted == y.value(curve[-1]) else NotComparable(f"more than {curve[-1]['steps']}")
    )


def plain_curve(row: Row, rows: Sequence[Row], y: Quantity) -> list[Row]:
    """The rows of plain diffusion that were measured as this one was: same precision and seed, and not legacy."""
    return [
        p
        for p in measured(rows, y)
        if p["energy"] == PLAIN and not p["legacy"] and p["precision"] == row["precision"] and p["seed"] == row["seed"]
    ]


def unpaired(value: float, error: float, row: Row, y: Quantity) -> Comparison:
    """What the row is lower by than `value`, with the errors of both."""
    return Comparison(value - y.value(row), math.hypot(error, y.error_of(row)), paired=False)


def _finite(comparison: Comparison) -> Outcome:
    return comparison if math.isfinite(comparison.gain) else NotComparable("one side is not a finite number")
