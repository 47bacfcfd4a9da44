"""Sources: corpora without text, of sequences drawn from a law that is known exactly.

What a model has learnt of them can be compared with the truth (`edlm.evaluation.exact_distance`), at any length. A
source is a pure function of its settings: the law's parameters and the sequences come from its seed.
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
from edlm.exact.hidden_markov import Law

IN_DOCUMENT = 64  # sequences: enough that no two documents are alike, even of a source with two sequences only
AT_ONCE = 64 * IN_DOCUMENT  # sequences drawn at a time
FIRST, MOVES, EMISSIONS = range(3)  # the parts of a law, as streams name them


@config
class AbstractSource(ABC):
    """What every source is: `sequences` independent sequences of `length` symbols, in the letters of `symbols`."""

    symbols: Annotated[int, pydantic.Field(ge=2, le=MOST_SYMBOLS)] = 8
    """The vocabulary; the tokenizer is `symbols` of the same size."""
    length: Positive = 32
    """Symbols in a sequence; `data.length` is the same, so that a row is a sequence."""
    sequences: Positive = 65_536
    """How many are drawn, over all splits."""
    seed: int = 8
    """Of the law's parameters and of the sequences."""

    @abstractmethod
    def law(self) -> Law:
        """The law that the sequences are drawn from."""

    def documents(self) -> Iterator[Document]:
        """The sequences, `IN_DOCUMENT` to a document with nothing between them."""
        law, letters, kind = self.law(), np.array(list(SYMBOLS)), type(self).__name__
        for start in range(0, self.sequences, AT_ONCE):
            rows = torch.arange(start, min(start + AT_ONCE, self.sequences))
            for i, some in enumerate(law.draw(self.seed, rows).split(IN_DOCUMENT)):
                text = "".join(letters[some.flatten().numpy()])
                yield Document(text, f"{kind}:{self.seed}:{start + i * IN_DOCUMENT}")

    def version(self) -> str:
        """Always the same: the settings say everything."""
        return "drawn"


@config
class Markov(AbstractSource):
    """A random first-order chain: its first law is Dirichlet(1), its moves are Dirichlet(`concentration`).

    With the defaults the entropy is 43.5 nats a sequence, 1.36 a symbol.
    """

    kind: Literal["markov"] = "markov"
    concentration: PositiveFloat = 0.4
    """Small: few likely moves from each symbol, and low entropy."""

    def law(self) -> Law:
        return Law(
            first=dirichlet(self.seed, FIRST, 1, self.symbols, 1.0)[0],
            moves=dirichlet(self.seed, MOVES, self.symbols, self.symbols, self.concentration),
            emissions=_identity(self.symbols),
            length=self.length,
        )


@config
class Agree(AbstractSource):
    """All symbols of a sequence are equal, and uniform: the most that symbols can depend on one another."""

    kind: Literal["agree"] = "agree"

    def law(self) -> Law:
        first = torch.full((self.symbols,), 1 / self.symbols, dtype=torch.float64)
        return Law(first, _identity(self.symbols), _identity(self.symbols), self.length)


@config
class HiddenMarkov(AbstractSource):
    """A random chain of hidden states, each of which emits symbols by a law of its own: dependence over long ranges.

    The first law is Dirichlet(1).
    """

    kind: Literal["hidden-markov"] = "hidden-markov"
    states: Positive = 8
    move_concentration: PositiveFloat = 0.1
    """Of the Dirichlet law of each state's moves."""
    emission_concentration: PositiveFloat = 0.2
    """Of the Dirichlet law of each state's symbols."""

    def law(self) -> Law:
        return Law(
            first=dirichlet(self.seed, FIRST, 1, self.states, 1.0)[0],
            moves=dirichlet(self.seed, MOVES, self.states, self.states, self.move_concentration),
            emissions=dirichlet(self.seed, EMISSIONS, self.states, self.symbols, self.emission_concentration),
            length=self.length,
        )


def _identity(symbols: int) -> Float64[torch.Tensor, "v v"]:
    return torch.eye(symbols, dtype=torch.float64)
