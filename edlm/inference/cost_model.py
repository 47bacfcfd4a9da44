"""Work: how much a text asks of each network, and how many seconds that takes here, as last measured."""

from dataclasses import dataclass

from edlm.interfaces import AbstractEnergy
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import AbstractSchedule

FIRST_GUESS_SECONDS = 0.01  # for a pass of the denoiser, before anything was measured
WHOLE_SHARE, LIGHT_SHARE = 0.75, 0.2  # of a pass, first guesses for a candidate that fills a whole canvas
MEMORY = 0.97  # how much a call counts beside the one after it
SPREAD = 0.1  # of their mean, by which calls must differ in size to tell what the start of one takes
LEAST = 0.1  # of its mean price, that a unit costs at least: a line through few calls may fall
PASS = "denoiser"


@dataclass(frozen=True)
class Work:
    """Passes of the denoiser, and candidates of one energy, both counted in whole canvases."""

    passes: float = 0.0
    candidates: float = 0.0
    weighed: float = 0.0
    """Steps that ask the energy."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.passes + other.passes, self.candidates + other.candidates, self.weighed + other.weighed)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.passes - other.passes, self.candidates - other.candidates, self.weighed - other.weighed)


def of_step(share: float, weighed: bool, sampler: Sampler, energy: AbstractEnergy | None) -> Work:
    """What a step costs that reveals this share of the canvas: a light head sees no other positions."""
    if not weighed or energy is None:
        return Work(1.0)
    return Work(1.0, max(sampler.candidates, 1) * (1.0 if energy.whole_sequence else share), 1.0)


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
    steps = moves[weighed].sum().item()
    canvases = steps if energy.whole_sequence else now[weighed].sum().item() * masked / length
    return Work(passes, max(sampler.candidates, 1) * canvases, steps)


def most_of_canvas(masked: int, length: int, sampler: Sampler, energy: AbstractEnergy | None) -> Work:
    """What it may cost at most to fill `masked` positions of a canvas: a step that costs reveals one of them."""
    passes = min(sampler.steps, masked)
    steps = min(int(sampler.weighs(sampler.times()[1:], energy).sum()), masked)
    if energy is None or steps == 0:
        return Work(passes)
    canvases = steps if energy.whole_sequence else masked / length
    return Work(passes, max(sampler.candidates, 1) * canvases, steps)


@dataclass
class CostModel:
    """Seconds of a call, `start` + units x `each`: a line through the latest calls; the older, the less they count.

    The very first call also makes ready what all others find ready: it counts only until there is another.
    """

    warm: bool = False
    calls: float = 0.0
    units: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def measured(self, units: float, seconds: float) -> None:
        """Afterwards one call more is known."""
        memory = MEMORY if self.warm else 0.0
        self.warm = self.calls > 0
        for name, value in (
            ("calls", 1.0), ("units", units), ("seconds", seconds), ("squares", units**2), ("products", units * seconds)
        ):  # fmt: skip
            setattr(self, name, memory * getattr(self, name) + value)

    @property
    def parts(self) -> tuple[float, float]:
        """(start, each). Where all calls were alike there is no telling: then what is twice as much takes twice as
        long, which errs on the side of caution."""
        units, seconds = self.units / self.calls, self.seconds / self.calls
        spread = self.squares / self.calls - units**2
        each = seconds / units
        if spread > (SPREAD * units) ** 2:
            slope = (self.products / self.calls - units * seconds) / spread
            each = min(each, max(LEAST * each, slope))
        return seconds - each * units, each


class Pace:
    """What a pass of the denoiser and a candidate of each energy cost here, as lately measured."""

    def __init__(self) -> None:
        self._prices: dict[str, CostModel] = {}

    def seconds(self, work: Work, kind: str, drafts: bool, rows: int) -> float:
        """What the work would take, its candidates being of the energy called `kind`.

        The start of a call is shared by the `rows` of a batch.
        """
        start, each = self._parts(PASS, FIRST_GUESS_SECONDS)
        total = work.passes * (start / rows + each)
        if work.candidates > 0:
            start, each = self._of_candidates(kind, drafts)
            total += work.weighed * start / rows + work.candidates * each
        return total

    def divisible(self, work: Work, kind: str, drafts: bool) -> float:
        """The seconds of it that can be divided: those of the candidates themselves."""
        return work.candidates * self._of_candidates(kind, drafts)[1]

    def knows(self, kind: str) -> bool:
        """Whether any call of this kind was measured."""
        return kind in self._prices

    def measured(self, kind: str, units: float, seconds: float) -> None:
        """Afterwards it is known that a call of so many candidates of this kind (or `PASS`: rows) took so long."""
        self._prices.setdefault(kind, CostModel()).measured(units, seconds)

    def _of_candidates(self, kind: str, drafts: bool) -> tuple[float, float]:
        a_pass = sum(self._parts(PASS, FIRST_GUESS_SECONDS))
        return self._parts(kind, a_pass * (WHOLE_SHARE if drafts else LIGHT_SHARE))

    def _parts(self, kind: str, guess: float) -> tuple[float, float]:
        return self._prices[kind].parts if kind in self._prices else (0.0, guess)


def kind_of(energy: str, sampler: Sampler) -> str:
    """Under what name an energy's candidates are measured: exact draws go place by place, and are no such thing."""
    return f"{energy}, exact" if sampler.candidates == EXACT else energy
