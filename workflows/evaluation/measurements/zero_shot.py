"""Zero-shot likelihood measurements: the models on a corpus that they never saw."""

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from edlm.data.tokenizer import open_tokenizer
from edlm.likelihood.bounds import autoregressive_nll, nelbo, sampler_bound
from edlm.likelihood.estimate import Estimate
from edlm.local_copies import local_copy
from edlm.sampling.sampler import Sampler
from edlm.zero_shot.scoring import ZeroShot, score
from workflows.evaluation.measurements.likelihood import sampler_label
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    autoregressive,
    energy_inputs,
    models,
)
from workflows.row_names import AUTOREGRESSIVE, PLAIN

ROWS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class AbstractZeroShot(AbstractMeasurement):
    """One model on one corpus; subclasses define the model."""

    zero_shot: ZeroShot

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name, and whether its likelihood is a bound."""

    @abstractmethod
    def nll(self, rows: Int[Tensor, "n l"], seed: int) -> Estimate:
        """Return the nats of every row."""

    @property
    def label(self) -> str:
        return f"{self.model} on {self.zero_shot.name}"

    @property
    def cost(self) -> float:
        return 50.0

    def key(self, code: str) -> str:
        return super().key(f"{code} {self.zero_shot.corpus.version()}")

    def find(self) -> MeasuredRows:
        denoiser = models(self.subject, PLAIN)[0]
        passages = self.zero_shot.passages(open_tokenizer(local_copy(self.subject.denoiser)), denoiser.length)
        result = score(passages, self.nll, self.subject.seed, ROWS_AT_ONCE)
        row = {
            "corpus": self.zero_shot.name,
            "model": self.model,
            "nats_per_token": result.nats_per_token,
            "standard_error": result.standard_error,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "word_perplexity": result.word_perplexity,
            "tokens": result.tokens,
            "convention": result.rules,
            **self.common(),
        }
        return MeasuredRows({"zero_shot": [row | {"sequences": len(result.lengths)}]})


@dataclass(frozen=True, kw_only=True)
class DenoiserZeroShot(AbstractZeroShot):
    """The denoiser's NELBO."""

    draws: int

    @property
    def model(self) -> str:
        return "denoiser (bound)"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("denoiser",)

    def nll(self, rows: Int[Tensor, "n l"], seed: int) -> Estimate:
        denoiser, _ = models(self.subject, PLAIN)
        return nelbo(rows, denoiser.network, denoiser.schedule, seed, self.draws)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveZeroShot(AbstractZeroShot):
    """The autoregressive model's likelihood."""

    @property
    def model(self) -> str:
        return AUTOREGRESSIVE

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("denoiser", "autoregressive")

    def nll(self, rows: Int[Tensor, "n l"], seed: int) -> Estimate:
        return autoregressive_nll(rows, autoregressive(self.subject.uri("autoregressive")))


@dataclass(frozen=True, kw_only=True)
class SamplerZeroShot(AbstractZeroShot):
    """The bound of a sampler."""

    energy: str
    sampler: Sampler

    @property
    def model(self) -> str:
        return f"{sampler_label(self.energy, self.sampler)} (bound)"

    @property
    def inputs(self) -> tuple[str, ...]:
        return energy_inputs(self.subject, self.energy)

    def nll(self, rows: Int[Tensor, "n l"], seed: int) -> Estimate:
        denoiser, energy = models(self.subject, self.energy)
        return sampler_bound(rows, denoiser.network, energy, denoiser.schedule, self.sampler, seed, draws=1)
