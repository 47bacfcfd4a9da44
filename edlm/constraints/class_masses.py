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
from edlm.inverse_cdf import draw_by_weight
from edlm.models.readout import chunks

IN_CACHE = 2**16  # numbers of a distribution that a CPU computes at once: half a megabyte


@dataclass(frozen=True)
class _Positions:
    """Masked positions of rows with one automaton, on the host, and p_theta there, on the device."""

    automaton: TokenAutomaton
    row: Int[np.ndarray, " n"]
    at: Int[np.ndarray, " n"]
    log_p: Float[Tensor, "n m"]
    """Of the tokens in the order of `automaton.by_class`, so that a class is a slice."""
    total: Float64[Tensor, "n c"]
    """Sum of p over each class."""


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
        """Return tokens of the drawn classes, in proportion to p_theta, and their log-probabilities; 0 where known.

        Of the class DEAD, that of rows whose constraint has no probability, the token and the number are 0.
        """
        tokens, device = self.known[:, None].expand_as(self.u).clone(), self.known.device
        log_p = torch.zeros_like(self.u)
        for part in self.masked:
            row, at = sent([torch.from_numpy(part.row), torch.from_numpy(part.at)], device)
            drawn = _drawn(part, self.mass[part.row, part.at], classes[part.row, :, part.at], self.u[row, :, at])
            tokens[row, :, at], log_p[row, :, at] = drawn
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
                kept.append(_Positions(automaton, row[mine], at[mine], *_by_class(automaton, own)))
    for part, log_sums in zip(kept, _log_sums(kept), strict=True):
        mass[part.row, part.at, : log_sums.shape[1]] = log_sums
    return ClassMasses(mass, torch.where(xt == denoiser.mask, 0, xt), tuple(kept), u)


def _rows_by_automaton(constraints: RowConstraints) -> dict[TokenAutomaton, list[int]]:
    groups: dict[TokenAutomaton, list[int]] = {}
    for row, constraint in enumerate(constraints):
        groups.setdefault(constraint.automaton, []).append(row)
    return groups


def _by_class(
    automaton: TokenAutomaton, log_p: Float[Tensor, "n v"]
) -> tuple[Float[Tensor, "n m"], Float64[Tensor, "n c"]]:
    """Return log p of the tokens in the order of `automaton.by_class`, and the sum of p over each class."""
    index, (tokens, token_class) = automaton.by_class, automaton.by_class_on(log_p.device)
    ordered = log_p.new_empty(len(log_p), len(tokens))
    total = log_p.new_zeros(len(log_p), automaton.transitions.shape[1], dtype=torch.float64)
    present = np.nonzero(index.end > index.first)[0]
    for rows in _at_once(len(ordered), len(tokens), log_p.device):
        torch.gather(log_p[rows], 1, tokens.expand(len(log_p[rows]), -1), out=ordered[rows])
        p = ordered[rows].exp()
        if p.device.type == "cpu":
            sums = np.add.reduceat(p.numpy(), index.first[present], axis=1, dtype=np.float64)
            total.numpy()[rows, present] = sums
        else:
            total[rows].scatter_add_(1, token_class.expand_as(p), p.double())
    return ordered, total


def _log_sums(parts: list[_Positions]) -> list[Float64[np.ndarray, "n c"]]:
    """Return the log of the sum of p over each class, -inf for DEAD; any sum, however small, keeps its digits."""
    totals, results = fetched([part.total for part in parts]), []
    for part, total in zip(parts, (total.numpy() for total in totals), strict=True):
        with np.errstate(divide="ignore"):  # log 0 = -inf
            log_sums = np.log(total)
        log_sums[:, DEAD] = -np.inf
        precision = torch.finfo(part.log_p.dtype)
        # Terms below `tiny` have lost digits, or are 0 where their logarithms are numbers.
        small = total < precision.tiny / precision.eps * part.automaton.vocabulary
        small[:, DEAD] = False
        rows = np.nonzero(small.any(axis=1))[0]
        if len(rows):
            index = sent([torch.from_numpy(rows)], part.log_p.device)[0]
            exact = fetched([_sums_in_log_space(part.automaton, part.log_p[index])])[0].numpy()
            log_sums[rows] = np.where(small[rows], exact, log_sums[rows])
        results.append(log_sums)
    return results


def _sums_in_log_space(automaton: TokenAutomaton, log_p: Float[Tensor, "n m"]) -> Float64[Tensor, "n c"]:
    """Return the log of the sum of p over each class, each relative to its likeliest token."""
    result = log_p.new_full((len(log_p), automaton.transitions.shape[1]), -torch.inf, dtype=torch.float64)
    index = automaton.by_class_on(log_p.device)[1]
    for rows in _at_once(len(log_p), log_p.shape[1], log_p.device):
        weight = log_p[rows].to(torch.float64, copy=True)
        most = result[rows].scatter_reduce(1, index.expand_as(weight), weight, "amax")
        most = torch.where(most == -torch.inf, 0.0, most)  # -inf - -inf would be NaN
        weight.sub_(most.gather(1, index.expand_as(weight))).exp_()
        result[rows] = most + torch.zeros_like(most).scatter_add_(1, index.expand_as(weight), weight).log()
    return result


def _at_once(rows: int, size: int, device: torch.device) -> Iterator[slice]:
    """Yield the rows, of `size` numbers each, to compute together: what a CPU's cache holds, or all on a device."""
    count = max(1, IN_CACHE // max(1, size) if device.type == "cpu" else rows)
    return (slice(start, start + count) for start in range(0, rows, count))


def _drawn(
    part: _Positions,
    mass: Float64[np.ndarray, "n c"],
    classes: Int[np.ndarray, "n k"],
    u: Float64[Tensor, "n k"],
) -> tuple[Int[Tensor, "n k"], Float64[Tensor, "n k"]]:
    """Return a token of each class, drawn in proportion to p, and its log p; token 0 with 0 for the class DEAD."""
    log_p, index, device = part.log_p, part.automaton.by_class, part.log_p.device
    if len(index.tokens) == 0:
        return torch.zeros_like(u, dtype=torch.long), torch.zeros_like(u)
    several: list[tuple[int, np.ndarray]] = []  # classes of several tokens, with rows that draw from them
    for token_class in np.unique(classes).tolist():
        size = int(index.end[token_class] - index.first[token_class])
        if size > 1:
            mine = np.nonzero((classes == token_class).any(axis=1))[0]
            several += [(token_class, mine[rows]) for rows in _at_once(len(mine), size, device)]
    most = [mass[rows, token_class] for token_class, rows in several]
    most = [torch.from_numpy(np.where(np.isfinite(part), part, 0.0)) for part in most]  # -inf - -inf would be NaN
    first = np.minimum(index.first[classes], len(index.tokens) - 1)
    place, drawn, *rows_and_most = sent(
        [torch.from_numpy(first), torch.from_numpy(classes), *(torch.from_numpy(rows) for _, rows in several), *most],
        device,
    )
    rows_of, most_of = rows_and_most[: len(several)], rows_and_most[len(several) :]
    for (token_class, _), rows, log_sum in zip(several, rows_of, most_of, strict=True):
        own = log_p[:, index.first[token_class] : index.end[token_class]].index_select(0, rows)
        picked = draw_by_weight(own.sub_(log_sum[:, None]).exp_(), u[rows])
        place[rows] = torch.where(drawn[rows] == token_class, picked + int(index.first[token_class]), place[rows])
    dead, tokens = drawn == DEAD, part.automaton.by_class_on(device)[0]
    return torch.where(dead, 0, tokens[place]), torch.where(dead, 0.0, log_p.gather(1, place).double())
