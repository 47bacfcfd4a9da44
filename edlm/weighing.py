"""Weighing: the energies of k candidates at the price of the different ones, a bounded number of tokens at a time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edlm.bites import Bites, finished
from edlm.candidates import AnyEnergy

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
