"""Quality at matched entropy: the nll that a sweep over one setting reaches at the entropy of the data.

Every sampler can trade variety for likelihood, for example by its temperature, so samplers are compared at one entropy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edlm.evaluation.judged_quality import Average


@dataclass(frozen=True)
class Point:
    """One setting of a sweep: mean nll and entropy of its texts, in nats."""

    setting: float
    """The temperature, or another swept setting."""
    nll: Average
    entropy: Average


@dataclass(frozen=True)
class Matched:
    """The nll at the requested entropy, or None and the reason."""

    nll: Average | None
    between: tuple[float, float] | None
    """The settings between which the nll is interpolated."""
    reason: str | None = None


def nll_at_entropy(points: Sequence[Point], entropy: Average) -> Matched:
    """Interpolate the nll at `entropy` linearly between neighbouring settings; never extrapolate.

    nll = n1 + s (H - h1), s = (n2 - n1) / (h2 - h1); its error treats n1, n2, h1, h2 and H as independent. The nll and
    the entropy of the same texts mostly rise together, and the error is then too large rather than too small.
    Raise ValueError for a value that is not finite, and for a setting that occurs twice.
    """
    points = sorted(points, key=lambda point: point.setting)
    _require_sweep(points, entropy)
    above = [point.entropy.mean - entropy.mean for point in points]
    segments = list(pairwise(range(len(points))))
    crossed = [(i, j) for i, j in segments if above[i] * above[j] < 0]
    hit = [i for i, difference in enumerate(above) if difference == 0]
    if len(points) < 2:
        return Matched(None, None, f"{len(points)} points are no sweep; measure at two settings or more")
    if not crossed and not hit:
        low, high = (f"{entropy.mean + end(above):.4g}" for end in (min, max))
        return Matched(
            None, None, f"entropy {entropy.mean:.4g} is outside the sweep's {low} to {high}; widen the sweep"
        )
    if len(crossed) + len(hit) > 1:
        settings = [points[i].setting for i in sorted([*hit, *(i for i, _ in crossed)])]
        return Matched(None, None, f"entropy {entropy.mean:.4g} is reached more than once, at and after {settings}")
    # A point with exactly this entropy ends two segments; the steeper one makes its nll less certain.
    nearest = crossed or [segment for segment in segments if hit[0] in segment]
    nll, i, j = max(
        ((_interpolated(points[i], points[j], entropy), i, j) for i, j in nearest),
        key=lambda candidate: candidate[0].standard_error,
    )
    return Matched(nll, (points[i].setting, points[j].setting))


def _interpolated(a: Point, b: Point, entropy: Average) -> Average:
    weight = (entropy.mean - a.entropy.mean) / (b.entropy.mean - a.entropy.mean)
    slope = (b.nll.mean - a.nll.mean) / (b.entropy.mean - a.entropy.mean)
    error = math.hypot(
        (1 - weight) * a.nll.standard_error,
        weight * b.nll.standard_error,
        slope * (1 - weight) * a.entropy.standard_error,
        slope * weight * b.entropy.standard_error,
        slope * entropy.standard_error,
    )
    return Average((1 - weight) * a.nll.mean + weight * b.nll.mean, error)


def _require_sweep(points: Sequence[Point], entropy: Average) -> None:
    for point in points:
        if not all(map(math.isfinite, (point.setting, point.nll.mean, point.entropy.mean, entropy.mean))):
            raise ValueError(f"{point} at entropy {entropy.mean}: a value is not finite")
    for a, b in pairwise(points):
        if a.setting == b.setting:
            raise ValueError(f"the setting {a.setting} stands twice in the sweep; give one point for each setting")
