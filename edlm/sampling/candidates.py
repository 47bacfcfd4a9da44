"""Candidates: what is drawn from p_theta, or from a proposal, for an energy to weigh; and what both are asked for."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm import equations
from edlm.cooperative import Bites, finished
from edlm.interfaces import AnyDenoiser, AnyEnergy, Proposal, proposal_of
from edlm.models.readout import chunks


def draw_candidates(
    denoiser: AnyDenoiser,
    energy: AnyEnergy,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k g"]]:
    """k candidates for an energy to weigh, from its proposal or else from p_theta, and log p of each by group."""
    if (proposal := proposal_of(energy)) is not None:
        return propose_from(proposal, context, xt, where, u)
    x, by_position = propose(denoiser, context, xt, where, u)
    return x, equations.sum_by_group(by_position, energy.block)


def propose(
    denoiser: AnyDenoiser,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k l"]]:
    """k candidates x ~ p_theta(. | x_t) at the selected positions, x_t elsewhere, and their log-probabilities.

    Positions are taken in chunks, so that [positions, vocabulary] never exceeds `CHUNK` entries.
    """
    x = xt[:, None].expand_as(u).clone()
    by_position = torch.zeros_like(u)
    for chunk in chunks(where, denoiser.vocabulary):
        rows, at = torch.nonzero(chunk, as_tuple=True)
        tokens, log_p = equations.draw(denoiser.log_p(context, chunk), u[rows, :, at])
        x[rows, :, at] = tokens
        by_position[rows, :, at] = log_p.to(by_position.dtype)
    return x, by_position


def propose_from(
    proposal: Proposal,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k 1"]]:
    """k candidates from the proposal's law at the selected positions, x_t elsewhere, and their log-probabilities."""
    k = u.shape[1]
    xt, where, context = (values.repeat_interleave(k, 0) for values in (xt, where, context))
    x, by_position = finished(proposal.drawing(xt, where, context, u.flatten(0, 1)))
    return x.unflatten(0, (-1, k)), by_position.sum(dim=1).unflatten(0, (-1, k))[..., None]


TOKENS_AT_ONCE = 2**15  # that enter an energy together: what bounds the memory of its layers


_COMPARED = 8  # candidates that are compared with all k together: all at once would take the square of k


def weigh(
    energy: AnyEnergy,
    x: Int[Tensor, "b k l"],
    xt: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    log_p: Float[Tensor, "b k g"],
    context: Tensor,
) -> tuple[Float[Tensor, "b k g"], Int[Tensor, " b"]]:
    """The energy of every candidate, and how many of each sequence's candidates differ.

    Equal candidates of a sequence have one energy, which is computed once; all sequences compute as many as the one
    with the most different ones. With `TOKENS_AT_ONCE` or fewer tokens there is one call.
    """
    return finished(weighing(energy, x, xt, t, log_p, context))


def weighing(
    energy: AnyEnergy,
    x: Int[Tensor, "b k l"],
    xt: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    log_p: Float[Tensor, "b k g"],
    context: Tensor,
    tokens_at_once: int | None = None,
) -> Bites[tuple[Float[Tensor, "b k g"], Int[Tensor, " b"]]]:
    """As `weigh`, one call of the energy a bite; what is computed does not depend on their size."""
    k, length = x.shape[1:]
    at_once = TOKENS_AT_ONCE if tokens_at_once is None else tokens_at_once
    first = _first_equal(x)
    new = first == torch.arange(k, device=x.device)
    distinct = new.sum(dim=1)
    most = int(distinct.max())
    kept = torch.sort((~new).byte(), dim=1, stable=True).indices[:, :most]
    x, log_p = _taken(x, kept), _taken(log_p, kept)
    rows = max(1, at_once // (most * length))
    many = max(1, at_once // length)  # candidates of one sequence
    energies = []
    for r in (slice(i, i + rows) for i in range(0, len(x), rows)):
        parts = []
        for c in (slice(i, i + many) for i in range(0, most, many)):
            if energies or parts:
                yield
            parts.append(energy(x[r, c], xt[r], t[r], log_p[r, c], context[r]))
        energies.append(torch.cat(parts, dim=1))
    place = new.cumsum(dim=1) - 1  # of each new candidate among those that were weighed
    return _taken(torch.cat(energies), place.gather(1, first)), distinct


def _first_equal(x: Int[Tensor, "b k l"]) -> Int[Tensor, "b k"]:
    """Of each candidate: the first one of its sequence that is equal to it."""
    equal = ((some[:, :, None] == x[:, None]).all(dim=-1) for some in x.split(_COMPARED, dim=1))
    return torch.cat([one.byte().argmax(dim=2) for one in equal], dim=1)


def _taken(values: Tensor, candidates: Int[Tensor, "b n"]) -> Tensor:
    """[b k x] -> [b n x]: these candidates of each sequence."""
    return values.gather(1, candidates[..., None].expand(-1, -1, values.shape[-1]))
