"""Settings of the evaluation: what an experiment's `evaluate` section may ask to be measured."""

from collections.abc import Mapping
from typing import Annotated

import pydantic

from edlm.config import ConfigurationError, Fraction, NonNegative, Positive, PositiveFloat, config
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.evaluation.judge_models import JudgeConfig
from edlm.sampling.unmasking import AtRandom, UnmaskingConfig
from edlm.zero_shot.scoring import ZeroShot
from workflows.row_names import Name, require_free


@config
class ComposedEnergy:
    """A weighted sum of energies: E = sum_i w_i E_i (`edlm.energies.compose.WeightedSum`)."""

    name: Name
    """Name of the sum in tables, figures and the report."""
    weights: dict[str, Annotated[float, pydantic.Field(allow_inf_nan=False)]]
    """Weight of each term, by the energy's name in `finetune`."""

    def __post_init__(self) -> None:
        require_free("evaluate.composed.name", self.name)
        if not self.terms:
            raise ConfigurationError(
                f"evaluate.composed: {self.name!r} has no term; give one energy of `finetune` a weight other than 0"
            )

    @property
    def terms(self) -> dict[str, float]:
        """The weights that are not 0, by the energies' names."""
        return {name: weight for name, weight in self.weights.items() if weight}

    def require_summable(self, field: str, energies: Mapping[str, AbstractEnergyConfig]) -> None:
        """Raise ConfigurationError unless the terms are among `energies` and add up, and the name is not taken."""
        if self.name in energies:
            raise ConfigurationError(f"{field}.name: {self.name!r} is an energy of `finetune`; give another one")
        if unknown := [name for name in self.weights if name not in energies]:
            raise ConfigurationError(
                f"{field}.weights: {', '.join(map(repr, unknown))} not among the energies of `finetune`, which are: "
                f"{', '.join(energies) or 'none'}"
            )
        residual = [name for name in self.terms if energies[name].needs_energy]
        if residual and len(self.terms) > 1:
            raise ConfigurationError(
                f"{field}.weights: {residual[0]!r} is a residual of the energy that it is built on, the others are of "
                "other distributions, so that they do not add up; leave it out, or give it a sum of its own"
            )


@config
class Evaluate:
    """Measurements on the validation split: a grid of samplers, their controls, and sampler-independent numbers."""

    sequences: Positive = 64
    """Validation sequences on which likelihoods are measured."""
    steps: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32)
    """T of the samplers whose bounds are measured."""
    plain_steps: tuple[Positive, ...] = ()
    """More T for plain diffusion alone: with more steps it costs as much as energies do with fewer."""
    candidates: tuple[Positive, ...] = (1, 2, 8)
    """k of the samplers with an energy; 1, plain diffusion, among them."""
    whole_sequence_candidates: tuple[Positive, ...] | None = None
    """k of whole-sequence energies: each candidate costs a pass as long as the denoiser's. None: `candidates`."""
    windows: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 1.0),)
    """[from, to] in t. Whole-sequence energies are also measured with the last step as their only window."""
    temperatures: tuple[PositiveFloat, ...] = (1.0,)
    """tau of the importance weights exp(-E / tau)."""
    repeats: Positive = 1
    """Independent sets of candidates inside the logarithm of a whole-sequence bound, initially."""
    tightness: PositiveFloat | None = None
    """Nats per token: repeats of whole-sequence bounds are doubled until a doubling gains less. None: never."""
    fitted_steps: tuple[Positive, ...] = ()
    """T at which step times are also fitted, for every sampler with a step energy and for plain diffusion."""
    fitted_points: Positive = 16
    """Equally spaced times from which a fitted grid is chosen; no T in `fitted_steps` is larger."""
    fitted_candidates: tuple[NonNegative, ...] | None = None
    """k of the samplers whose steps are fitted, 1 for plain diffusion and 0 for exact; None: all."""
    speculative: bool = False
    """Also time exact samplers with speculative drafts and judge their texts; the bounds are those without."""
    unmasking: tuple[Annotated[UnmaskingConfig, pydantic.Field(discriminator="kind")], ...] = ()
    """Other rules for the positions that a step unmasks, for plain diffusion and every step energy, at the largest k.
    Each is ANOTHER DISTRIBUTION, and every number of it says so."""
    effort_steps: tuple[Positive, ...] = ()
    """T at which the energy and the k of every step are planned from the measured gains and seconds."""
    effort_budgets: tuple[Annotated[float, pydantic.Field(gt=1, allow_inf_nan=False)], ...] = (1.25, 1.5, 2.0)
    """Time budgets of a plan, as multiples of the seconds of plain diffusion at the same T."""
    nelbo_draws: Positive = 16
    """Noise samples per sequence for the denoiser's NELBO."""
    paper_draws: Positive = 4
    """Noise samples per sequence for the paper's estimator and the estimates of log Z."""
    log_partition_draws: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = (8,)
    """Numbers of draws from which log Z is estimated; with more, its two ends approach each other."""
    calibration_draws: Positive = 2
    """Noise samples per sequence on which an energy is to tell data from samples of the denoiser."""
    samples: Positive = 64
    """Texts per sampler that are judged."""
    sample_steps: tuple[Positive, ...] = (8,)
    """T of the samplers whose texts are judged."""
    sample_candidates: tuple[Annotated[int, pydantic.Field(ge=2)], ...] | None = None
    """k of the samplers whose texts are judged; None: the largest of `candidates`."""
    token_temperatures: tuple[PositiveFloat, ...] = (1.0,)
    """Temperatures of the logits that tokens are drawn from: a sweep, to compare quality at the data's entropy."""
    judge: Annotated[JudgeConfig | None, pydantic.Field(discriminator="kind")] = None
    """Judge of the texts. None: the model of the `judge` section; without that section texts are not judged."""
    timed_texts: Positive = 4
    """Texts drawn at once when samplers are timed, with nothing else running."""
    timed_steps: tuple[Positive, ...] = (8,)
    """T at which samplers with an energy are timed; plain diffusion is timed at every T."""
    zero_shot: tuple[ZeroShot, ...] = ()
    """Other corpora on which the models are scored."""
    composed: tuple[ComposedEnergy, ...] = ()
    """Weighted sums of energies in `finetune`, measured like energies that are trained."""
    published_sampler: bool = False
    """Also measure the published sampler, which draws by races in float32; its numbers are labelled."""

    def __post_init__(self) -> None:
        lists = ("steps", "candidates", "windows", "temperatures", "log_partition_draws", "sample_steps")
        for field in (*lists, "token_temperatures", "timed_steps", "sample_candidates", "effort_budgets"):
            if getattr(self, field) == ():
                raise ConfigurationError(f"evaluate.{field} is empty; name at least one")
        if 1 not in self.candidates:
            raise ConfigurationError("evaluate.candidates must hold 1: gains are measured against plain diffusion")
        for low, high in self.windows:
            if low > high:
                raise ConfigurationError(f"evaluate.windows: [{low}, {high}] is not [from, to] with from <= to")
        if self.fitted_steps and max(self.fitted_steps) > self.fitted_points:
            raise ConfigurationError(
                f"evaluate.fitted_steps: {max(self.fitted_steps)} steps cannot be made of {self.fitted_points} times; "
                "raise evaluate.fitted_points"
            )
        rules = [rule.name for rule in self.unmasking]
        if AtRandom().name in rules:
            raise ConfigurationError("evaluate.unmasking: at_random is what is measured anyway; leave it out")
        if duplicate := next((name for name in rules if rules.count(name) > 1), None):
            raise ConfigurationError(f"evaluate.unmasking: two share the name {duplicate!r}; leave one out")
        sums = [energy.name for energy in self.composed]
        if duplicate := next((name for name in sums if sums.count(name) > 1), None):
            raise ConfigurationError(f"evaluate.composed: two share the name {duplicate!r}; rename one")
        names = [corpus.name for corpus in self.zero_shot]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"evaluate.zero_shot: two corpora share a name in {names}")
