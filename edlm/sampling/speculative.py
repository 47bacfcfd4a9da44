"""Exact draws from a conditional law by verifying the denoiser's parallel draft (docs/mathematics.md 4.2).

Each new position keeps its draft token v with probability min(1, p_c(v) / p_theta(v)), where p_c sees the tokens before
it, and else takes one from the residual max(0, p_c - p_theta): so it follows p_c (Leviathan et al. 2023, theorem 1),
whatever the drafts. Every position draws from streams of its own, hence its token is a function of the tokens before
it. One pass of the head evaluates this function at all positions, on the tokens of the pass before; what stands up to
the first token that changed is settled, and the others are evaluated again (Jacobi's iteration, Song et al. 2021). The
fixed point is what going from left to right would give.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.cooperative import Bites
from edlm.interfaces import AnyDenoiser, Verifiable
from edlm.models.readout import chunks


@dataclass(frozen=True)
class Verified:
    """The new tokens, what they took of each sequence, and where the head's numbers were none."""

    x: Int[Tensor, "b l"]
    passes: Int[Tensor, " b"]
    accepted: Int[Tensor, " b"]
    """Tokens of the draft that were kept; the other new ones were drawn again."""
    broken: Bool[Tensor, " b"]


@torch.no_grad()
def verifying(
    draft: Int[Tensor, "b l"],
    log_p: Float[Tensor, "b l"],
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    context: Tensor,
    denoiser: AnyDenoiser,
    energy: Verifiable,
    u_keep: Float64[Tensor, "b l"],
    u_again: Float64[Tensor, "b l"],
) -> Bites[Verified]:
    """x_U ~ p_c(. | x_t) from a draft of p_theta at `where` and its log-probabilities there; a bite is a pass.

    Where p_c of a draft is not a number its row is given up, and is broken.
    """
    x, settled = draft.clone(), ~where
    passes, accepted = torch.zeros(2, len(x), dtype=torch.long, device=x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    places = torch.arange(x.shape[1], device=x.device)
    while len(rows := torch.nonzero((~settled).any(dim=1))[:, 0]):
        passes[rows] += 1
        features, open_ = energy.read(x[rows], xt[rows], context[rows]), ~settled[rows]
        log_c = energy.log_p_of(features, open_, draft[rows]).double()
        broken[rows] = log_c.isnan().any(dim=1)
        kept = u_keep[rows].log() < log_c - log_p[rows].double()
        again = open_ & ~kept & ~broken[rows, None]
        settling = torch.where(open_ & ~again, draft[rows], x[rows])
        for chunk in chunks(again, denoiser.vocabulary):
            # Nothing of a chunk has a name here: the next one would be computed beside it.
            settling[chunk] = _residual(
                energy.distribution(features, chunk).to(torch.float64, copy=True).exp_(),
                denoiser.log_p(context[rows], chunk).to(torch.float64, copy=True).exp_(),
                u_again[rows][chunk],
            )
        changed = settling != x[rows]
        first = torch.where(changed.any(dim=1), changed.byte().argmax(dim=1), x.shape[1])  # in reading order
        known = open_ & (places <= first[:, None])
        x[rows] = settling
        accepted[rows] += (known & kept).sum(dim=1)
        settled[rows] |= known
        yield
    return Verified(x, passes, accepted, broken)


def _residual(
    p_c: Float64[Tensor, "n v"], p_theta: Float64[Tensor, "n v"], u: Float64[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """A token of max(0, p_c - p_theta), normalised; p_theta is overwritten.

    Where the two laws agree up to rounding, a token is refused with a probability of the rounding's size, and nothing
    is left over: then it is drawn from p_c, which is the same up to rounding.
    """
    left = p_theta.neg_().add_(p_c).clamp_(min=0)  # in place: few things that generation holds are larger
    nothing = ~(left.sum(dim=-1) > 0)
    left[nothing] = p_c[nothing]
    return equations.draw_by_weight(left, u[:, None])[:, 0]
