"""Sums of a denoiser's probabilities over the classes of automata, and draws within a class, position by position.

The sums are all that forward-backward needs: a position costs (states x classes), not (states x vocabulary). Tokens are
drawn once the classes are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from edlm.constraints.automaton import DEAD, TokenAutomaton
from edlm.constraints.constraint import RowConstraints
from edlm.interfaces import AnyDenoiser
from edlm.models.readout import chunks

LEAST = 1e-280  # of a sum: below it, its terms may have lost digits, or be 0 where their logarithms are numbers
IN_CACHE = 2**16  # numbers of a distribution that are computed at once: half a megabyte


@dataclass(frozen=True)
class _Positions:
    """Masked positions of rows with one automaton, and p_theta there."""

    automaton: TokenAutomaton
    row: Int[np.ndarray, " n"]
    at: Int[np.ndarray, " n"]
    log_p: Float[np.ndarray, "n v"]


@dataclass(frozen=True)
class ClassMasses:
    """What p_theta says of the classes of each row's automaton."""

    mass: Float64[np.ndarray, "b l c"]
    """Log of each class's probability; at known positions 0 for the token's class and -inf for the others."""
    known: Int[Tensor, "b l"]
    """The known tokens; 0 at masked positions."""
    masked: tuple[_Positions, ...]
    u: Float64[Tensor, "b k l"]
    """Uniforms that draw the tokens within classes."""

    def at(self, classes: Int[np.ndarray, "b k l"]) -> tuple[Int[Tensor, "b k l"], Float64[Tensor, "b k l"]]:
        """Return tokens of the drawn classes, in proportion to p_theta, and their log-probabilities; 0 where known."""
        u = self.u.numpy(force=True)
        tokens, log_p = self.known[:, None].expand_as(self.u).numpy(force=True).copy(), np.zeros(u.shape)
        for part in self.masked:
            row, at = part.row, part.at
            found = _drawn(part.automaton, part.log_p, classes[row, :, at], u[row, :, at])
            tokens[row, :, at], log_p[row, :, at] = found, np.take_along_axis(part.log_p, found, axis=1)
        device = self.known.device
        return torch.from_numpy(tokens).to(device), torch.from_numpy(log_p).to(device)


def class_masses(
    denoiser: AnyDenoiser,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    constraints: RowConstraints,
    u: Float64[Tensor, "b k l"],
) -> ClassMasses:
    """Compute the log-probability of every class; `u` are for the tokens to draw within classes, by candidate.

    The distributions at all masked positions are kept until the tokens are drawn.
    """
    (b, _, length), device = u.shape, xt.device
    classes = max(constraint.automaton.transitions.shape[1] for constraint in constraints)
    reads, masked = constraints.read(length).to(device), xt == denoiser.mask
    mass, kept, tokens = np.full((b, length, classes), -np.inf), [], xt.numpy(force=True)
    groups = _rows_by_automaton(constraints)
    for automaton, members in groups.items():
        row, at = np.nonzero((reads & ~masked).numpy(force=True)[members])
        row = np.array(members)[row]
        known = automaton.classes.numpy()[tokens[row, at]]
        mass[row, at, known] = np.where(known == DEAD, -np.inf, 0.0)
    for chunk in chunks(reads & masked, denoiser.vocabulary):
        row, at = (part.numpy(force=True) for part in torch.nonzero(chunk, as_tuple=True))
        log_p = denoiser.log_p(context, chunk).numpy(force=True)
        for automaton, members in groups.items():
            mine = np.isin(row, members)
            if mine.any():
                part = _Positions(automaton, row[mine], at[mine], log_p if mine.all() else log_p[mine])
                mass[part.row, part.at, : automaton.transitions.shape[1]] = _masses(automaton, part.log_p)
                kept.append(part)
    return ClassMasses(mass, torch.where(masked, 0, xt), tuple(kept), u)


def _rows_by_automaton(constraints: RowConstraints) -> dict[TokenAutomaton, list[int]]:
    groups: dict[TokenAutomaton, list[int]] = {}
    for row, constraint in enumerate(constraints):
        groups.setdefault(constraint.automaton, []).append(row)
    return groups


def _masses(automaton: TokenAutomaton, log_p: Float[np.ndarray, "n v"]) -> Float64[np.ndarray, "n c"]:
    """Return the log of the sum of p over each class, -inf for DEAD; any sum, however small, keeps its digits."""
    count, vocabulary = automaton.transitions.shape[1], log_p.shape[1]
    total = np.empty((len(log_p), count))
    at_once = max(1, IN_CACHE // vocabulary)
    bins = automaton.classes.numpy().astype(np.intp) + count * np.arange(at_once)[:, None]
    for start in range(0, len(log_p), at_once):
        p = _exp(log_p[start : start + at_once].astype(np.float64))
        sums = np.bincount(bins[: len(p)].reshape(-1), p.reshape(-1), len(p) * count)
        total[start : start + at_once] = sums.reshape(-1, count)
    with np.errstate(divide="ignore"):  # log 0 = -inf
        mass = np.log(total)
    mass[:, DEAD], total[:, DEAD] = -np.inf, 1.0
    for token_class in np.nonzero((total < LEAST).any(axis=0))[0].tolist():
        rows = np.nonzero(total[:, token_class] < LEAST)[0]
        weight, most = _weights(log_p[rows], _members(automaton, token_class))
        with np.errstate(divide="ignore"):
            mass[rows, token_class] = most + np.log(weight.sum(axis=1))
    return mass


def _members(automaton: TokenAutomaton, token_class: int) -> Int[np.ndarray, " m"]:
    """Return the tokens of a class."""
    index = automaton.by_class
    return index.tokens[index.first[token_class] : index.end[token_class]].numpy()


def _weights(
    log_p: Float[np.ndarray, "n v"], tokens: Int[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, "n m"], Float64[np.ndarray, " n"]]:
    """Return p of the tokens over that of the likeliest of them, and its logarithm, 0 where all are impossible."""
    weight = log_p.take(tokens, axis=1).astype(np.float64)
    most = weight.max(axis=1)
    most = np.where(most == -np.inf, 0.0, most)  # -inf - -inf would be NaN
    weight -= most[:, None]
    return _exp(weight), most


def _exp(values: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "n m"]:
    """Return the exponentials, in place, by torch: NumPy has vector instructions for them on few processors."""
    torch.from_numpy(values).exp_()
    return values


def _drawn(
    automaton: TokenAutomaton,
    log_p: Float[np.ndarray, "n v"],
    classes: Int[np.ndarray, "n k"],
    u: Float64[np.ndarray, "n k"],
) -> Int[np.ndarray, "n k"]:
    """Return a token of each class, drawn in proportion to p; token 0 for the class DEAD."""
    tokens = np.zeros_like(classes)
    for token_class in np.unique(classes).tolist():
        members = _members(automaton, token_class)
        if len(members) <= 1:
            tokens[classes == token_class] = members[0] if len(members) else 0
            continue
        mine = np.nonzero((classes == token_class).any(axis=1))[0]
        for start in range(0, len(mine), max(1, IN_CACHE // len(members))):
            rows = mine[start : start + max(1, IN_CACHE // len(members))]
            cdf = _weights(log_p[rows], members)[0].cumsum(axis=1)
            picked = (cdf[:, None] <= u[rows][..., None] * cdf[:, None, -1:]).sum(axis=-1)
            picked = members[np.minimum(picked, len(members) - 1)]
            tokens[rows] = np.where(classes[rows] == token_class, picked, tokens[rows])
    return tokens
