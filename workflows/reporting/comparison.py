"""Comparison of a row with another, or with plain diffusion at the same cost, including the significance of the gain.

Lower is better for every compared quantity; a gain is the reduction. Differences are paired where both sides have
values per sequence for the same sequences. Otherwise the errors of both sides are combined as if independent; rows of
the same sequences are not independent, so that such an error is an upper limit.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from workflows.reporting.quantities import STEPS, Quantity, measured
from workflows.reporting.sampler_labels import Row, planned, same_sampler
from workflows.row_names import PLAIN, UNIFORM

DOUBT, BEYOND_DOUBT = 2.0, 3.0  # standard errors


class Verdict(StrEnum):
    """Conclusion supported by a difference and its standard error."""

    BETTER = "better"
    PERHAPS_BETTER = "perhaps better"
    TIE = "no difference"
    PERHAPS_WORSE = "perhaps worse"
    WORSE = "worse"
    UNKNOWN = "error unknown"


@dataclass(frozen=True)
class Comparison:
    """Gain in the unit of the compared quantity; positive is better."""

    gain: float
    standard_error: float
    paired: bool

    @property
    def sigmas(self) -> float:
        """Gain in standard errors; infinite if the standard error is 0, and 0 if the gain is exactly 0."""
        if self.gain == 0:
            return 0.0
        return self.gain / self.standard_error if self.standard_error else math.copysign(math.inf, self.gain)

    @property
    def verdict(self) -> Verdict:
        """Verdict: significant beyond 3 standard errors, no difference within 2."""
        if math.isnan(self.sigmas):
            return Verdict.UNKNOWN
        if abs(self.sigmas) < DOUBT:
            return Verdict.TIE
        if abs(self.sigmas) < BEYOND_DOUBT:
            return Verdict.PERHAPS_BETTER if self.gain > 0 else Verdict.PERHAPS_WORSE
        return Verdict.BETTER if self.gain > 0 else Verdict.WORSE


@dataclass(frozen=True)
class NotComparable:
    """A comparison that the measurements do not support, and the reason."""

    reason: str
    cheaper: Comparison | None = None
    """Comparison with the most expensive measured plain diffusion, if it still costs less than the row."""


Outcome = Comparison | NotComparable


@dataclass(frozen=True)
class Level:
    """Reference of a comparison: value, standard error and, if stored, values per sequence."""

    value: float
    standard_error: float
    by_sequence: Sequence[float] = ()


def level(row: Row, y: Quantity) -> Level:
    """Return a measured row as a reference level."""
    return Level(y.value(row), y.error_of(row), y.by_sequence(row))


def gain_over(reference: Level, row: Row, y: Quantity) -> Comparison:
    """Return the gain of the row over a level, paired by sequence if both sides have values per sequence."""
    values = y.by_sequence(row)
    if not values or len(values) != len(reference.by_sequence):
        return unpaired(reference.value, reference.standard_error, row, y)
    gains = [level - value for level, value in zip(reference.by_sequence, values, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return Comparison(statistics.fmean(gains), error, paired=True)


def same_steps(row: Row, rows: Sequence[Row], y: Quantity) -> Outcome:
    """Compare the row with plain diffusion at the same T; paired if the row contains its own gain."""
    if y.gain is not None:
        return _finite(Comparison(y.gain.value(row), y.gain.error_of(row), paired=True))
    twin = next((p for p in plain_curve(row, rows, y) if p["steps"] == row["steps"]), None)
    if twin is None:
        return NotComparable(f"plain diffusion was not measured at T = {row['steps']}")
    return _finite(gain_over(level(twin, y), row, y))


def against_uniform(row: Row, rows: Sequence[Row], y: Quantity) -> Outcome:
    """Compare the row with the same sampler under uniform weights, to rule out a gain from k draws alone."""
    if planned(row):
        return NotComparable("a plan has no single k for all steps")
    if not row["candidates"]:
        return NotComparable("exact sampling has no candidates to weight uniformly")
    controls = (r for r in rows if r["energy"] == UNIFORM and r["steps"] == row["steps"])
    twin = next(
        (
            r
            for r in controls
            if same_sampler(r, row, besides=("published", "energy_temperature")) and not r["published"]
        ),
        None,
    )
    if twin is None:
        return NotComparable("the control was not measured for this sampler")
    return _finite(gain_over(level(twin, y), row, y))


def same_cost(row: Row, rows: Sequence[Row], y: Quantity, cost: Quantity) -> Outcome:
    """Compare the row with plain diffusion at the same cost, interpolated linearly in the logarithm of the cost.

    Return NotComparable outside the measured costs of plain diffusion: there is no extrapolation.
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
    """Return y of the curve at cost `at`; its standard error assumes fully correlated neighbors.

    The curve is sorted by cost. Between neighbors y is linear in log cost; where plain diffusion's curve is convex, as
    it usually is, the line lies above the curve, which favors the row that is compared with it.
    """
    after = next(i for i, row in enumerate(curve) if cost.value(row) >= at)
    right = curve[after]
    if cost.value(right) == at:
        return level(right, y)
    before, behind = level(curve[after - 1], y), level(right, y)
    share = math.log(at / cost.value(curve[after - 1])) / math.log(cost.value(right) / cost.value(curve[after - 1]))

    def between(left: float, right: float) -> float:
        return (1 - share) * left + share * right

    by_sequence = [between(*pair) for pair in zip(before.by_sequence, behind.by_sequence, strict=False)]
    return Level(
        between(before.value, behind.value), between(before.standard_error, behind.standard_error), by_sequence
    )


def equal_plain_steps(row: Row, rows: Sequence[Row], y: Quantity) -> float | NotComparable:
    """Return the T at which plain diffusion matches the row, interpolated in log T, never extrapolated."""
    curve = sorted(measured(plain_curve(row, rows, y), y), key=STEPS.value)
    target = y.value(row)
    if not curve or not math.isfinite(target):
        return NotComparable("not measured")
    if target > y.value(curve[0]):
        return NotComparable(f"less than {curve[0]['steps']}")
    for left, right in pairwise(curve):
        if y.value(right) <= target <= y.value(left):
            drop = y.value(left) - y.value(right)
            share = (y.value(left) - target) / drop if drop else 0.0
            return left["steps"] * (right["steps"] / left["steps"]) ** share
    return (
        float(curve[-1]["steps"]) if target == y.value(curve[-1]) else NotComparable(f"more than {curve[-1]['steps']}")
    )


def plain_curve(row: Row, rows: Sequence[Row], y: Quantity) -> list[Row]:
    """Return the rows of plain diffusion with the precision and seed of this row, excluding the published sampler."""
    return [
        p
        for p in measured(rows, y)
        if p["energy"] == PLAIN
        and not p["published"]
        and p["precision"] == row["precision"]
        and p["seed"] == row["seed"]
    ]


def unpaired(value: float, error: float, row: Row, y: Quantity) -> Comparison:
    """Return the unpaired gain of the row over `value`, with the errors of both sides combined."""
    return Comparison(value - y.value(row), math.hypot(error, y.error_of(row)), paired=False)


def _finite(comparison: Comparison) -> Outcome:
    return comparison if math.isfinite(comparison.gain) else NotComparable("one side is not a finite number")
