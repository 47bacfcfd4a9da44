"""Work: how much a text asks of each network, and how many seconds that takes here, as last measured."""

from dataclasses import dataclass

from edlm.abstract_energy import AbstractEnergy
from edlm.sampler import EXACT, Sampler
from edlm.schedule import AbstractSchedule

FIRST_GUESS_SECONDS = 0.01  # for a pass of the denoiser, before anything was measured
WHOLE_SHARE, LIGHT_SHARE = 0.75, 0.2  # of a pass, first guesses for a candidate that fills a whole canvas
MEMORY = 0.9  # how much of what was measured before still counts beside a new measurement
PASS = "denoiser"


@dataclass(frozen=True)
class Work:
    """Passes of the denoiser, and candidates of one energy, both counted in whole canvases."""

    passes: float = 0.0
    candidates: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.passes + other.passes, self.candidates + other.candidates)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.passes - other.passes, self.candidates - other.candidates)


def of_step(share: float, weighed: bool, sampler: Sampler, energy: AbstractEnergy | None) -> Work:
    """What a step costs that reveals this share of the canvas: a light head sees no other positions."""
    if not weighed or energy is None:
        return Work(1.0)
    return Work(1.0, max(sampler.candidates, 1) * (1.0 if energy.drafts else share))


def of_canvas(
    masked: int, length: int, sampler: Sampler, energy: AbstractEnergy | None, schedule: AbstractSchedule
) -> Work:
    """What it costs to fill `masked` positions of a canvas, in expectation: steps that reveal nothing cost nothing."""
    times = sampler.times()
    now = schedule.alpha(times[:-1]) - schedule.alpha(times[1:])  # P(a position is revealed by this step)
    moves = 1 - (1 - now.clamp(0, 1)) ** masked
    passes = moves.sum().item()
    if energy is None:
        return Work(passes)
    weighed = sampler.weighs(times[1:], energy)
    k = max(sampler.candidates, 1)
    canvases = moves[weighed].sum().item() if energy.drafts else now[weighed].sum().item() * masked / length
    return Work(passes, k * canvases)


class Pace:
    """Seconds for one pass of the denoiser and for one candidate of each energy, as they were lately.

    A row among many is cheaper than alone where a device is not full, so batches of each power of two are measured on
    their own; for one that was never seen the next smaller one speaks, which is no faster.
    """

    def __init__(self) -> None:
        # Units and seconds by kind and size, the older the less they count.
        self._measured: dict[tuple[str, int], tuple[float, float]] = {}

    def seconds(self, work: Work, kind: str, drafts: bool, rows: int) -> float:
        """What the work would take in batches of so many rows, its candidates being of the energy called `kind`."""
        a_pass = self._of(PASS, rows, FIRST_GUESS_SECONDS)
        total = work.passes * a_pass
        if work.candidates > 0:
            total += work.candidates * self._of(kind, rows, a_pass * (WHOLE_SHARE if drafts else LIGHT_SHARE))
        return total

    def measured(self, kind: str, units: float, rows: int, seconds: float) -> None:
        """Afterwards it is known that so many candidates of this kind (or `PASS`: passes), in so many rows, took so
        long."""
        at = kind, rows.bit_length()
        before = self._measured.get(at, (0.0, 0.0))
        self._measured[at] = (MEMORY * before[0] + units, MEMORY * before[1] + seconds)

    def _of(self, kind: str, rows: int, guess: float) -> float:
        sizes = sorted((size for one, size in self._measured if one == kind), reverse=True)
        if not sizes:
            return guess
        units, seconds = self._measured[kind, next((size for size in sizes if size <= rows.bit_length()), sizes[-1])]
        return seconds / units


def kind_of(energy: str, sampler: Sampler) -> str:
    """Under what name an energy's candidates are measured: exact draws go place by place, and are no such thing."""
    return f"{energy}, exact" if sampler.candidates == EXACT else energy
