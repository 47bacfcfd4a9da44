"""Cost model: the work of a text per network, and its estimated seconds from recent measurements on this machine."""

from dataclasses import dataclass

from edlm.constraints.automaton import TokenAutomaton
from edlm.interfaces import AnyEnergy, Model
from edlm.sampling.sampler import EXACT, Sampler

FIRST_GUESS_SECONDS = 0.01  # per denoiser pass, before any measurement
WHOLE_SHARE, LIGHT_SHARE = 0.75, 0.2  # of a pass: initial guesses for a candidate that fills a whole canvas
DECAY = 0.97  # factor on the weight of a measured call at each later call
SPREAD = 0.1  # least standard deviation of call sizes, relative to their mean, that identifies the fixed cost
LEAST = 0.1  # floor on the fitted slope, relative to the mean cost per unit; a fit to few calls can be negative
PASS = "denoiser"
READING = 1.0  # candidates' worth of reading the distribution at all masked positions, which has no pauses
TRANSITIONS = 2**20  # of automata, summed over positions, that count as one more candidate


@dataclass(frozen=True)
class NetworkPasses:
    """Denoiser passes and candidates of one energy, both counted in whole canvases."""

    passes: float = 0.0
    candidates: float = 0.0
    scoring_steps: float = 0.0
    """Steps that call the energy."""

    def __add__(self, other: "NetworkPasses") -> "NetworkPasses":
        return NetworkPasses(
            self.passes + other.passes,
            self.candidates + other.candidates,
            self.scoring_steps + other.scoring_steps,
        )

    def __sub__(self, other: "NetworkPasses") -> "NetworkPasses":
        return NetworkPasses(
            self.passes - other.passes,
            self.candidates - other.candidates,
            self.scoring_steps - other.scoring_steps,
        )


def of_constraint(automaton: TokenAutomaton | None, length: int, sampler: Sampler, energy: AnyEnergy | None) -> float:
    """Return the work per step of drawing a canvas given a constraint, in candidates; 0 without one.

    The denoiser's distribution is read at all masked positions, and a position costs the automaton's transitions and,
    for each candidate, its classes.
    """
    if automaton is None:
        return 0.0
    candidates = 1 if energy is None else sampler.candidates
    return READING + length * (len(automaton.edges.to) + candidates * automaton.transitions.shape[1]) / TRANSITIONS


def of_step(
    share: float, scores: bool, sampler: Sampler, energy: AnyEnergy | None, constraint: float = 0.0
) -> NetworkPasses:
    """Return the work of a step that unmasks this share of the canvas; a light head computes no other positions.

    `constraint`: `of_constraint` of the row; 0 without one.
    """
    candidates = constraint
    if scores and energy is not None:
        candidates += max(sampler.candidates, 1) * (1.0 if energy.whole_sequence else share)
    return NetworkPasses(1.0, candidates, 1.0) if candidates else NetworkPasses(1.0)


def of_canvas(masked: int, length: int, sampler: Sampler, model: Model, constraint: float = 0.0) -> NetworkPasses:
    """Return the expected work of filling `masked` positions of a canvas; steps that unmask nothing are free."""
    times = sampler.times()
    energy, alpha = model.energy, model.schedule.alpha
    share = alpha(times[:-1]) - alpha(times[1:])  # P(a position is unmasked by this step)
    unmasks = 1 - (1 - share.clamp(0, 1)) ** masked  # P(the step unmasks anything)
    passes = unmasks.sum().item()
    if energy is None:
        return NetworkPasses(passes, constraint * passes, passes if constraint else 0.0)
    scoring = sampler.may_score(times[1:], energy)
    steps = unmasks[scoring].sum().item()
    canvases = steps if energy.whole_sequence else share[scoring].sum().item() * masked / length
    candidates = max(sampler.candidates, 1) * canvases + constraint * passes
    return NetworkPasses(passes, candidates, passes if constraint else steps)


def most_of_canvas(masked: int, length: int, sampler: Sampler, energy: AnyEnergy | None) -> NetworkPasses:
    """Return the maximum work of filling `masked` positions: every step with a cost unmasks at least one of them."""
    passes = min(sampler.steps, masked)
    steps = min(int(sampler.may_score(sampler.times()[1:], energy).sum()), masked)
    if energy is None or steps == 0:
        return NetworkPasses(passes)
    canvases = steps if energy.whole_sequence else masked / length
    return NetworkPasses(passes, max(sampler.candidates, 1) * canvases, steps)


@dataclass
class CostModel:
    """Linear model of the seconds per call, start + units x per_unit; the weight of a call decays with its age.

    The very first call includes the warm-up, so it counts only until the next one.
    """

    warm: bool = False
    calls: float = 0.0
    units: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def measured(self, units: float, seconds: float) -> None:
        """Add the measurement of one call."""
        decay = DECAY if self.warm else 0.0
        self.warm = self.calls > 0
        for name, value in (
            ("calls", 1.0), ("units", units), ("seconds", seconds), ("squares", units**2), ("products", units * seconds)
        ):  # fmt: skip
            setattr(self, name, decay * getattr(self, name) + value)

    @property
    def parts(self) -> tuple[float, float]:
        """Return (start, per_unit).

        With calls of one size the fixed cost cannot be identified; assume cost proportional to size (conservative).
        """
        units, seconds = self.units / self.calls, self.seconds / self.calls
        spread = self.squares / self.calls - units**2
        per_unit = seconds / units
        if spread > (SPREAD * units) ** 2:
            slope = (self.products / self.calls - units * seconds) / spread
            per_unit = min(per_unit, max(LEAST * per_unit, slope))
        return seconds - per_unit * units, per_unit


class LatencyModel:
    """Recently measured cost of a denoiser pass and of a candidate of each energy on this machine."""

    def __init__(self) -> None:
        self._models: dict[str, CostModel] = {}

    def seconds(self, work: NetworkPasses, kind: str, whole_sequence: bool, rows: int) -> float:
        """Return the estimated seconds of `work`, whose candidates belong to the energy called `kind`.

        The `rows` of a batch share the fixed cost of a call.
        """
        start, per_unit = self._parts(PASS, FIRST_GUESS_SECONDS)
        total = work.passes * (start / rows + per_unit)
        if work.candidates > 0:
            start, per_unit = self._of_candidates(kind, whole_sequence)
            total += work.scoring_steps * start / rows + work.candidates * per_unit
        return total

    def divisible(self, work: NetworkPasses, kind: str, whole_sequence: bool) -> float:
        """Return the divisible part of the seconds: that of the candidates themselves."""
        return work.candidates * self._of_candidates(kind, whole_sequence)[1]

    def knows(self, kind: str) -> bool:
        """Return whether any call of this kind was measured."""
        return kind in self._models

    def measured(self, kind: str, units: float, seconds: float) -> None:
        """Record the seconds of a call with `units` candidates of this kind (rows, for `PASS`)."""
        self._models.setdefault(kind, CostModel()).measured(units, seconds)

    def _of_candidates(self, kind: str, whole_sequence: bool) -> tuple[float, float]:
        pass_seconds = sum(self._parts(PASS, FIRST_GUESS_SECONDS))
        return self._parts(kind, pass_seconds * (WHOLE_SHARE if whole_sequence else LIGHT_SHARE))

    def _parts(self, kind: str, guess: float) -> tuple[float, float]:
        return self._models[kind].parts if kind in self._models else (0.0, guess)


def kind_of(energy: str, sampler: Sampler, constrained: bool = False) -> str:
    """Return the name under which an energy's candidates are measured.

    Exact draws are measured separately, because they proceed position by position, and so are candidates that satisfy a
    constraint.
    """
    if constrained:
        return f"{energy}, constrained"
    return f"{energy}, exact" if sampler.candidates == EXACT else energy
