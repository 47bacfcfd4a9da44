"""What the evaluation measures, cell by cell: each function here is one Ray task's work."""

import functools
import time
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from edlm.abstract_energy import AbstractEnergy
from edlm.judge import OwnJudge
from edlm.likelihood import Estimate, autoregressive_nll, log_partition, nelbo, paper_estimate, sampler_bound
from edlm.models import OpenDenoiser, open_autoregressive, open_denoiser, open_energy
from edlm.quality import assess
from edlm.sampler import Sampler, StepResult
from edlm.storage import local_copy
from edlm.streams import Purpose, seeds
from edlm.tokenizer import open_tokenizer
from edlm.tokens import TokenFile, whole

PLAIN = "plain"


@dataclass(frozen=True)
class Subject:
    """What is measured: the URIs of the data and the models, and the seed of all noise."""

    data: str
    denoiser: str
    autoregressive: str
    judge: str
    energies: dict[str, str]
    sequences: int
    seed: int


@dataclass(frozen=True)
class Bound:
    """A cell: the T-step bound of one sampler."""

    subject: Subject
    energy: str
    """`plain` is the denoiser alone."""
    sampler: Sampler
    repeats: int


@dataclass(frozen=True)
class Samples:
    """A cell: texts drawn from nothing by one sampler, judged."""

    subject: Subject
    energy: str
    sampler: Sampler
    count: int


@dataclass(frozen=True)
class Reference:
    """A cell: the numbers that belong to no sampler."""

    subject: Subject
    nelbo_draws: int
    paper_draws: int
    log_partition_draws: int


@dataclass(frozen=True)
class Measured:
    """A bound in nats per sequence, with what it took."""

    estimate: Estimate
    seconds: float


@dataclass(frozen=True)
class Drawn:
    """Samples and their quality; means over steps and sequences."""

    texts: list[str]
    generative_perplexity: float
    nll_nats_per_token: float
    nll_standard_error: float
    entropy_nats: float
    entropy_standard_error: float
    distinct_ngrams: float
    ess: float
    distinct_candidates: float
    denoiser_calls: float
    energy_calls: float
    seconds: float


@dataclass(frozen=True)
class References:
    """Estimates in nats per sequence; the last two by energy, for whole-draft energies only."""

    denoiser_nelbo: Estimate
    autoregressive_nll: Estimate
    paper: dict[str, Estimate]
    log_partition: dict[str, tuple[Estimate, Estimate]]


def measure(cell: Bound | Samples | Reference) -> Measured | Drawn | References:
    """The cell's numbers."""
    return {Bound: _bound, Samples: _samples, Reference: _reference}[type(cell)](cell)


def _bound(cell: Bound) -> Measured:
    started = time.perf_counter()
    subject = cell.subject
    denoiser, energy = _models(subject, cell.energy)
    estimate = sampler_bound(
        _validation(subject), denoiser.network, energy, denoiser.schedule, cell.sampler, subject.seed, 1, cell.repeats
    )
    return Measured(estimate, time.perf_counter() - started)


def _samples(cell: Samples) -> Drawn:
    subject = cell.subject
    denoiser, energy = _models(subject, cell.energy)
    tokenizer = open_tokenizer(denoiser.folder)
    judge = OwnJudge(uri=subject.judge).open(tokenizer)
    canvas = torch.full((cell.count, denoiser.length), denoiser.network.mask)
    rows = seeds(subject.seed, 0, torch.arange(cell.count), Purpose.ROWS)
    steps: list[StepResult] = []
    started = time.perf_counter()
    tokens = cell.sampler.sample(canvas, denoiser.network, energy, denoiser.schedule, rows, on_step=steps.append)
    seconds = time.perf_counter() - started
    quality = assess(tokens, judge)
    resampled = torch.cat([step.energy_calls for step in steps]) > 1
    return Drawn(
        texts=[tokenizer.decode(row) for row in tokens[:8].tolist()],
        generative_perplexity=quality.generative_perplexity.mean,
        nll_nats_per_token=quality.nats_per_token.mean,
        nll_standard_error=quality.nats_per_token.standard_error,
        entropy_nats=quality.entropy_nats.mean,
        entropy_standard_error=quality.entropy_nats.standard_error,
        distinct_ngrams=quality.distinct[-1],
        ess=_mean(torch.cat([step.ess for step in steps])[resampled]),
        distinct_candidates=_mean(torch.cat([step.distinct for step in steps])[resampled]),
        denoiser_calls=_mean(torch.stack([step.denoiser_calls for step in steps]).sum(0)),
        energy_calls=_mean(torch.stack([step.energy_calls for step in steps]).sum(0)),
        seconds=seconds,
    )


def _reference(cell: Reference) -> References:
    subject, x0 = cell.subject, _validation(cell.subject)
    denoiser, _ = _models(subject, PLAIN)
    network, schedule, seed = denoiser.network, denoiser.schedule, subject.seed
    paper, partition = {}, {}
    for name in subject.energies:
        _, energy = _models(subject, name)
        if energy is not None and energy.drafts:
            paper[name] = paper_estimate(
                x0, network, energy, schedule, seed, cell.paper_draws, cell.log_partition_draws
            )
            partition[name] = log_partition(
                x0, network, energy, schedule, seed, cell.paper_draws, cell.log_partition_draws
            )
    return References(
        denoiser_nelbo=nelbo(x0, network, schedule, seed, cell.nelbo_draws),
        autoregressive_nll=autoregressive_nll(x0, open_autoregressive(local_copy(subject.autoregressive))),
        paper=paper,
        log_partition=partition,
    )


def _models(subject: Subject, energy: str) -> tuple[OpenDenoiser, AbstractEnergy | None]:
    denoiser = _denoiser(subject.denoiser)
    return denoiser, None if energy == PLAIN else open_energy(local_copy(subject.energies[energy]), denoiser)


@functools.cache
def _denoiser(uri: str) -> OpenDenoiser:
    return open_denoiser(local_copy(uri))


def _validation(subject: Subject) -> Int[Tensor, "b l"]:
    length = _denoiser(subject.denoiser).length
    return whole(TokenFile.open(local_copy(subject.data), "validation"), length, subject.sequences)


def _mean(values: Tensor) -> float:
    """nan where nothing was resampled."""
    return values.double().mean().item()
