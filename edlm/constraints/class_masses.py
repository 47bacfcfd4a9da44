"""Sums of a denoiser's probabilities over the classes of automata, and draws within a class, position by position.

The sums are all that forward-backward needs: a position costs (states x classes), not (states x vocabulary). Tokens are
drawn once the classes are.

What has the size of the vocabulary stays on the denoiser's device: its distributions, their sums, the draws. The sums
alone come to the host, in one copy, and the drawn classes go back: forward-backward is computed there
(`edlm.constraints.forward_backward`). Sums on CUDA are in no fixed order, so that their last bits may differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from edlm.constraints.automaton import DEAD, TokenAutomaton
from edlm.constraints.constraint import RowConstraints
from edlm.device_copies import fetched, sent
from edlm.interfaces import AnyDenoiser
from edlm.models.readout import chunks

LEAST = 1e-280  # of a sum: below it, its terms may have lost digits, or be 0 where their logarithms are numbers
IN_CACHE = 2**16  # numbers of a distribution that a CPU computes at once: half a megabyte


@dataclass(frozen=True)
class _Positions:
    """Masked positions of rows with one automaton, on the host, and p_theta there, on the device."""

    automaton: TokenAutomaton
    row: Int[np.ndarray, " n"]
    at: Int[np.ndarray, " n"]
    log_p: Float[Tensor, "n v"]


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
        tokens, device = self.known[:, None].expand_as(self.u).clone(), self.known.device
        log_p = torch.zeros_like(self.u)
        for part in self.masked:
            row, at = sent([torch.from_numpy(part.row), torch.from_numpy(part.at)], device)
            found = _drawn(part.automaton, part.log_p, classes[part.row, :, part.at], self.u[row, :, at])
            tokens[row, :, at], log_p[row, :, at] = found, part.log_p.gather(1, found).double()
        return tokens, log_p


def class_masses(
    denoiser: AnyDenoiser,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    constraints: RowConstraints,
    u: Float64[Tensor, "b k l"],
    tokens: Int[Tensor, "b l"] | None = None,
) -> ClassMasses:
    """Compute the log-probability of every class; `u` are for the tokens to draw within classes, by candidate.

    `tokens` are x_t on the host; None: they are fetched. The distributions at all masked positions are kept until the
    tokens are drawn.
    """
    tokens = fetched([xt])[0] if tokens is None else tokens
    (b, _, length), device = u.shape, xt.device
    classes = max(constraint.automaton.transitions.shape[1] for constraint in constraints)
    reads, masked = constraints.read(length), tokens == denoiser.mask
    mass, kept = np.full((b, length, classes), -np.inf), []
    groups = _rows_by_automaton(constraints)
    for automaton, members in groups.items():
        row, at = np.nonzero((reads & ~masked).numpy()[members])
        row = np.array(members)[row]
        known = automaton.classes.numpy()[tokens.numpy()[row, at]]
        mass[row, at, known] = np.where(known == DEAD, -np.inf, 0.0)
    for chunk in chunks(reads & masked, denoiser.vocabulary):
        row, at = (part.numpy() for part in torch.nonzero(chunk, as_tuple=True))
        log_p = denoiser.log_p(context, chunk)
        for automaton, members in groups.items():
            mine = np.isin(row, members)
            if mine.any():
                own = log_p if mine.all() else log_p[sent([torch.from_numpy(np.nonzero(mine)[0])], device)[0]]
                kept.append(_Positions(automaton, row[mine], at[mine], own))
    for part, log_sums in zip(kept, _log_sums(kept), strict=True):
        mass[part.row, part.at, : log_sums.shape[1]] = log_sums
    return ClassMasses(mass, torch.where(xt == denoiser.mask, 0, xt), tuple(kept), u)


def _rows_by_automaton(constraints: RowConstraints) -> dict[TokenAutomaton, list[int]]:
    groups: dict[TokenAutomaton, list[int]] = {}
    for row, constraint in enumerate(constraints):
        groups.setdefault(constraint.automaton, []).append(row)
    return groups


def _log_sums(parts: list[_Positions]) -> list[Float64[np.ndarray, "n c"]]:
    """Return the log of the sum of p over each class, -inf for DEAD; any sum, however small, keeps its digits."""
    totals, results = fetched([_sums(part.automaton, part.log_p) for part in parts]), []
    for part, total in zip(parts, (total.numpy() for total in totals), strict=True):
        with np.errstate(divide="ignore"):  # log 0 = -inf
            log_sums = np.log(total)
        log_sums[:, DEAD], total[:, DEAD] = -np.inf, 1.0
        rows = np.nonzero((total < LEAST).any(axis=1))[0]
        if len(rows):
            index = sent([torch.from_numpy(rows)], part.log_p.device)[0]
            exact = fetched([_sums_in_log_space(part.automaton, part.log_p[index])])[0].numpy()
            log_sums[rows] = np.where(total[rows] < LEAST, exact, log_sums[rows])
        results.append(log_sums)
    return results


def _sums(automaton: TokenAutomaton, log_p: Float[Tensor, "n v"]) -> Float64[Tensor, "n c"]:
    """Return the sum of p over each class."""
    total = log_p.new_zeros(len(log_p), automaton.transitions.shape[1], dtype=torch.float64)
    index = automaton.classes_on(log_p.device)
    for rows in _at_once(log_p):
        p = log_p[rows].to(torch.float64, copy=True).exp_()
        total[rows].scatter_add_(1, index.expand_as(p), p)
    return total


def _sums_in_log_space(automaton: TokenAutomaton, log_p: Float[Tensor, "n v"]) -> Float64[Tensor, "n c"]:
    """Return the log of the sum of p over each class, each relative to its likeliest token."""
    result = log_p.new_full((len(log_p), automaton.transitions.shape[1]), -torch.inf, dtype=torch.float64)
    index = automaton.classes_on(log_p.device)
    for rows in _at_once(log_p):
        weight = log_p[rows].to(torch.float64, copy=True)
        most = result[rows].scatter_reduce(1, index.expand_as(weight), weight, "amax")
        most = torch.where(most == -torch.inf, 0.0, most)  # -inf - -inf would be NaN
        weight.sub_(most.gather(1, index.expand_as(weight))).exp_()
        result[rows] = most + torch.zeros_like(most).scatter_add_(1, index.expand_as(weight), weight).log()
    return result


def _at_once(log_p: Float[Tensor, "n v"]) -> Iterator[slice]:
    """Yield the rows that are computed together: on a CPU as many as its cache holds, on a device all of a chunk."""
    count = max(1, IN_CACHE // log_p.shape[1]) if log_p.device.type == "cpu" else len(log_p)
    return (slice(start, start + count) for start in range(0, len(log_p), count))


def _drawn(
    automaton: TokenAutomaton,
    log_p: Float[Tensor, "n v"],
    classes: Int[np.ndarray, "n k"],
    u: Float64[Tensor, "n k"],
) -> Int[Tensor, "n k"]:
    """Return a token of each class, drawn in proportion to p; token 0 for the class DEAD."""
    only, several = np.zeros_like(classes), []  # of classes with one token, and the draws of the others
    for token_class in np.unique(classes).tolist():
        members = automaton.members(token_class, torch.device("cpu"))
        if len(members) <= 1:
            only[classes == token_class] = members[0] if len(members) else 0
            continue
        mine = np.nonzero((classes == token_class).any(axis=1))[0]
        at_once = max(1, IN_CACHE // len(members)) if log_p.device.type == "cpu" else len(mine)
        several += [(token_class, torch.from_numpy(mine[i : i + at_once])) for i in range(0, len(mine), at_once)]
    tokens, drawn, *rows = sent(
        [torch.from_numpy(only), torch.from_numpy(classes), *(part for _, part in several)], log_p.device
    )
    for (token_class, _), part in zip(several, rows, strict=True):
        members = automaton.members(token_class, log_p.device)
        weight = log_p[part].gather(1, members.expand(len(part), -1)).double()
        most = weight.amax(dim=1, keepdim=True)
        weight -= torch.where(most == -torch.inf, 0.0, most)  # -inf - -inf would be NaN
        cdf = weight.exp_().cumsum(dim=1)
        picked = torch.searchsorted(cdf, u[part] * cdf[:, -1:], right=True).clamp(max=len(members) - 1)
        tokens[part] = torch.where(drawn[part] == token_class, members[picked], tokens[part])
    return tokens
