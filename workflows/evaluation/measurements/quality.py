"""Quality measurements: texts of one sampler, of the autoregressive model, and of the data, under the judge."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from edlm.baselines.published_sampler import PublishedSampler
from edlm.data.batches import whole
from edlm.data.local_splits import local_split
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import Tokenizer, open_tokenizer
from edlm.evaluation.degeneration import FEWEST, flags, repeaters
from edlm.evaluation.judge_models import Judge, JudgeConfig, TrainedJudge, first_documents
from edlm.evaluation.judged_quality import Quality, assess
from edlm.evaluation.mauve import mauve_on_judge_features
from edlm.local_copies import local_copy
from edlm.rng import Purpose, seeds
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult
from workflows.evaluation.measurements.likelihood import sampler_columns, sampler_label
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    Row,
    autoregressive,
    energy_inputs,
    models,
)
from workflows.row_names import AUTOREGRESSIVE, DATA, PLAIN, REPEATER

SHOWN = 8  # texts that are kept per set
NO_SAMPLER = Sampler(steps=1)  # fills the columns of texts that no sampler drew


def is_trained_here(judge: JudgeConfig) -> bool:
    """Return whether the judge is the model of the `judge` stage."""
    return isinstance(judge, TrainedJudge) and judge.uri is None


@dataclass(frozen=True, kw_only=True)
class AbstractTexts(AbstractMeasurement):
    """A set of texts, judged and compared with as many held-out texts of the data."""

    judge: JudgeConfig
    count: int
    token_temperature: float = 1.0
    """Divides the logits that tokens are drawn from; swept to compare quality at equal entropy."""

    @property
    @abstractmethod
    def identity(self) -> tuple[str, Sampler]:
        """Name in the column `energy`, and the sampler of the columns next to it."""

    @abstractmethod
    def draw(self) -> tuple[Int[Tensor, "b l"], list[StepResult]]:
        """Return the texts, and the results of the steps, if there were any."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the subject's parts that the texts are drawn from."""
        return ()

    @property
    def inputs(self) -> tuple[str, ...]:
        judge = ["judge"] if is_trained_here(self.judge) else []
        return tuple(dict.fromkeys((*self.sources, "data", "denoiser", *judge)))

    @property
    def label(self) -> str:
        temperature = "" if self.token_temperature == 1 else f", token temperature {self.token_temperature:g}"
        return f"texts of {sampler_label(*self.identity)}{temperature}"

    def _open_judge(self, tokenizer: Tokenizer) -> Judge:
        trained_here = is_trained_here(self.judge)
        config: JudgeConfig = TrainedJudge(uri=self.subject.uri("judge")) if trained_here else self.judge
        return config.open(tokenizer)

    def find(self) -> MeasuredRows:
        tokenizer = open_tokenizer(local_copy(self.subject.denoiser))
        judge, (texts, steps) = self._open_judge(tokenizer), self.draw()
        # Text after the first end of text is another document, by which generated text is not judged.
        quality = assess(texts, judge, first_documents(texts, tokenizer.separator))
        data = _data(self.subject.data, self.count, texts.shape[1])
        reference = assess(data, judge, first_documents(data, tokenizer.separator))
        row = {
            **sampler_columns(*self.identity),
            "token_temperature": self.token_temperature,
            **_columns(quality),
            **self._compared(quality, reference),
            **_costs(steps),
            "texts": [tokenizer.decode(text) for text in texts[:SHOWN].tolist()],
            **self.common(),
        }
        return MeasuredRows({"quality": [row], "trajectory": self._trajectory(steps)})

    def _compared(self, quality: Quality, data: Quality) -> Row:
        mauve = mauve_on_judge_features(quality.features, data.features, self.subject.seed)
        enough = self.count >= FEWEST and len(data.nats) == self.count
        return {
            "divergence": mauve.value,
            "divergence_standard_error": mauve.standard_error,
            "divergence_clusters": mauve.clusters,
            "flags": list(flags(quality, data)) if enough else [f"fewer than {FEWEST} texts: not checked"],
        }

    def _trajectory(self, steps: Sequence[StepResult]) -> list[Row]:
        rows = []
        for step in steps:
            resampled = step.energy_calls > 1
            if resampled.any():
                rows.append(
                    {
                        **sampler_columns(*self.identity),
                        "token_temperature": self.token_temperature,
                        "t": step.t.double().mean().item(),
                        "ess": step.ess[resampled].double().mean().item(),
                        "distinct_candidates": step.distinct[resampled].double().mean().item(),
                        "unmasked": step.unmasked.sum(dim=1).double().mean().item(),
                        **self.common(),
                    }
                )
        return rows


@dataclass(frozen=True, kw_only=True)
class Samples(AbstractTexts):
    """Texts that one sampler draws from a fully masked canvas."""

    energy: str
    sampler: Sampler
    published: bool = False
    """Whether the published sampler draws them."""

    @property
    def identity(self) -> tuple[str, Sampler]:
        return self.energy, self.sampler

    @property
    def label(self) -> str:
        return super().label + (", published sampler" if self.published else "")

    @property
    def sources(self) -> tuple[str, ...]:
        return energy_inputs(self.subject, self.energy)

    @property
    def cost(self) -> float:
        return self.sampler.steps * max(self.sampler.candidates, 4)

    def draw(self) -> tuple[Int[Tensor, "b l"], list[StepResult]]:
        denoiser, energy = models(self.subject, self.energy, self.token_temperature)
        canvas = torch.full((self.count, denoiser.length), denoiser.network.mask)
        steps: list[StepResult] = []
        sampler = PublishedSampler(sampler=self.sampler) if self.published else self.sampler
        rows = seeds(self.subject.seed, 0, torch.arange(self.count), Purpose.ROWS)
        texts = sampler.sample(canvas, denoiser.network, energy, denoiser.schedule, rows, on_step=steps.append)
        return texts, steps

    def common(self, published: bool = False) -> Row:
        return super().common(published or self.published)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveSamples(AbstractTexts):
    """Texts of the autoregressive model, token by token."""

    @property
    def identity(self) -> tuple[str, Sampler]:
        return AUTOREGRESSIVE, NO_SAMPLER

    @property
    def sources(self) -> tuple[str, ...]:
        return ("autoregressive",)

    def draw(self) -> tuple[Int[Tensor, "b l"], list[StepResult]]:
        length = models(self.subject, PLAIN)[0].length
        model = autoregressive(self.subject.uri("autoregressive"), self.token_temperature)
        rows = seeds(self.subject.seed, 0, torch.arange(self.count), Purpose.ROWS)
        return model.draw(rows, length), []


@dataclass(frozen=True, kw_only=True)
class DataTexts(AbstractTexts):
    """Held-out texts of the data; with `repeated`, the beginning of each over and over, as the sanity check."""

    repeated: bool = False

    @property
    def identity(self) -> tuple[str, Sampler]:
        return REPEATER if self.repeated else DATA, NO_SAMPLER

    def draw(self) -> tuple[Int[Tensor, "b l"], list[StepResult]]:
        texts = _data(self.subject.data, self.count, models(self.subject, PLAIN)[0].length, later=True)
        return repeaters(texts) if self.repeated else texts, []


def _data(data: str, count: int, length: int, later: bool = False) -> Int[Tensor, "b l"]:
    """Return `count` validation texts, evenly spaced; with `later`, those between them."""
    tokens = TokenFile.open(local_split(data, "validation"), "validation")
    texts = whole(tokens, length, 2 * count)
    return texts[1::2] if later else texts[::2]


def _columns(quality: Quality) -> Row:
    nats, entropy, repetition = quality.nats_per_token, quality.entropy_nats, quality.repeated_share
    characters = quality.nats_per_character
    return {
        "judge": quality.judge,
        "retokenised": quality.retokenised,
        "generative_perplexity": quality.generative_perplexity.mean,
        "nll_nats_per_token": nats.mean,
        "nll_standard_error": nats.standard_error,
        "nats_per_character": characters.mean,
        "nats_per_character_standard_error": characters.standard_error,
        "entropy_nats": entropy.mean,
        "entropy_standard_error": entropy.standard_error,
        **{f"distinct_{n}": share for n, share in enumerate(quality.distinct, start=1)},
        "distinct_ngrams": quality.distinct[-1],
        "repetition": repetition.mean,
        "repetition_standard_error": repetition.standard_error,
    }


def _costs(steps: Sequence[StepResult]) -> Row:
    """Return means over the texts: nan if nothing was resampled, 0 calls if there were no steps."""
    if not steps:
        return {"ess": float("nan"), "distinct_candidates": float("nan"), "denoiser_calls": 0.0, "energy_calls": 0.0}
    resampled = torch.cat([step.energy_calls for step in steps]) > 1
    return {
        "ess": _mean(torch.cat([step.ess for step in steps])[resampled]),
        "distinct_candidates": _mean(torch.cat([step.distinct for step in steps])[resampled]),
        "denoiser_calls": _mean(torch.stack([step.denoiser_calls for step in steps]).sum(0)),
        "energy_calls": _mean(torch.stack([step.energy_calls for step in steps]).sum(0)),
    }


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
