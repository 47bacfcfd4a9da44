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
    """Seconds for one pass of the denoiser and for one candidate of each energy, as they were lately."""

    def __init__(self) -> None:
        self._measured: dict[str, tuple[float, float]] = {}  # units and seconds, the older the less they count

    def seconds(self, work: Work, kind: str, drafts: bool) -> float:
        """What the work would take, its candidates being of the energy called `kind`."""
        total = work.passes * self._of(PASS, FIRST_GUESS_SECONDS)
        if work.candidates > 0:
            share = WHOLE_SHARE if drafts else LIGHT_SHARE
            total += work.candidates * self._of(kind, share * self._of(PASS, FIRST_GUESS_SECONDS))
        return total

    def measured(self, kind: str, units: float, seconds: float) -> None:
        """Afterwards it is known that so many candidates of this kind (or `PASS`: passes) took so long."""
        before = self._measured.get(kind, (0.0, 0.0))
        self._measured[kind] = (MEMORY * before[0] + units, MEMORY * before[1] + seconds)

    def _of(self, kind: str, guess: float) -> float:
        units, seconds = self._measured.get(kind, (0.0, 0.0))
        return seconds / units if units else guess


def kind_of(energy: str, sampler: Sampler) -> str:
    """Under what name an energy's candidates are measured: exact draws go place by place, and are no such thing."""
    return f"{energy}, exact" if sampler.candidates == EXACT else energy
