"""Experiment: the root of every YAML, from the text to the endpoint."""

from typing import Annotated, Literal

import pydantic

from cluster.config import Cluster, Serving, Tracking
from edlm.config import ConfigurationError, Positive, config
from edlm.energy import EnergyConfig
from edlm.objective import LARGEST_GRID
from edlm.sampler import Sampler
from edlm.schedule import LogLinear, ScheduleConfig
from edlm.tokens import Data
from edlm.training import Training
from edlm.transformer import Trunk

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
    """What is measured on the validation split, and how finely."""

    sequences: Positive = 64
    steps: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32)
    candidates: tuple[Positive, ...] = (1, 2, 8)
    repeats: Positive = 1
    nelbo_draws: Positive = 16
    paper_draws: Positive = 4
    log_partition_draws: Annotated[int, pydantic.Field(ge=2)] = 8
    samples: Positive = 64
    sample_steps: tuple[Positive, ...] = (8,)

    def __post_init__(self) -> None:
        for field in ("steps", "candidates", "sample_steps"):
            if not getattr(self, field):
                raise ConfigurationError(f"evaluate.{field} is empty; name at least one")
        if 1 not in self.candidates:
            raise ConfigurationError("evaluate.candidates must hold 1: gains are measured against plain diffusion")


@config
class Register:
    """The registered model: its name, the energy it generates with, and how, unless a request says otherwise."""

    model: Name = "edlm"
    energy: Name
    sampler: Sampler = Sampler(steps=16, candidates=8)


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
    denoiser: Trunk = Trunk()
    autoregressive: Trunk = Trunk()
    """Of the baseline, and of the judge, which is trained on its own split."""
    pretrain: Training
    autoregress: Training
    judge: Training
    finetune: tuple[Finetune, ...]
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
        for i, one in enumerate(self.finetune):
            before = [other.name for other in self.finetune[:i] if other.energy.kind == "conditional"]
            if one.base is not None and one.base not in before:
                raise ConfigurationError(
                    f"finetune.{i}.base: {one.base!r} is no conditional energy that stands before {one.name!r}; "
                    f"there are: {', '.join(before) or 'none'}"
                )
        if self.register.energy not in names:
            raise ConfigurationError(f"register.energy: {self.register.energy!r} is not among the energies {names}")
        if self.autoregressive.time_conditioning:
            raise ConfigurationError("autoregressive.time_conditioning: an autoregressive model has no diffusion time")
