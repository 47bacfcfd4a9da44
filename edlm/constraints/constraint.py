"""The constraint of one row: which positions of its canvas an automaton reads, and what may follow them."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from edlm.config import ConfigurationError
from edlm.constraints.automaton import DEAD, TokenAutomaton


@dataclass(frozen=True)
class Constraint:
    """The tokens at positions `first` to `stop` are a text of the automaton, or a part of one."""

    automaton: TokenAutomaton
    first: int = 0
    stop: int | None = None
    """None: to the end of the canvas."""
    state: int | None = None
    """State before position `first`; None: the automaton's start."""
    later: int = 0
    """Number of tokens that follow position `stop`, in later canvases: the text ends after these."""
    _alive: dict[int, Bool[np.ndarray, "i s"]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def before(self) -> int:
        """State before position `first`."""
        return self.automaton.start if self.state is None else self.state

    @functools.cached_property
    def final(self) -> Bool[np.ndarray, " s"]:
        """States after the last position that is read from which the text can end, with the tokens that follow."""
        return self.automaton.accepting_after(self.later)

    def alive(self, length: int) -> Bool[np.ndarray, "i s"]:
        """Return the states that texts can be in before each position of a canvas and after the last.

        They are reached from the state before the first position by some tokens, and lead to the end by some.
        """
        if length not in self._alive:
            automaton, read = self.automaton, self.read(length)
            states = np.arange(len(self.final)) == self.before
            counts = [max(0, read.stop - max(at, read.start)) for at in range(length + 1)]
            result = np.empty((length + 1, len(states)), dtype=bool)
            for at, count in enumerate(counts):
                result[at] = states & automaton.accepting_after(count + self.later)
                if read.start <= at < read.stop:
                    states = automaton.following(states)
            self._alive[length] = result
        return self._alive[length]

    def read(self, length: int) -> slice:
        """Return the positions of a canvas that the automaton reads."""
        return slice(self.first, length if self.stop is None else self.stop)

    def require_possible(self, canvas: Int[Tensor, " l"], mask: int) -> None:
        """Raise ConfigurationError unless some tokens in place of the masks satisfy the constraint.

        The message has the lengths of the language's texts if none has the canvas's length, or else the first known
        token with which there is no text.
        """
        automaton, tokens = self.automaton, canvas[self.read(len(canvas))].tolist()
        if automaton.vocabulary != mask:
            raise ConfigurationError(
                f"the constraint is made for {automaton.vocabulary} tokens, and the model has {mask}: compile it with "
                "the model's own tokenizer"
            )
        states = np.arange(len(self.final)) == self.before
        states[DEAD] = False
        length = len(tokens) + self.later
        if not automaton.accepting_after(length)[self.before]:
            raise ConfigurationError(f"no text of {length} tokens satisfies the constraint{self._lengths(length)}")
        if all(token == mask for token in tokens):
            return
        for position, token in enumerate(tokens):
            states = automaton.following(states, None if token == mask else token)
            if not states.any():
                raise ConfigurationError(
                    f"the known token {token} at position {self.first + position} contradicts the constraint, with the "
                    "tokens and the numbers of gaps before it: change one or the other"
                )
        if not (states & self.final).any():
            raise ConfigurationError(
                f"the known tokens leave no text of {length} tokens that satisfies the constraint: "
                "change the tokens, the lengths of the gaps, or the constraint"
            )

    def _lengths(self, asked: int) -> str:
        if self.state is not None and self.state != self.automaton.start:
            return " from here on"
        if self.automaton.lengths is None:
            return ": none of any length does"
        shortest, longest = self.automaton.lengths
        have = f": its texts have {shortest} tokens"
        if longest is None:
            have += " or more"
        elif longest > shortest:
            have = f": its texts have {shortest} to {longest} tokens"
        if asked < shortest or (longest is not None and asked > longest):
            return have
        shorter, longer = (self._length_near(asked, step) for step in (-1, 1))
        return f"{have}, but none has {asked}: the nearest have {shorter} and {longer}"

    def _length_near(self, asked: int, step: int) -> int:
        """Return the number of tokens of a text nearest to `asked`, going by `step`; there is one that way."""
        return next(
            length
            for length in itertools.count(asked + step, step)
            if self.automaton.accepting_after(length)[self.automaton.start]
        )


class RowConstraints:
    """The constraint of each row, None for a row without one; indexed by rows as a tensor is."""

    def __init__(self, of_row: Sequence[Constraint | None]) -> None:
        self.of_row = tuple(of_row)

    def __getitem__(self, rows: Bool[Tensor, " b"] | Int[Tensor, " n"]) -> "RowConstraints":
        indices = torch.nonzero(rows)[:, 0] if rows.dtype == torch.bool else rows
        return RowConstraints([self.of_row[index] for index in indices.tolist()])

    def __len__(self) -> int:
        return len(self.of_row)

    def __iter__(self) -> Iterator[Constraint]:
        """Iterate over the constraints of rows that all have one."""
        for constraint in self.of_row:
            assert constraint is not None
            yield constraint

    @property
    def constrained(self) -> Bool[Tensor, " b"]:
        """Which rows have a constraint."""
        return torch.tensor([constraint is not None for constraint in self.of_row], dtype=torch.bool)

    def read(self, length: int) -> Bool[Tensor, "b l"]:
        """Return the positions that the automata read, of rows that all have one."""
        positions = torch.zeros(len(self), length, dtype=torch.bool)
        for row, constraint in enumerate(self):
            positions[row, constraint.read(length)] = True
        return positions

    def require_possible(self, canvases: Int[Tensor, "b l"], mask: int) -> None:
        """Raise ConfigurationError, naming the row, if a row's constraint leaves no text."""
        if len(self) != len(canvases):
            raise ConfigurationError(f"constraints are one per row, {len(canvases)} here; got {len(self)}")
        checked = set()  # many rows begin alike
        for row, (constraint, canvas) in enumerate(zip(self.of_row, canvases, strict=True)):
            if constraint is not None and (key := (constraint, canvas.numpy(force=True).tobytes())) not in checked:
                try:
                    constraint.require_possible(canvas, mask)
                except ConfigurationError as error:
                    raise ConfigurationError(f"row {row}: {error}") from error
                checked.add(key)
