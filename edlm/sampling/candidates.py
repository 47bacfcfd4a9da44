"""Candidates: draws from p_theta, or from an energy's proposal, and their scoring by the energy."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm import equations
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.device_copies import selected_indices
from edlm.interfaces import AnyDenoiser, AnyEnergy, Proposal, proposal_of, score
from edlm.models.readout import chunks


def draw_candidates(
    denoiser: AnyDenoiser,
    energy: AnyEnergy,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k g"]]:
    """Draw k candidates from the energy's proposal, or else from p_theta, and return them with their log p by group.

    `where` is on the host.
    """
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
    """Draw k candidates x ~ p_theta(. | x_t) at the selected positions, x_t elsewhere, with their log-probabilities.

    Positions are processed in chunks, so that [positions, vocabulary] never exceeds `CHUNK` entries. With `where` on
    the host, a device is not waited for.
    """
    x = xt[:, None].expand_as(u).clone()
    by_position = torch.zeros_like(u)
    for chunk in chunks(where, denoiser.vocabulary):
        rows, at = selected_indices(chunk, xt.device)
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
    """Draw k candidates from the proposal at the selected positions, x_t elsewhere, with their log-probabilities."""
    k = u.shape[1]
    xt, where, context = (values.repeat_interleave(k, 0) for values in (xt, where, context))
    x, by_position = run_to_end(proposal.draw(xt, where, context, u.flatten(0, 1)))
    return x.unflatten(0, (-1, k)), by_position.sum(dim=1).unflatten(0, (-1, k))[..., None]


TOKENS_AT_ONCE = 2**15  # per energy call; bounds the memory of the energy's layers


_COMPARED = 8  # candidates compared with all k at a time: comparing all at once would take memory quadratic in k


def score_candidates(
    energy: AnyEnergy,
    x: Int[Tensor, "b k l"],
    xt: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    log_p: Float[Tensor, "b k g"],
    context: Tensor,
    tokens_at_once: int | None = None,
    new: Bool[Tensor, "b l"] | None = None,
) -> Cooperative[tuple[Float[Tensor, "b k g"], Int[Tensor, " b"]]]:
    """Compute the energy of every candidate and the number of distinct candidates per sequence.

    Duplicates are scored once; the batch is padded to its largest number of distinct candidates. Pauses between calls,
    which score at most `tokens_at_once` tokens each (None: `TOKENS_AT_ONCE`), or one candidate of one sequence if it is
    longer; the result does not depend on their size. `new`: the positions that the candidates fill, on the host; None:
    the energy finds them, for which a device is waited for.
    """
    k, length = x.shape[1:]
    limit = TOKENS_AT_ONCE if tokens_at_once is None else tokens_at_once
    first = _first_equal(x)
    is_first = first == torch.arange(k, device=x.device)
    distinct = is_first.sum(dim=1)
    max_distinct = int(distinct.max())
    kept = torch.sort((~is_first).byte(), dim=1, stable=True).indices[:, :max_distinct]
    x, log_p = _taken(x, kept), _taken(log_p, kept)
    rows = max(1, limit // (max_distinct * length))
    columns = max(1, limit // length)  # candidates of one sequence per call
    energies = []
    for r in (slice(i, i + rows) for i in range(0, len(x), rows)):
        parts = []
        for c in (slice(i, i + columns) for i in range(0, max_distinct, columns)):
            if energies or parts:
                yield
            arguments = x[r, c], xt[r], t[r], log_p[r, c], context[r]
            parts.append(score(energy, *arguments, new=None if new is None else new[r]))
        energies.append(torch.cat(parts, dim=1))
    index = is_first.cumsum(dim=1) - 1  # of each distinct candidate among the scored ones
    return _taken(torch.cat(energies), index.gather(1, first)), distinct


def _first_equal(x: Int[Tensor, "b k l"]) -> Int[Tensor, "b k"]:
    """Return for each candidate the index of the first candidate of its sequence that equals it."""
    equal = ((part[:, :, None] == x[:, None]).all(dim=-1) for part in x.split(_COMPARED, dim=1))
    return torch.cat([matches.byte().argmax(dim=2) for matches in equal], dim=1)


def _taken(values: Tensor, candidates: Int[Tensor, "b n"]) -> Tensor:
    """Gather the given candidates of each sequence: [b k x] -> [b n x]."""
    return values.gather(1, candidates[..., None].expand(-1, -1, values.shape[-1]))
