"""Candidates: what is drawn from p_theta, or from a proposal, for an energy to weigh; and what both are asked for."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm import equations
from edlm.bites import Bites, finished
from edlm.row_invariance import ROWS_MULTIPLE
from edlm.transformer import CHUNK


class AnyDenoiser(Protocol):
    """What the sampler and the estimates ask of a denoiser: a network, or a lookup table."""

    mask: int
    vocabulary: int

    def read(self, xt: Tensor, t: Tensor) -> Tensor: ...

    def log_p(self, context: Tensor, where: Tensor) -> Tensor: ...


@runtime_checkable
class ReadsSome(Protocol):
    """A denoiser that has less work where its context is wanted at some positions alone."""

    def read_at(self, xt: Tensor, t: Tensor, where: Tensor) -> Tensor: ...


class AnyEnergy(Protocol):
    """What they ask of an energy: see `edlm.energy.AbstractEnergy`."""

    drafts: bool
    block: int | None

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor: ...


@runtime_checkable
class NormalisedEnergy(AnyEnergy, Protocol):
    """An energy with Z = 1, which samples p_theta exp(-E) itself, and says log p of each token that it drew.

    Whatever goes token by token lets others in between: a bite is a token.
    """

    def drawing(self, xt: Tensor, where: Tensor, context: Tensor, u: Tensor) -> Bites[tuple[Tensor, Tensor]]: ...


@runtime_checkable
class Proposal(NormalisedEnergy, Protocol):
    """A normalised energy whose law others draw their candidates from."""

    def log_p(self, x: Tensor, xt: Tensor, context: Tensor) -> Tensor: ...


def proposal_of(energy: AnyEnergy) -> Proposal | None:
    """The energy whose law candidates come from where it is not the denoiser's."""
    return getattr(energy, "proposal", None)


def read(denoiser: AnyDenoiser, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"]) -> Tensor:
    """The context of the sequences, which need not be right but at the selected positions."""
    return denoiser.read_at(xt, t, where) if isinstance(denoiser, ReadsSome) else denoiser.read(xt, t)


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


def chunks(where: Bool[Tensor, "b l"], vocabulary: int) -> Iterator[Bool[Tensor, "b l"]]:
    size = max(ROWS_MULTIPLE, CHUNK // vocabulary // ROWS_MULTIPLE * ROWS_MULTIPLE)
    total = int(where.sum())
    if 0 < total <= size:
        yield where
        return
    count = where.flatten().cumsum(0).view_as(where)
    for start in range(0, total, size):
        yield where & (count > start) & (count <= start + size)
