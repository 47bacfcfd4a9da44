"""The paper's mathematics, one function per equation; the sign of the energy is set here and nowhere else.

Symbols: EDLM (Xu et al. 2024, arXiv 2410.21357) and MDLM (Sahoo et al. 2024, arXiv 2406.07524).
Axes: b sequence, k candidate, l position, v vocabulary, n selected positions, g group of positions.
All quantities are in nats. Energies are LOW where text is likely.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm.inverse_cdf import draw_by_weight

# ---------------------------------------------------------------- forward process and denoiser


def noise(
    x0: Int[Tensor, "b l"], alpha: Float[Tensor, " b"], u: Float64[Tensor, "b l"], mask: int
) -> Int[Tensor, "b l"]:
    """Sample x_t ~ q(x_t | x_0): keep each token with probability alpha_t, else replace it by the mask (MDLM eq. 3)."""
    return torch.where(u < alpha[:, None], x0, mask)


def substitute(logits: Float[Tensor, "n v"], out: Float[Tensor, "n v"] | None = None) -> Float[Tensor, "n v"]:
    """Return log p_theta at masked positions (SUBS, MDLM sec. 3.2.3), in float32 for any network precision.

    `v` runs over tokens only, so the mask has probability zero; callers never pass unmasked positions. `out`, if given,
    becomes the result.
    """
    return torch.log_softmax(logits.float(), dim=-1, out=out)


def carry_over(xt: Int[Tensor, "*b l"], x: Int[Tensor, "*b l"], where: Bool[Tensor, "*b l"]) -> Int[Tensor, "*b l"]:
    """Return x at the selected positions and x_t elsewhere: an unmasked token never changes."""
    return torch.where(where, x, xt)


def tempered(logits: Float[Tensor, "*n v"], temperature: float) -> Float[Tensor, "*n v"]:
    """Return the logits of p^(1/temperature), not normalised; at 0 the likeliest token has all of the probability.

    Ties go to the first token. NaN logits stay NaN.
    """
    if temperature > 0:
        return logits.float() / temperature
    most = logits.float().max(dim=-1, keepdim=True)
    return torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter(-1, most.indices, most.values * 0.0)


def truncated(log_p: Float[Tensor, "*n v"], top_k: int | None, top_p: float) -> Float[Tensor, "*n v"]:
    """Return log p of the `top_k` likeliest tokens (None: all), and of those the fewest that have `top_p` together.

    The second is the nucleus of Holtzman et al. 2020, of p renormalised after the first; the likeliest token is always
    in it. All other tokens have probability 0. Ties go to the first token; NaN stays NaN.
    """
    ordered, tokens = log_p.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = -torch.inf
    p = ordered.double().softmax(dim=-1)
    likelier = p.cumsum(dim=-1) - p  # probability of the tokens before each
    likelier[..., 0] = -1.0
    ordered = torch.where(likelier < top_p, ordered, -torch.inf)
    return torch.empty_like(log_p).scatter_(-1, tokens, ordered).log_softmax(dim=-1)


def draw(
    logits: Float[Tensor, "n v"], u: Float64[Tensor, "n k"], p: Float[Tensor, "n v"] | None = None
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Draw k tokens per position from softmax(logits) and return them with their log-probabilities.

    By inverse CDF: a float32 Gumbel race would truncate the tail, which lowers the entropy and flatters generative
    perplexity (Zheng et al. 2024). Logits, in float32 or float64, may be log-probabilities. `p`, if given, is the
    memory for probabilities.
    """
    p = torch.softmax(logits, dim=-1, out=p)
    tokens = draw_by_weight(p.detach(), u)
    return tokens, p.gather(-1, tokens).log()


# ---------------------------------------------------------------- diffusion loss


def nelbo_integrand(nll: Float[Tensor, "b l"], weight: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return w(t) sum_{l masked} -log p_theta(x_0^l | x_t), in nats per sequence (MDLM eq. 10).

    `nll` is 0 at unmasked positions. The mean over t ~ U(0, 1) and x_t is the continuous-time NELBO, an upper bound on
    -log p(x_0).
    """
    return weight * nll.sum(dim=-1)


# ---------------------------------------------------------------- groups of positions


def group_count(length: int, block: int | None) -> int:
    """Return the number of groups that are scored and resampled independently: 1, or ceil(length / block)."""
    return 1 if block is None else math.ceil(length / block)


def sum_by_group(values: Tensor, block: int | None) -> Tensor:
    """Sum over the positions of each group: [..., l] -> [..., g]."""
    if block is None:
        return values.sum(dim=-1, keepdim=True)
    padding = -values.shape[-1] % block
    return F.pad(values, (0, padding)).unflatten(-1, (-1, block)).sum(dim=-1)


def spread_groups(values: Tensor, length: int, block: int | None) -> Tensor:
    """Assign each position its group's value: [..., g] -> [..., l]."""
    return values.repeat_interleave(length if block is None else block, dim=-1)[..., :length]


# ---------------------------------------------------------------- the energy and its training


def log_weight(energy: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log v = -E / tau, the unnormalised log importance weight of p_theta exp(-E) over p_theta (EDLM eq. 6)."""
    return -energy / temperature


def nce_binary(data: Float[Tensor, "b g"], negatives: Float[Tensor, "b k g"]) -> Float[Tensor, "b g"]:
    """Return softplus(E(x_0)) + mean_j softplus(-E(x^-_j)) (EDLM eq. 10).

    At its optimum E = log p_theta - log q, so Z = 1.
    """
    return F.softplus(data) + F.softplus(-negatives).mean(dim=1)


def nce_ranking(data: Float[Tensor, "b g"], negatives: Float[Tensor, "b k g"]) -> Float[Tensor, "b g"]:
    """Return -log of the weight of x_0 among itself and K negatives.

    The optimum is that of `nce_binary` up to a constant c(x_t). log(K + 1) minus this loss is the gain of resampling
    K + 1 candidates in that step (docs/mathematics.md 3.3, 5.1).
    """
    log_v = log_weight(torch.cat([data[:, None], negatives], dim=1))
    return -log_v.log_softmax(dim=1)[:, 0]


def carry_over_log_p(log_p: Float[Tensor, "*b l"], masked: Bool[Tensor, "*b l"]) -> Float[Tensor, "*b"]:
    """Return the autoregressive log-probability of the masked positions; its Z is exactly 1 (EDLM sec. 4.1, `coAR`)."""
    return (log_p * masked).sum(dim=-1)


# ---------------------------------------------------------------- the k-candidate sampler


def unmask(
    masked: Bool[Tensor, "b l"], probability: Float[Tensor, " b"], u: Float64[Tensor, "b l"]
) -> Bool[Tensor, "b l"]:
    """Draw U, which each masked position joins independently: independent of the candidates, so it is drawn first."""
    return masked & (u < probability[:, None])


def masked_on_average(count: Int[Tensor, " b"], alpha: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return n (1 - alpha_s) to the nearest integer, half rounded down: how many of n positions are masked at s."""
    # The tolerance makes a half that is not exact in float64 round down, too.
    return (count * (1 - alpha.double()) - 0.5 - 1e-9).ceil().long().clamp(min=0)


def up_to_last(masked: Bool[Tensor, "b l"], unmasked: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Return the masked positions up to the last one of U: all that drawing x_U in reading order needs."""
    return masked & (unmasked.flip(1).cumsum(dim=1).flip(1) > 0)


def pick(log_v: Float[Tensor, "b k g"], u: Float64[Tensor, "b g"], has_no_nan: bool = False) -> Int[Tensor, "b g"]:
    """Draw J ~ Categorical(v / sum v) over the candidates of the SAME sequence and group (EDLM alg. 1).

    The choice is uniform where every weight is zero (all candidates impossible).
    `has_no_nan`: it is known that no weight is NaN, and a device need not be waited for.
    """
    cdf = _log_shares(log_v, dim=1, has_no_nan=has_no_nan).exp().cumsum(dim=1)
    return (u[:, None] * cdf[:, -1:] >= cdf).sum(dim=1).clamp(max=log_v.shape[1] - 1)


def effective_sample_size(log_v: Float[Tensor, "b k g"], has_no_nan: bool = False) -> Float[Tensor, "b g"]:
    """Return (sum v)^2 / sum v^2, between 1 and k; `has_no_nan` as for `pick`."""
    return 1 / _log_shares(log_v, dim=1, has_no_nan=has_no_nan).exp().square().sum(dim=1)


def _log_shares(log_v: Tensor, dim: int, has_no_nan: bool = False) -> Float64[Tensor, "..."]:
    """Return log(v / sum v) over the candidates, uniform where every weight is zero; FloatingPointError on NaN."""
    if not has_no_nan and log_v.isnan().any():
        raise FloatingPointError("an energy is not a number; the energy network or its input is broken")
    log_v = log_v.double()
    impossible = (log_v == -math.inf).all(dim=dim, keepdim=True)
    return torch.where(impossible, 0.0, log_v).log_softmax(dim=dim)


# ---------------------------------------------------------------- remasking


def most_remasked(alpha_t: Float[Tensor, "*b"], alpha_s: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return min(1, (1 - alpha_s) / alpha_t), the largest share sigma of unmasked positions that may be masked again.

    With a larger share, the masked share at s would exceed 1 - alpha_s whatever is unmasked (Wang et al. 2025, sec.
    3.1). 0 where nothing is unmasked yet, and at s = 0.
    """
    return torch.where(alpha_t > 0, ((1 - alpha_s) / alpha_t).clamp(max=1), 0.0)


def unmask_probability(
    alpha_t: Float[Tensor, "*b"], alpha_s: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """Return (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), the P(unmask a position) that preserves q(x_s | x_0).

    Of the share alpha_t that is clean at t, (1 - sigma) alpha_t stays clean; the rest of alpha_s comes from the share
    1 - alpha_t that is masked (Wang et al. 2025, eq. 4).
    """
    return (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)


# ---------------------------------------------------------------- likelihood


def resampled_nll(log_p: Float[Tensor, "b g"], log_v: Float[Tensor, "r b k g"]) -> Float[Tensor, "b g"]:
    """Return an upper bound on -log p_k of the unmasked tokens, in nats per group (docs/mathematics.md 5.1).

        -log p_theta(x_U) - log (1/R) sum_r [ k v_1 / sum_j v_j ]_r

    Candidate 1 (index 0) holds the true tokens and is part of its own normaliser; the others are drawn from p_theta.
    The mean over the R repeats is of the whole ratio: averaging v inside it gives no bound.
    """
    repeats, _, k, _ = log_v.shape
    log_ratio = math.log(k) + _log_shares(log_v, dim=2)[:, :, 0]
    return -log_p - (log_ratio.logsumexp(dim=0) - math.log(repeats))


def paper_integrand(
    log_p: Float[Tensor, " b"], energy: Float[Tensor, " b"], log_z: Float[Tensor, " b"], weight: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Return w(t) (-log p_theta + E + log Z) (EDLM eq. 9). NOT a bound: w(t) weights a joint."""
    return weight * (-log_p + energy + log_z)


def log_partition(log_v: Float[Tensor, "n *b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:  # noqa: F821
    """Return (low, high) estimates of log Z from n draws of log v = -E under p_theta.

    Low is the log-mean-exp, biased low (Jensen); high is (2n - 1) T_n - 2 (n - 1) T_{n-1} (Deng et al. 2020, eq. 6),
    with T_{n-1} averaged over the n ways to leave one draw out. Requires n >= 2.
    """
    n = log_v.shape[0]
    low = log_v.logsumexp(dim=0) - math.log(n)
    log_zero = torch.full_like(log_v[:1], -math.inf)
    before = torch.cat([log_zero, log_v.logcumsumexp(dim=0)[:-1]])
    after = torch.cat([log_zero, log_v.flip(0).logcumsumexp(dim=0)[:-1]]).flip(0)
    leave_one_out = (torch.logaddexp(before, after) - math.log(n - 1)).mean(dim=0)
    return low, (2 * n - 1) * low - 2 * (n - 1) * leave_one_out
