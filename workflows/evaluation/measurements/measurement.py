"""Measurements: the entries of the grid. Results are plain data, stored by the digest of what determines them."""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import OpenDenoiser, open_autoregressive, open_denoiser
from edlm.config import plain
from edlm.data.batches import whole
from edlm.data.local_splits import local_split
from edlm.data.synthetic import AbstractSource
from edlm.data.token_file import TokenFile
from edlm.energies.compose import WeightedSum
from edlm.energies.uniform import Uniform
from edlm.exact.hidden_markov import HiddenMarkovModel
from edlm.exact.models import ExactConditional, ExactEnergy
from edlm.interfaces import AbstractEnergy, AnyDenoiser, AnyEnergy, Model
from edlm.likelihood.estimate import Estimate
from edlm.local_copies import local_copy
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.storage import committed
from workflows.row_names import PLAIN, UNIFORM

Row = dict[str, Any]


@dataclass(frozen=True)
class ExactKind:
    """Kind of an exact energy, log p_theta - log q: known, not learned, as the source's distribution q is known."""

    whole_sequence: bool
    block: int | None = None
    normalised: bool = False
    """Whether it is also sampled exactly."""

    def build(self, distribution: HiddenMarkovModel) -> AnyEnergy:
        """Return the energy, which works with any denoiser that it is called with."""
        return (
            ExactConditional(distribution)
            if self.normalised
            else ExactEnergy(distribution, self.whole_sequence, self.block)
        )


@dataclass(frozen=True)
class Subject:
    """Subject of the measurements: the URIs of the data and the models, and the seed of all noise."""

    data: str
    denoiser: str
    autoregressive: str | None
    """None: there is no such model, and nothing is measured of one."""
    judge: str | None
    """Model of the `judge` stage; None: no measurement needs it."""
    energies: dict[str, str]
    sequences: int
    seed: int
    source: AbstractSource | None = None
    """The source of the data, if its distribution is known."""
    exact: Mapping[str, ExactKind] = field(default_factory=dict)
    """Exact energies by name, if the distribution is known."""
    composed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Composed energies by name: the weight of each term, an energy of `energies`."""

    def contents(self, name: str) -> Any:
        """Return what identifies an input: the digest of its folder, of a composed energy its terms' with weights."""
        if name in self.composed:
            return {term: [weight, self.contents(term)] for term, weight in self.composed[name].items()}
        marker = committed(self.uri(name))
        assert marker is not None, f"{name} is not finished"
        return marker.digest

    def uri(self, name: str) -> str:
        """Return the URI of an input by name: `data`, `denoiser`, `autoregressive`, `judge`, or an energy's."""
        uri = self.energies[name] if name in self.energies else getattr(self, name)
        if uri is None:
            raise ValueError(f"no {name} model: the experiment neither trains one nor names one under `given`")
        return uri


@dataclass(frozen=True)
class MeasuredRows:
    """The rows that a measurement adds to each table."""

    rows: Mapping[str, list[Row]]


@dataclass(frozen=True, kw_only=True)
class AbstractMeasurement(ABC):
    """One measurement of a subject. Its fields and the inputs that it names determine its rows."""

    subject: Subject

    @property
    @abstractmethod
    def label(self) -> str:
        """Description of the measurement, for the message that it failed."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the subject's parts that it reads."""

    @property
    def cost(self) -> float:
        """Rough estimate of the work, in any unit; the longest measurements start first."""
        return 1.0

    @abstractmethod
    def find(self) -> MeasuredRows:
        """Run the measurement on the current machine."""

    def key(self, code: str) -> str:
        """Return the SHA-256 of what determines the result: kind, settings, content of inputs, digest of code."""
        settings = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "subject"}
        contents = {name: self.subject.contents(name) for name in self.inputs}
        facts = [type(self).__name__, settings, contents, self.subject.sequences, self.subject.seed, code]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def common(self, published: bool = False) -> Row:
        """Return the columns that every row has."""
        return {
            "seed": self.subject.seed,
            "precision": "float32",
            "published": published,
            "sequences": self.subject.sequences,
        }


def distribution_of(subject: Subject) -> HiddenMarkovModel:
    """Return the distribution of the source."""
    assert subject.source is not None
    return subject.source.distribution()


def models(subject: Subject, energy: str, temperature: float = 1.0) -> tuple[OpenDenoiser, AnyEnergy | None]:
    """Return the denoiser and the named energy: None for plain diffusion, whole-canvas zeros for the control.

    `temperature` divides the denoiser's logits, and with them those of the energies that read them.
    """
    denoiser = _denoiser(subject.denoiser, temperature)
    if energy == PLAIN:
        return denoiser, None
    if energy == UNIFORM:
        return denoiser, Uniform(whole_sequence=False)
    if energy in subject.exact:
        return denoiser, subject.exact[energy].build(distribution_of(subject))
    if energy in subject.composed:
        weights = subject.composed[energy]
        terms = {name: _energy(subject.energies[name], subject.denoiser, temperature) for name in weights}
        return denoiser, composed(weights, terms)
    return denoiser, _energy(subject.energies[energy], subject.denoiser, temperature)


def composed(weights: Mapping[str, float], energies: Mapping[str, AnyEnergy]) -> WeightedSum:
    """Return the weighted sum of the energies with these names."""
    return WeightedSum([(weight, energies[name]) for name, weight in weights.items()])


def energy_model(subject: Subject, name: str) -> Model[AnyDenoiser, AnyEnergy]:
    """Return the denoiser with the energy of this name and the denoiser's schedule."""
    denoiser, energy = models(subject, name)
    assert energy is not None, f"{name} is no energy"
    return Model(denoiser.network, energy, denoiser.schedule)


@functools.lru_cache(maxsize=4)
def _energy(uri: str, denoiser: str, temperature: float) -> AbstractEnergy:
    return open_energy(local_copy(uri), _denoiser(denoiser, temperature))


@functools.lru_cache(maxsize=2)
def _denoiser(uri: str, temperature: float) -> OpenDenoiser:
    opened = open_denoiser(local_copy(uri))
    _temper(opened.network.readout, temperature)
    return opened


@functools.lru_cache(maxsize=2)
def autoregressive(uri: str, temperature: float = 1.0) -> AbstractAutoregressiveModel:
    """Open an autoregressive model of this project, its logits divided by `temperature`."""
    model = open_autoregressive(local_copy(uri))
    _temper(model.readout, temperature)
    return model


def _temper(readout: torch.nn.Module, temperature: float) -> None:
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.div_(temperature)


def validation(subject: Subject) -> Int[Tensor, "b l"]:
    """Return the sequences that everything is measured on."""
    length = _denoiser(subject.denoiser, 1.0).length
    return whole(TokenFile.open(local_split(subject.data, "validation"), "validation"), length, subject.sequences)


def energy_inputs(subject: Subject, energy: str) -> tuple[str, ...]:
    """Return the names of the subject's parts that a sampler with this energy reads."""
    return ("denoiser", energy) if energy in {*subject.energies, *subject.composed} else ("denoiser",)


def per_token(estimate: Estimate, length: int) -> Row:
    """Return mean and standard error in nats per token."""
    return {"nats_per_token": estimate.mean / length, "standard_error": estimate.standard_error / length}
