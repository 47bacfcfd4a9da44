"""Experiment: the root of every YAML, from the text to the endpoint."""

from typing import Annotated, Literal

import pydantic

from cluster.config import Cluster, Serving, Tracking
from edlm.config import ConfigurationError, Fraction, NonNegative, Positive, PositiveFloat, config
from edlm.data.packing import Data
from edlm.energies.kinds import EnergyConfig
from edlm.evaluation.judge import JudgeConfig, OwnJudge
from edlm.models.transformer import TransformerConfig
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import AtRandom, RevealConfig
from edlm.schedule import LogLinear, ScheduleConfig
from edlm.training.energy_objectives import LARGEST_GRID
from edlm.training.loop import Training
from edlm.zero_shot.scoring import ZeroShot

Name = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


@config
class Finetune:
    """One energy, and how it is trained; `ar` and `coar` are built on the autoregressive model instead."""

    name: Name
    energy: Annotated[EnergyConfig, pydantic.Field(discriminator="kind")]
    training: Training | None = None
    loss: Literal["ranking", "binary"] = "ranking"
    negatives: Positive = 7
    """K noise samples for each data sample; conditional energies need none."""
    largest_grid: Positive = LARGEST_GRID
    """Energies on what a step keeps are trained at T = 1 to this, log-uniform."""
    base: Name | None = None
    """Of a residual energy: the conditional energy that proposes its candidates, by its name."""

    def __post_init__(self) -> None:
        if (self.energy.kind == "residual") != (self.base is not None):
            raise ConfigurationError(
                f"energy {self.name!r}: a residual energy, and no other, names in `base` a conditional energy"
            )
        trainable = self.energy.kind not in ("ar", "coar")
        if trainable and self.training is None:
            raise ConfigurationError(f"energy {self.name!r} of kind {self.energy.kind!r} needs a `training` section")
        if not trainable and self.training is not None:
            raise ConfigurationError(
                f"energy {self.name!r} of kind {self.energy.kind!r} is built on the autoregressive model; "
                "remove its `training` section"
            )


@config
class Evaluate:
    """What is measured on the validation split: a grid of samplers, their controls, and what belongs to no sampler."""

    sequences: Positive = 64
    steps: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32)
    plain_steps: tuple[Positive, ...] = ()
    """T at which plain diffusion alone is measured, too: at more steps it costs what energies cost at fewer."""
    candidates: tuple[Positive, ...] = (1, 2, 8)
    whole_draft_candidates: tuple[Positive, ...] | None = None
    """k of energies on whole drafts, each of which costs a pass as long as the denoiser's; None: `candidates`."""
    windows: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 1.0),)
    """Whole drafts are weighed in the last step alone, too."""
    temperatures: tuple[PositiveFloat, ...] = (1.0,)
    """tau of the weights exp(-E / tau)."""
    repeats: Positive = 1
    """Independent sets of candidates inside a whole-draft bound's logarithm, to begin with."""
    tightness: PositiveFloat | None = None
    """Nats per token: whole-draft repeats are doubled until a doubling gains less. None: never."""
    fitted_steps: tuple[Positive, ...] = ()
    """T at which the times of the steps are fitted, too, for every sampler of step energies and for plain diffusion."""
    fitted_points: Positive = 16
    """Equally spaced times that a fitted grid may be made of; no T in `fitted_steps` is larger."""
    fitted_candidates: tuple[NonNegative, ...] | None = None
    """k of the samplers whose steps are fitted, 1 for plain diffusion and 0 for exact; None: every one."""
    speculative: bool = False
    """Time exact samplers, and judge their texts, by verifying drafts, too; their bounds are those of exact."""
    revealing: tuple[Annotated[RevealConfig, pydantic.Field(discriminator="kind")], ...] = ()
    """Other ways to choose what a step reveals, for plain diffusion and every energy on what a step keeps, at the
    largest k. Each makes ANOTHER LAW, and every number of it says so."""
    effort_steps: tuple[Positive, ...] = ()
    """T at which the energy and the k of every step are planned by what they gain for their seconds."""
    effort_budgets: tuple[Annotated[float, pydantic.Field(gt=1, allow_inf_nan=False)], ...] = (1.25, 1.5, 2.0)
    """What a plan may take, in times the seconds of plain diffusion at the same T."""
    nelbo_draws: Positive = 16
    paper_draws: Positive = 4
    log_partition_draws: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = (8,)
    """Drafts that log Z is estimated from; its two ends close as they grow."""
    calibration_draws: Positive = 2
    samples: Positive = 64
    sample_steps: tuple[Positive, ...] = (8,)
    sample_candidates: tuple[Annotated[int, pydantic.Field(ge=2)], ...] | None = None
    """k of the samplers whose texts are judged; None: the largest of `candidates`."""
    token_temperatures: tuple[PositiveFloat, ...] = (1.0,)
    """Of the logits that tokens are drawn from: a sweep, to compare qualities at the entropy of the data."""
    judge: Annotated[JudgeConfig, pydantic.Field(discriminator="kind")] = OwnJudge()
    timed_texts: Positive = 4
    """Texts that are drawn at once when samplers are timed, with nothing else running."""
    timed_steps: tuple[Positive, ...] = (8,)
    """T at which samplers with an energy are timed; plain diffusion is timed at every T."""
    zero_shot: tuple[ZeroShot, ...] = ()
    """Other corpora that the models are scored on."""
    legacy: bool = False
    """Measure the published generator, too: races in float32. Every number of it says so."""

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
        ways = [how.name for how in self.revealing]
        if AtRandom().name in ways:
            raise ConfigurationError("evaluate.revealing: at_random is what is measured anyway; leave it out")
        if twice := next((name for name in ways if ways.count(name) > 1), None):
            raise ConfigurationError(f"evaluate.revealing: two share the name {twice!r}; leave one out")
        names = [where.name for where in self.zero_shot]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"evaluate.zero_shot: two corpora share a name in {names}")


@config
class Register:
    """The registered model: its name, the energy it generates with, and how, unless a request says otherwise."""

    model: Name = "edlm"
    energy: Name
    sampler: Sampler = Sampler(steps=16, candidates=8)


@config
class Given:
    """Models that another run has trained, as URIs of their folders: the stages that would make them are not run."""

    denoiser: str | None = None
    autoregressive: str | None = None
    judge: str | None = None
    energies: dict[str, str] = pydantic.Field(default_factory=dict)
    """By the name that the energy has in `finetune`; it must be one of the given denoiser's."""


@config
class Report:
    """The page that tells an experiment's results."""

    folder: str | None = None
    """Where it goes: a folder of its own, or an fsspec URI. None: `report`, beside the outputs of the stages."""
    question: str = (
        "Does choosing among k candidates by an energy make T-step masked diffusion better, by how much, and is it "
        "worth what it costs?"
    )
    """What the experiment asks; it stands at the head of the report."""


@config
class Experiment:
    """Everything that one chain of stages needs to know; stages read their own part."""

    name: Name
    seed: int = 0
    storage: str | None = None
    """Where outputs go: a folder or an fsspec URI. None: the environment's EDLM_HOME, else `runs/` in the project."""
    data: Data
    schedule: Annotated[ScheduleConfig, pydantic.Field(discriminator="kind")] = LogLinear()
    denoiser: TransformerConfig = TransformerConfig()
    autoregressive: TransformerConfig = TransformerConfig()
    """Of the baseline, and of the judge, which is trained on its own split."""
    pretrain: Training
    autoregress: Training
    judge: Training
    finetune: tuple[Finetune, ...]
    given: Given = Given()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    register: Register
    serving: Serving = Serving()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    def __post_init__(self) -> None:
        names = [one.name for one in self.finetune]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"finetune: two energies share a name in {names}")
        if unknown := set(self.given.energies) - set(names):
            raise ConfigurationError(f"given.energies: {sorted(unknown)} are not among the energies {names}")
        for i, one in enumerate(self.finetune):
            before = [other.name for other in self.finetune[:i] if other.energy.kind == "conditional"]
            if one.base is not None and one.base not in before:
                raise ConfigurationError(
                    f"finetune.{i}.base: {one.base!r} is no conditional energy that stands before {one.name!r}; "
                    f"there are: {', '.join(before) or 'none'}"
                )
        if self.register.energy not in names:
            raise ConfigurationError(f"register.energy: {self.register.energy!r} is not among the energies {names}")
        if self.register.sampler.revealing != AtRandom():
            raise ConfigurationError(
                f"register.sampler.revealing: {self.register.sampler.revealing.kind}; the endpoint reveals at_random"
            )
        if self.autoregressive.time_conditioning:
            raise ConfigurationError("autoregressive.time_conditioning: an autoregressive model has no diffusion time")
