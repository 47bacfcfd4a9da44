"""Experiment: the root configuration of every YAML file, from text to endpoint."""

from typing import Annotated, Literal

import pydantic

from cluster.config import Cluster, Serving, Tracking
from edlm.checkpoints.network_kinds import AutoregressiveSettings, DenoiserSettings
from edlm.config import ConfigurationError, NonNegative, Positive, config
from edlm.data.preparation import Data
from edlm.energies.kinds import EnergyConfig
from edlm.evaluation.judge_models import JudgeConfig, TrainedJudge
from edlm.huggingface.denoiser import HuggingFaceDenoiserSource
from edlm.huggingface.source import HuggingFaceSource
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.models.denoiser import TransformerDenoiserConfig
from edlm.models.transformer import TransformerConfig
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.unmasking import AtRandom
from edlm.schedule import LogLinear, ScheduleConfig
from edlm.training.energy_objectives import LARGEST_GRID
from edlm.training.settings import Training
from workflows.evaluation_settings import Evaluate
from workflows.row_names import Name, require_free


@config
class Finetune:
    """One energy and its training, if it has weights of its own to train."""

    name: Name
    """Name of the energy in tables, in `register.energy` and in requests."""
    energy: Annotated[EnergyConfig, pydantic.Field(discriminator="kind")]
    """Kind and size of the energy."""
    training: Training | None = None
    """Training of the weights; the denoiser is frozen. None: it has none of its own (`ar`, `coar`) or is in `given`."""
    loss: Literal["ranking", "binary"] = "ranking"
    """Loss of noise contrastive estimation: ranking picks the data among all K + 1, binary tells each from noise.
    Energies with Z = 1 are trained by maximum likelihood instead."""
    negatives: Positive = 7
    """K noise samples per data sample; energies with Z = 1 are trained without."""
    largest_grid: Positive = LARGEST_GRID
    """Largest T at which step energies are trained; T is log-uniform from 1."""
    base: Name | None = None
    """Name of the energy that this one is built on, which stands before it; for residual energies."""

    def __post_init__(self) -> None:
        energy, named = self.energy, f"energy {self.name!r} of kind {self.energy.kind!r}"
        require_free("finetune.name", self.name)
        if energy.needs_energy and self.base is None:
            raise ConfigurationError(f"{named} is built on another energy; name in `base` one that stands before it")
        if not energy.needs_energy and self.base is not None:
            raise ConfigurationError(f"{named} is not built on another energy; remove its `base`, {self.base!r}")
        if not energy.trained and self.training is not None:
            raise ConfigurationError(f"{named} has no weights of its own to train; remove its `training` section")
        if self.training is not None and self.training.lora is not None:
            raise ConfigurationError(f"{named}: training.lora is for networks of kind huggingface; remove it")


@config
class Register:
    """The registered model: its name, its energy, and the sampler that it uses unless a request says otherwise."""

    model: Name = "edlm"
    """Name in the model registry, and the model's name in requests."""
    energy: Name | None = None
    """Name of an energy in `finetune`. None: plain diffusion, whose sampler has one candidate."""
    sampler: Sampler = Sampler(steps=16, candidates=8)
    """Sampler of a request, unless it sets others of these settings itself."""
    examples: NonNegative = 4
    """Excerpts of validation text that the bundle holds and the endpoint shows: beginnings of documents. 0: none."""

    def __post_init__(self) -> None:
        if self.energy is None and self.sampler.candidates != 1:
            raise ConfigurationError(
                f"register.sampler.candidates is {self.sampler.candidates}, and register.energy names no energy to "
                "choose among candidates; set it to 1 for plain diffusion, or name an energy of `finetune`"
            )
        if self.sampler.unmasking != AtRandom():
            raise ConfigurationError(
                f"register.sampler.unmasking: {self.sampler.unmasking.kind}; the endpoint unmasks at_random"
            )


@config
class Given:
    """Models that another run has trained, as URIs of their folders; the stages that would train them are not run."""

    denoiser: str | None = None
    """Denoiser; replaces the pretrain stage."""
    autoregressive: str | None = None
    """Autoregressive model; replaces the autoregress stage."""
    judge: str | None = None
    """Judge; replaces the judge's training."""
    energies: dict[str, str] = pydantic.Field(default_factory=dict)
    """By the energy's name in `finetune`; it must be one that belongs to the given denoiser."""


@config
class Report:
    """The page with an experiment's results."""

    folder: str | None = None
    """Target: a folder of its own, or an fsspec URI. None: `report`, next to the outputs of the stages."""
    question: str = (
        "Does choosing among k candidates by an energy make T-step masked diffusion better, by how much, and is it "
        "worth what it costs?"
    )
    """The question of the experiment, at the head of the report."""


@config
class Experiment:
    """The configuration of one chain of stages; each stage reads its own part."""

    name: Name
    """Name of the experiment: the folder of its outputs, and the MLflow run of its pipeline."""
    seed: int = 0
    """Seed of fresh weights, of the noise in training and evaluation, and of the generated texts; not of the splits."""
    storage: str | None = None
    """Folder or fsspec URI of the outputs. None: the environment's EDLM_HOME, else `runs/` in the project."""
    data: Data
    """Corpus, tokenizer, length of a row, and splits."""
    schedule: Annotated[ScheduleConfig, pydantic.Field(discriminator="kind")] = LogLinear()
    """Noise schedule of the diffusion; a denoiser and its energies share it."""
    denoiser: DenoiserSettings = TransformerDenoiserConfig()
    """Network of the denoiser."""
    autoregressive: AutoregressiveSettings = TransformerAutoregressiveConfig()
    """Network of the baseline, and of the judge, which is trained on its own split."""
    pretrain: Training | None = None
    """Training of the denoiser. None: one of kind `huggingface` is used as it is; any other kind needs it."""
    autoregress: Training | None = None
    """Training of the autoregressive baseline, the source of `ar` and `coar`. None: none, or of kind `huggingface`."""
    judge: Training | None = None
    """Training of the judge, on the documents of `data.shares.judge`. None: no judge of this project's own."""
    finetune: tuple[Finetune, ...] = ()
    """Energies to train against the denoiser, in this order."""
    given: Given = Given()
    """Models of other runs, in place of training them."""
    evaluate: Evaluate | None = None
    """Measurements of the samplers and models. None: nothing is measured."""
    report: Report = Report()
    """Page with the results of the evaluation."""
    register: Register
    """Model to register: its name, energy and sampler."""
    serving: Serving = Serving()
    """Endpoint that serves the registered model."""
    cluster: Cluster = Cluster()
    """Ray cluster and its training workers."""
    tracking: Tracking = Tracking()
    """MLflow tracking server and model registry."""

    def __post_init__(self) -> None:
        self._check_energies()
        self._check_judge()
        self._check_weights()
        if isinstance(self.autoregressive, TransformerConfig) and self.autoregressive.time_conditioning:
            raise ConfigurationError("autoregressive.time_conditioning: an autoregressive model has no diffusion time")

    @property
    def has_autoregressive(self) -> bool:
        """Whether there is an autoregressive baseline: trained, given, or with weights of its own."""
        has_weights = isinstance(self.autoregressive, HuggingFaceSource)
        return has_weights or self.autoregress is not None or self.given.autoregressive is not None

    @property
    def judge_config(self) -> JudgeConfig | None:
        """The judge of the evaluation; None if texts are not judged."""
        if self.evaluate is None:
            return None
        has_judge = self.judge is not None or self.given.judge is not None
        return self.evaluate.judge or (TrainedJudge() if has_judge else None)

    def _check_energies(self) -> None:
        names = [entry.name for entry in self.finetune]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"finetune: two energies share a name in {names}")
        if unknown := set(self.given.energies) - set(names):
            raise ConfigurationError(f"given.energies: {sorted(unknown)} are not among the energies {names}")
        for i, entry in enumerate(self.finetune):
            bases = [other.name for other in self.finetune[:i] if entry.energy.accepts(other.energy)]
            if entry.base is not None and entry.base not in bases:
                raise ConfigurationError(
                    f"finetune.{i}.base: {entry.base!r} is no energy that one of kind {entry.energy.kind!r} can be "
                    f"built on and that stands before {entry.name!r}; there are: {', '.join(bases) or 'none'}"
                )
            made_here = entry.name not in self.given.energies
            if made_here and entry.energy.trained and entry.training is None:
                raise ConfigurationError(
                    f"finetune.{i}: energy {entry.name!r} of kind {entry.energy.kind!r} needs a `training` section, or "
                    "a model's folder in given.energies"
                )
            if made_here and entry.energy.needs_autoregressive and not self.has_autoregressive:
                raise ConfigurationError(
                    f"finetune.{i}: {entry.name!r} is built on the autoregressive model, and there is none; add an "
                    "`autoregress` section, or name a model's folder in given.autoregressive"
                )
        for i, composed in enumerate(self.evaluate.composed if self.evaluate else ()):
            composed.require_summable(f"evaluate.composed.{i}", {entry.name: entry.energy for entry in self.finetune})
        exact = [entry.name for entry in self.finetune if entry.energy.network.normalised]
        if self.register.sampler.candidates == EXACT and self.register.energy in set(names) - set(exact):
            raise ConfigurationError(
                f"register.sampler.candidates is 0 (exact), and register.energy {self.register.energy!r} is not "
                f"normalised; give 1 or more, or name one of: {', '.join(exact) or 'none'}"
            )
        if self.register.energy is not None and self.register.energy not in names:
            raise ConfigurationError(
                f"register.energy: {self.register.energy!r} is not among the energies of `finetune`, which are: "
                f"{', '.join(names) or 'none'}; name one of them, or null for plain diffusion"
            )

    def _check_weights(self) -> None:
        """Raise ConfigurationError for a denoiser without weights, and for a network with weights from two places."""
        if self.pretrain is None and self.given.denoiser is None and not isinstance(self.denoiser, HuggingFaceSource):
            raise ConfigurationError(
                "pretrain: missing, and the denoiser has no weights without it; add the section, name a model's folder "
                "in given.denoiser, or a network that others trained in denoiser (kind: huggingface)"
            )
        causal = self.denoiser.causal if isinstance(self.denoiser, HuggingFaceDenoiserSource) else None
        if self.pretrain is None and self.given.denoiser is None and causal is not None and causal.new_mask:
            raise ConfigurationError(
                "pretrain: missing, and the denoiser's mask is new (denoiser.causal.new_mask), so that the network has "
                "not learnt to fill masks; add the section, or name a network's own mask in denoiser.causal.mask_token"
            )
        networks = (self.denoiser, self.autoregressive)
        foreign = [network for network in networks if isinstance(network, HuggingFaceSource)]
        if foreign and self.data.attention != "across_documents":
            raise ConfigurationError(
                f"data.attention: {self.data.attention}, and {foreign[0].named} attends across documents; leave it out"
            )
        trainings = {"pretrain": self.denoiser, "autoregress": self.autoregressive, "judge": self.autoregressive}
        for section, network in trainings.items():
            training: Training | None = getattr(self, section)
            if training is None:
                continue
            if training.lora is not None and not isinstance(network, HuggingFaceSource):
                raise ConfigurationError(
                    f"{section}.lora: adapters are added to networks of kind huggingface, and this one is of kind "
                    f"{network.kind}; remove lora to train all of its weights"
                )
            if training.muon is not None and isinstance(network, HuggingFaceSource):
                raise ConfigurationError(
                    f"{section}.muon: Muon trains the blocks of this project's transformers, and the network is of "
                    "kind huggingface; remove muon, and AdamW trains all weights"
                )
            if training.init_from is not None and isinstance(network, HuggingFaceSource):
                raise ConfigurationError(
                    f"{section}.init_from: {training.init_from}, and the network of kind huggingface starts from its "
                    "own weights; remove one of the two (init_from takes the kind that the model's card says)"
                )

    def _check_judge(self) -> None:
        if self.judge is not None and self.given.judge is None and self.data.shares.judge == 0:
            raise ConfigurationError(
                "judge: data.shares.judge is 0, so that the judge has no text to train on; give it a share of the "
                "documents, for example 0.1, or leave the `judge` section out"
            )
        if self.judge_config == TrainedJudge() and self.judge is None and self.given.judge is None:
            raise ConfigurationError(
                "evaluate.judge: trained is the model that the `judge` section trains, and there is no such section; "
                "add it, name a model's folder in given.judge or in evaluate.judge.uri, or leave evaluate.judge out to "
                "judge no texts"
            )
