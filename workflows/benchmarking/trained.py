"""Trained networks in a race: their URIs, and the quality of their samplers' texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edlm.config import Positive, config
from edlm.evaluation.judge_models import TrainedJudge
from edlm.sampling.sampler import Sampler
from workflows.evaluation.measurements.likelihood import Bound, Reference
from workflows.evaluation.measurements.measurement import Row, Subject
from workflows.evaluation.measurements.quality import AutoregressiveSamples, Samples
from workflows.row_names import AUTOREGRESSIVE


@config
class Trained:
    """URIs of the stage outputs of one experiment, and the sizes of the samples that quality is measured on."""

    data: str
    """Prepared data."""
    denoiser: str
    """Denoiser."""
    autoregressive: str
    """Autoregressive model, the baseline."""
    judge: str
    """Judge of the texts: an autoregressive model."""
    energies: Mapping[str, str] = field(default_factory=dict)
    """Energies by name; none are needed."""
    sequences: Positive = 32
    """Held-out texts for the bound."""
    texts: Positive = 64
    """Texts that the judge reads."""
    seed: int = 1
    """Seed of the bound's noise and of the texts."""

    def subject(self) -> Subject:
        """Return the networks as the subject of an evaluation's measurements."""
        return Subject(
            self.data, self.denoiser, self.autoregressive, self.judge, dict(self.energies), self.sequences, self.seed
        )


@dataclass(frozen=True)
class Worth:
    """The bound and its standard error in nats per token, the judge's perplexity, and the unigram entropy in nats."""

    bound: float
    standard_error: float
    generative_perplexity: float
    entropy: float


def worth(trained: Trained, energy: str, sampler: Sampler) -> Worth:
    """Measure a sampler's bound and texts; for the autoregressive model (by name), its likelihood and own texts."""
    subject, judge = trained.subject(), TrainedJudge()
    if energy == AUTOREGRESSIVE:
        (likelihood,) = (
            row for row in Reference(subject=subject, draws=1).find().rows["reference"]
            if row["name"] == "autoregressive_nll"
        )  # fmt: skip
        texts = AutoregressiveSamples(subject=subject, judge=judge, count=trained.texts)
        return _worth(likelihood["nats_per_token"], likelihood, _judged(texts))
    measured = Bound(subject=subject, energy=energy, sampler=replace(sampler, speculative=False)).find()
    (bound,) = measured.rows["bounds"]
    texts = Samples(subject=subject, judge=judge, count=trained.texts, energy=energy, sampler=sampler)
    return _worth(bound["bound_nats_per_token"], bound, _judged(texts))


def _judged(texts: Samples | AutoregressiveSamples) -> Row:
    (row,) = texts.find().rows["quality"]
    return row


def _worth(bound: float, row: Row, quality: Row) -> Worth:
    return Worth(bound, row["standard_error"], quality["generative_perplexity"], quality["entropy_nats"])
