"""Sums of a denoiser's probabilities over the classes of automata, and a draw from each class, position by position.

They are all that forward-backward needs: a position costs (states x classes), not (states x vocabulary).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.constraints.automaton import DEAD, TokenAutomaton
from edlm.constraints.constraint import RowConstraints
from edlm.interfaces import AnyDenoiser
from edlm.models.readout import chunks


@dataclass(frozen=True)
class ClassMasses:
    """What p_theta says of the classes of each row's automaton."""

    mass: Float64[np.ndarray, "b l c"]
    """Log of each class's probability; at known positions 0 for the token's class and -inf for the others."""
    tokens: Int[Tensor, "b k l c"]
    """For each candidate a token of every class, drawn in proportion to p_theta; the known token at known positions."""
    log_p: Float64[Tensor, "b k l c"]
    """Log p_theta of these tokens; 0 at known positions."""

    def at(self, classes: Int[np.ndarray, "b k l"]) -> tuple[Int[Tensor, "b k l"], Float64[Tensor, "b k l"]]:
        """Return the tokens of the drawn classes and their log-probabilities."""
        index = torch.from_numpy(classes).to(self.tokens.device)[..., None]
        return self.tokens.gather(-1, index)[..., 0].long(), self.log_p.gather(-1, index)[..., 0]


def class_masses(
    denoiser: AnyDenoiser,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    constraints: RowConstraints,
    u: Float64[Tensor, "b k l"],
) -> ClassMasses:
    """Compute the log-probability of every class, and draw a token of each, with `u`, for every candidate."""
    (b, k, length), device = u.shape, xt.device
    classes = max(constraint.automaton.transitions.shape[1] for constraint in constraints)
    reads, masked = constraints.read(length).to(device), xt == denoiser.mask
    mass = torch.full((b, length, classes), -torch.inf, dtype=torch.float64, device=device)
    tokens = torch.where(masked, 0, xt)[:, None, :, None].int().expand(-1, k, -1, classes).clone()
    log_p = torch.zeros(b, k, length, classes, dtype=torch.float64, device=device)
    groups = _rows_by_automaton(constraints)
    for automaton, members in groups.items():
        rows = torch.tensor(members, device=device)
        row, at = torch.nonzero((reads & ~masked)[rows], as_tuple=True)
        known = automaton.classes.to(device)[xt[rows[row], at]].long()
        mass[rows[row], at, known] = torch.where(known == DEAD, -torch.inf, 0.0).double()
    for chunk in chunks(reads & masked, denoiser.vocabulary):
        all_rows, all_at = torch.nonzero(chunk, as_tuple=True)
        by_token = denoiser.log_p(context, chunk)
        for automaton, members in groups.items():
            mine = torch.isin(all_rows, torch.tensor(members, device=device))
            row, at, end = all_rows[mine], all_at[mine], automaton.transitions.shape[1]
            if len(row):
                parts = _of_automaton(automaton, by_token[mine], u[row, :, at])
                mass[row, at, :end], tokens[row, :, at, :end], log_p[row, :, at, :end] = parts
    return ClassMasses(mass.cpu().numpy(), tokens, log_p)


def _rows_by_automaton(constraints: RowConstraints) -> dict[TokenAutomaton, list[int]]:
    groups: dict[TokenAutomaton, list[int]] = {}
    for row, constraint in enumerate(constraints):
        groups.setdefault(constraint.automaton, []).append(row)
    return groups


def _of_automaton(
    automaton: TokenAutomaton, by_token: Tensor, u: Float64[Tensor, "n k"]
) -> tuple[Float64[Tensor, "n c"], Int[Tensor, "n k c"], Float64[Tensor, "n k c"]]:
    """Return the masses of the classes, and for each candidate a token of every class and its log-probability.

    Each class is scaled by its likeliest token before it is summed, so that a class of any probability has a mass.
    """
    index, device = automaton.by_class, by_token.device
    order, of_class, first, end = (
        part.to(device) for part in (index.tokens, index.token_class, index.first, index.end)
    )
    (n, k), c = u.shape, len(first)
    if len(order) == 0:
        nothing = torch.full((n, c), -torch.inf, dtype=torch.float64, device=device)
        return nothing, torch.zeros(n, k, c, dtype=torch.int32, device=device), nothing[:, None].expand(n, k, c)
    selected = by_token.index_select(1, order)
    most = torch.full((n, c), -torch.inf, dtype=torch.float64, device=device)
    weight = selected.to(torch.float64, copy=True)
    most.scatter_reduce_(1, of_class.expand(n, -1), weight, "amax")
    scale = torch.where(most == -torch.inf, 0.0, most)  # -inf - -inf would be NaN
    weight.sub_(scale.index_select(1, of_class)).exp_()
    cdf = torch.cumsum(weight, dim=1, out=weight)  # in place: these are the largest tensors of a constrained step
    low, high = (torch.where(at > 0, cdf[:, (at - 1).clamp(min=0)], 0.0) for at in (first, end))
    targets = low[:, None] + u[..., None] * (high - low)[:, None]
    drawn = torch.searchsorted(cdf, targets.flatten(1), right=True).view(n, k, c)
    drawn = torch.maximum(torch.minimum(drawn, end - 1), first).clamp(max=len(order) - 1)
    log_p = selected.gather(1, drawn.flatten(1)).view(n, k, c).double()
    return scale + (high - low).log(), order[drawn].int(), log_p
