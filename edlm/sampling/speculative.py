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

from edlm.cooperative_work import Cooperative
from edlm.device_copies import fetched, selected_indices, sent
from edlm.interfaces import AnyDenoiser, VerifiesDrafts
from edlm.inverse_cdf import draw_by_weight
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

    A row in which p_c of the draft is NaN is abandoned and marked as broken. What is open is known on the host, which
    waits for a device twice in a pass: for the rejected tokens, and for the settled ones.
    """
    device, (where,) = xt.device, fetched([where])
    x, open_ = draft.clone(), where.clone()
    passes, accepted = torch.zeros(2, len(x), dtype=torch.long)
    broken = torch.zeros(len(x), dtype=torch.bool, device=device)
    positions = torch.arange(x.shape[1], device=device)
    while len(rows := torch.nonzero(open_.any(dim=1))[:, 0]):
        passes[rows] += 1
        at, opened = sent([rows, open_[rows]], device)
        features = energy.read(x[at], xt[at], context[at], where[rows])
        log_c = energy.log_p_of(features, open_[rows], draft[at]).double()
        broken[at] |= log_c.isnan().any(dim=1)
        kept = u_keep[at].log() < log_c - log_p[at].double()
        rejected = opened & ~kept & ~broken[at, None]
        updated = torch.where(opened & ~rejected, draft[at], x[at])
        for chunk in chunks(fetched([rejected])[0], denoiser.vocabulary):
            # Keep no reference to a chunk's tensors, or two chunks are alive at once.
            drawn = selected_indices(chunk, device)
            updated[drawn] = _residual(
                energy.distribution(features, chunk).to(torch.float64, copy=True).exp_(),
                denoiser.log_p(context[at], chunk).to(torch.float64, copy=True).exp_(),
                u_redraw[at][drawn],
            )
        changed = updated != x[at]
        first = torch.where(changed.any(dim=1), changed.byte().argmax(dim=1), x.shape[1])  # from the left
        newly_settled = opened & ((positions <= first[:, None]) | broken[at, None])
        x[at] = updated
        newly_settled, kept = fetched([newly_settled, kept])
        accepted[rows] += (newly_settled & kept).sum(dim=1)
        open_[rows] &= ~newly_settled
        yield
    passes, accepted = sent([passes, accepted], device)
    return Verified(x, passes, accepted, broken)


def _residual(
    p_c: Float64[Tensor, "n v"], p_theta: Float64[Tensor, "n v"], u: Float64[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Draw a token from max(0, p_c - p_theta), normalised; both are overwritten.

    If the distributions agree up to rounding, a token is rejected with a probability of the size of the rounding error
    and the residual is zero; the token is then drawn from p_c, which is the same up to rounding.
    """
    residual = p_theta.neg_().add_(p_c).clamp_(min=0)  # in place: these are among the largest tensors of generation
    empty = ~(residual.sum(dim=-1, keepdim=True) > 0)
    residual.masked_fill_(empty, 0.0).add_(p_c.mul_(empty))
    return draw_by_weight(residual, u[:, None])[:, 0]
