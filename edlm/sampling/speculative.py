"""Exact draws from a conditional distribution by verifying speculative drafts (docs/mathematics.md 4.2).

The denoiser drafts all tokens in parallel. Each new position keeps its draft token v with probability
min(1, p_c(v) / p_theta(v)), where p_c conditions on the preceding tokens, and otherwise draws from the residual
max(0, p_c - p_theta). It thus follows p_c for any p_theta (Leviathan et al. 2023, theorem 1). Every position has random
streams of its own, so its token is a function of the preceding tokens. One pass of the head evaluates this function at
all positions, on the tokens of the previous pass; positions up to the first changed token are settled, the others are
evaluated again (Jacobi iteration, Song et al. 2021). The fixed point is the result of drawing from left to right.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.cooperative_work import Cooperative
from edlm.interfaces import AnyDenoiser, VerifiesDrafts
from edlm.models.readout import chunks


@dataclass(frozen=True)
class Verified:
    """Verified tokens, with the passes and accepted tokens per sequence, and the sequences whose log p_c is NaN."""

    x: Int[Tensor, "b l"]
    passes: Int[Tensor, " b"]
    accepted: Int[Tensor, " b"]
    """Draft tokens that were kept; the other new tokens were redrawn."""
    broken: Bool[Tensor, " b"]


@torch.no_grad()
def verify_draft(
    draft: Int[Tensor, "b l"],
    log_p: Float[Tensor, "b l"],
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    context: Tensor,
    denoiser: AnyDenoiser,
    energy: VerifiesDrafts,
    u_keep: Float64[Tensor, "b l"],
    u_redraw: Float64[Tensor, "b l"],
) -> Cooperative[Verified]:
    """Draw x_U ~ p_c(. | x_t) from a draft of p_theta at `where` and its log-probabilities; pauses after every pass.

    A row in which p_c of the draft is NaN is abandoned and marked as broken.
    """
    x, settled = draft.clone(), ~where
    passes, accepted = torch.zeros(2, len(x), dtype=torch.long, device=x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    positions = torch.arange(x.shape[1], device=x.device)
    while len(rows := torch.nonzero((~settled).any(dim=1))[:, 0]):
        passes[rows] += 1
        features, open_ = energy.read(x[rows], xt[rows], context[rows]), ~settled[rows]
        log_c = energy.log_p_of(features, open_, draft[rows]).double()
        broken[rows] |= log_c.isnan().any(dim=1)
        kept = u_keep[rows].log() < log_c - log_p[rows].double()
        rejected = open_ & ~kept & ~broken[rows, None]
        updated = torch.where(open_ & ~rejected, draft[rows], x[rows])
        for chunk in chunks(rejected, denoiser.vocabulary):
            # Keep no reference to a chunk's tensors, or two chunks are alive at once.
            updated[chunk] = _residual(
                energy.distribution(features, chunk).to(torch.float64, copy=True).exp_(),
                denoiser.log_p(context[rows], chunk).to(torch.float64, copy=True).exp_(),
                u_redraw[rows][chunk],
            )
        changed = updated != x[rows]
        first = torch.where(changed.any(dim=1), changed.byte().argmax(dim=1), x.shape[1])  # from the left
        newly_settled = open_ & ((positions <= first[:, None]) | broken[rows, None])
        x[rows] = updated
        accepted[rows] += (newly_settled & kept).sum(dim=1)
        settled[rows] |= newly_settled
        yield
    return Verified(x, passes, accepted, broken)


def _residual(
    p_c: Float64[Tensor, "n v"], p_theta: Float64[Tensor, "n v"], u: Float64[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Draw a token from max(0, p_c - p_theta), normalised; p_theta is overwritten.

    If the distributions agree up to rounding, a token is rejected with a probability of the size of the rounding error
    and the residual is zero; the token is then drawn from p_c, which is the same up to rounding.
    """
    residual = p_theta.neg_().add_(p_c).clamp_(min=0)  # in place: these are among the largest tensors of generation
    empty = ~(residual.sum(dim=-1) > 0)
    residual[empty] = p_c[empty]
    return equations.draw_by_weight(residual, u[:, None])[:, 0]
