"""Synthetic sources: corpora of sequences drawn from an exactly known distribution.

A model trained on them can be compared with the true distribution (`edlm.evaluation.exact_distance`), at any length. A
source is a pure function of its settings: the distribution's parameters and the sequences come from its seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Float64

from edlm.config import Positive, PositiveFloat, config
from edlm.data.document import Document
from edlm.data.tokenizer_kinds import MOST_SYMBOLS, SYMBOLS
from edlm.exact.dirichlet import dirichlet
from edlm.exact.hidden_markov import HiddenMarkovModel

IN_DOCUMENT = 64  # sequences: enough that no two documents are alike, even of a source with only two sequences
AT_ONCE = 64 * IN_DOCUMENT  # sequences drawn at a time
FIRST, MOVES, EMISSIONS = range(3)  # random streams of the parts of a distribution


@config
class AbstractSource(ABC):
    """Base of all sources: `sequences` independent sequences of `length` symbols, written in letters of SYMBOLS."""

    symbols: Annotated[int, pydantic.Field(ge=2, le=MOST_SYMBOLS)] = 8
    """Vocabulary size; the tokenizer is `symbols` of the same size."""
    length: Positive = 32
    """Symbols per sequence; `data.length` is the same, so that a row is a sequence."""
    sequences: Positive = 65_536
    """Number of sequences drawn, over all splits."""
    seed: int = 8
    """Seed of the distribution's parameters and of the sequences."""

    @abstractmethod
    def distribution(self) -> HiddenMarkovModel:
        """Return the distribution that the sequences are drawn from."""

    def documents(self) -> Iterator[Document]:
        """Yield the sequences, `IN_DOCUMENT` per document with nothing between them."""
        distribution, letters, kind = self.distribution(), np.array(list(SYMBOLS)), type(self).__name__
        for start in range(0, self.sequences, AT_ONCE):
            rows = torch.arange(start, min(start + AT_ONCE, self.sequences))
            for i, chunk in enumerate(distribution.draw(self.seed, rows).split(IN_DOCUMENT)):
                text = "".join(letters[chunk.flatten().numpy()])
                yield Document(text, f"{kind}:{self.seed}:{start + i * IN_DOCUMENT}")

    def version(self) -> str:
        """Return a constant, because the settings determine the corpus."""
        return "drawn"


@config
class Markov(AbstractSource):
    """Random first-order chain: initial distribution Dirichlet(1), transitions Dirichlet(`concentration`).

    With the defaults the entropy is 43.5 nats per sequence, 1.36 per symbol.
    """

    kind: Literal["markov"] = "markov"
    concentration: PositiveFloat = 0.4
    """Small values give few likely transitions from each symbol, and low entropy."""

    def distribution(self) -> HiddenMarkovModel:
        return HiddenMarkovModel(
            first=dirichlet(self.seed, FIRST, 1, self.symbols, 1.0)[0],
            moves=dirichlet(self.seed, MOVES, self.symbols, self.symbols, self.concentration),
            emissions=_identity(self.symbols),
            length=self.length,
        )


@config
class Agree(AbstractSource):
    """Sequences of one uniformly drawn symbol, repeated: the strongest possible dependence between symbols."""

    kind: Literal["agree"] = "agree"

    def distribution(self) -> HiddenMarkovModel:
        first = torch.full((self.symbols,), 1 / self.symbols, dtype=torch.float64)
        return HiddenMarkovModel(first, _identity(self.symbols), _identity(self.symbols), self.length)


@config
class HiddenMarkov(AbstractSource):
    """Random chain of hidden states, each with its own emission distribution: long-range dependence.

    The initial distribution is Dirichlet(1).
    """

    kind: Literal["hidden-markov"] = "hidden-markov"
    states: Positive = 8
    """Number of hidden states."""
    move_concentration: PositiveFloat = 0.1
    """Concentration of the Dirichlet distribution of each state's transitions."""
    emission_concentration: PositiveFloat = 0.2
    """Concentration of the Dirichlet distribution of each state's emissions."""

    def distribution(self) -> HiddenMarkovModel:
        return HiddenMarkovModel(
            first=dirichlet(self.seed, FIRST, 1, self.states, 1.0)[0],
            moves=dirichlet(self.seed, MOVES, self.states, self.states, self.move_concentration),
            emissions=dirichlet(self.seed, EMISSIONS, self.states, self.symbols, self.emission_concentration),
            length=self.length,
        )


def _identity(symbols: int) -> Float64[torch.Tensor, "v v"]:
    return torch.eye(symbols, dtype=torch.float64)
