"""The paper's mathematics, one function for each equation; the sign of the energy lives here and nowhere else.

Symbols: EDLM (Xu et al. 2024, arXiv 2410.21357) and MDLM (Sahoo et al. 2024, arXiv 2406.07524).
Axes: b sequence, k candidate, l position, v vocabulary, n selected positions, g group of positions.
Everything is in nats. Energies are LOW where text is likely.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

# ---------------------------------------------------------------- forward process and denoiser


def noise(
    x0: Int[Tensor, "b l"], alpha: Float[Tensor, " b"], u: Float64[Tensor, "b l"], mask: int
) -> Int[Tensor, "b l"]:
    """x_t ~ q(x_t | x_0): each token kept with probability alpha_t, else replaced by the mask (MDLM eq. 3)."""
    return torch.where(u < alpha[:, None], x0, mask)


def substitute(logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    """log p_theta at masked positions (SUBS, MDLM sec. 3.2.3), in float32 whatever the network computes in.

    `v` runs over tokens only, so the mask has probability zero; unmasked positions never come here.
    """
    return F.log_softmax(logits.float(), dim=-1)


def carry_over(xt: Int[Tensor, "*b l"], x: Int[Tensor, "*b l"], where: Bool[Tensor, "*b l"]) -> Int[Tensor, "*b l"]:
    """x at the selected positions, x_t everywhere else: a token once revealed never changes."""
    return torch.where(where, x, xt)


def tempered(logits: Float[Tensor, "*n v"], temperature: float) -> Float[Tensor, "*n v"]:
    """Logits of p^(1/temperature), normalised by what comes after; at 0 all of the probability is the likeliest's.

    Of several likeliest tokens the first has it. Logits that are not numbers stay so.
    """
    if temperature > 0:
        return logits.float() / temperature
    most = logits.float().max(dim=-1, keepdim=True)
    return torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter(-1, most.indices, most.values * 0.0)


def draw(log_p: Float[Tensor, "n v"], u: Float64[Tensor, "n k"]) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """k tokens for each position by inverse CDF, with the log-probability of each.

    One float64 cumulative distribution serves all k candidates. A float32 Gumbel race would truncate the tail: it
    lowers the entropy and flatters generative perplexity (Zheng et al. 2024).
    """
    tokens = draw_by_weight(log_p.detach().to(torch.float64, copy=True).exp_(), u)
    return tokens, log_p.gather(-1, tokens)


def draw_by_weight(p: Float64[Tensor, "n v"], u: Float64[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """k tokens for each position in proportion to p, which afterwards holds its own sums.

    In place, because it is the largest thing that generation ever holds.
    """
    cdf = torch.cumsum(p, dim=-1, out=p)
    return torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=p.shape[-1] - 1)


# ---------------------------------------------------------------- diffusion loss


def nelbo_integrand(nll: Float[Tensor, "b l"], weight: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """w(t) sum_{l masked} -log p_theta(x_0^l | x_t), nats per sequence (MDLM eq. 10); nll is 0 where nothing is masked.

    Its mean over t ~ U(0, 1) and x_t is the continuous-time NELBO, an upper bound on -log p(x_0).
    """
    return weight * nll.sum(dim=-1)


# ---------------------------------------------------------------- groups of positions


def group_count(length: int, block: int | None) -> int:
    """The number of groups that are weighed and resampled on their own: 1, or ceil(length / block)."""
    return 1 if block is None else math.ceil(length / block)


def sum_by_group(values: Tensor, block: int | None) -> Tensor:
    """[..., l] -> [..., g]: the sum over the positions of each group."""
    if block is None:
        return values.sum(dim=-1, keepdim=True)
    padding = -values.shape[-1] % block
    return F.pad(values, (0, padding)).unflatten(-1, (-1, block)).sum(dim=-1)


def spread_groups(values: Tensor, length: int, block: int | None) -> Tensor:
    """[..., g] -> [..., l]: each position gets its group's value."""
    return values.repeat_interleave(length if block is None else block, dim=-1)[..., :length]


# ---------------------------------------------------------------- the energy and its training


def log_weight(energy: Tensor, temperature: float = 1.0) -> Tensor:
    """log v = -E / tau: the unnormalised log importance weight of p_theta exp(-E) against p_theta (EDLM eq. 6)."""
    return -energy / temperature


def nce_binary(data: Float[Tensor, "b g"], negatives: Float[Tensor, "b k g"]) -> Float[Tensor, "b g"]:
    """softplus(E(x_0)) + mean_j softplus(-E(x^-_j)) (EDLM eq. 10); at its optimum E = log p_theta - log q, so Z = 1."""
    return F.softplus(data) + F.softplus(-negatives).mean(dim=1)


def nce_ranking(data: Float[Tensor, "b g"], negatives: Float[Tensor, "b k g"]) -> Float[Tensor, "b g"]:
    """-log of the weight of x_0 among itself and K negatives; optimum as for `nce_binary` up to a constant c(x_t).

    log(K + 1) minus it is what resampling K + 1 candidates gains in that step (docs/mathematics.md 3.3, 5.1).
    """
    log_v = log_weight(torch.cat([data[:, None], negatives], dim=1))
    return -log_v.log_softmax(dim=1)[:, 0]


def carry_over_log_p(log_p: Float[Tensor, "*b l"], masked: Bool[Tensor, "*b l"]) -> Float[Tensor, "*b"]:
    """Autoregressive log-probability of the masked positions alone; its Z is exactly 1 (EDLM sec. 4.1, `coAR`)."""
    return (log_p * masked).sum(dim=-1)


# ---------------------------------------------------------------- the k-candidate sampler


def reveal(
    masked: Bool[Tensor, "b l"], probability: Float[Tensor, " b"], u: Float64[Tensor, "b l"]
) -> Bool[Tensor, "b l"]:
    """U: each masked position joins independently. It does not depend on the candidates, so it is drawn first."""
    return masked & (u < probability[:, None])


def up_to_last(masked: Bool[Tensor, "b l"], revealed: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """The masked positions but for those behind the last of U: a law in reading order needs no more to know x_U."""
    return masked & (revealed.flip(1).cumsum(dim=1).flip(1) > 0)


def pick(log_v: Float[Tensor, "b k g"], u: Float64[Tensor, "b g"]) -> Int[Tensor, "b g"]:
    """J ~ Categorical(v / sum v) over the candidates of the SAME sequence and group (EDLM alg. 1).

    Where every weight is zero (all candidates impossible) the choice is uniform.
    """
    cdf = _log_shares(log_v, dim=1).exp().cumsum(dim=1)
    return (u[:, None] * cdf[:, -1:] >= cdf).sum(dim=1).clamp(max=log_v.shape[1] - 1)


def effective_sample_size(log_v: Float[Tensor, "b k g"]) -> Float[Tensor, "b g"]:
    """(sum v)^2 / sum v^2, between 1 and k."""
    return 1 / _log_shares(log_v, dim=1).exp().square().sum(dim=1)


def _log_shares(log_v: Tensor, dim: int) -> Float64[Tensor, "..."]:
    """log(v / sum v) over the candidates; equal shares where every weight is zero."""
    if log_v.isnan().any():
        raise FloatingPointError("an energy is not a number; the energy network or its input is broken")
    log_v = log_v.double()
    impossible = (log_v == -math.inf).all(dim=dim, keepdim=True)
    return torch.where(impossible, 0.0, log_v).log_softmax(dim=dim)


# ---------------------------------------------------------------- remasking


def most_remasked(alpha_t: Float[Tensor, "*b"], alpha_s: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """min(1, (1 - alpha_s) / alpha_t): the largest share sigma of the revealed positions that may be masked again.

    With more, the masked share at s would exceed 1 - alpha_s whatever is revealed (Wang et al. 2025, sec. 3.1). 0 where
    nothing is revealed yet, and at s = 0.
    """
    return torch.where(alpha_t > 0, ((1 - alpha_s) / alpha_t).clamp(max=1), 0.0)


def reveal_beside_remasking(
    alpha_t: Float[Tensor, "*b"], alpha_s: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t): P(a masked position is revealed) that keeps q(x_s | x_0).

    Of the share alpha_t that is clean at t, (1 - sigma) alpha_t stays clean; the rest of alpha_s comes from the share
    1 - alpha_t that is masked (Wang et al. 2025, eq. 4).
    """
    return (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)


# ---------------------------------------------------------------- likelihood


def resampled_nll(log_p: Float[Tensor, "b g"], log_v: Float[Tensor, "r b k g"]) -> Float[Tensor, "b g"]:
    """Upper bound on -log p_k of the revealed tokens, nats by group (docs/mathematics.md 5.1).

        -log p_theta(x_U) - log (1/R) sum_r [ k v_1 / sum_j v_j ]_r

    Candidate 1 (index 0) holds the true tokens, which so sit inside their own normaliser; the others are drawn from
    p_theta. The mean over the R repeats is of the whole ratio: averaging v inside it gives no bound.
    """
    repeats, _, k, _ = log_v.shape
    log_ratio = math.log(k) + _log_shares(log_v, dim=2)[:, :, 0]
    return -log_p - (log_ratio.logsumexp(dim=0) - math.log(repeats))


def paper_integrand(
    log_p: Float[Tensor, " b"], energy: Float[Tensor, " b"], log_z: Float[Tensor, " b"], weight: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """w(t) (-log p_theta + E + log Z) (EDLM eq. 9). NOT a bound: it weighs a joint by w(t)."""
    return weight * (-log_p + energy + log_z)


def log_partition(log_v: Float[Tensor, "n *b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """(low, high) estimates of log Z from n draws of log v = -E under p_theta.

    Low is the log-mean-exp, biased low (Jensen); high is (2n - 1) T_n - 2 (n - 1) T_{n-1} (Deng et al. 2020, eq. 6),
    T_{n-1} averaged over the n ways to leave one draw out. Needs n >= 2.
    """
    n = log_v.shape[0]
    low = log_v.logsumexp(dim=0) - math.log(n)
    nothing = torch.full_like(log_v[:1], -math.inf)
    before = torch.cat([nothing, log_v.logcumsumexp(dim=0)[:-1]])
    after = torch.cat([nothing, log_v.flip(0).logcumsumexp(dim=0)[:-1]]).flip(0)
    leave_one_out = (torch.logaddexp(before, after) - math.log(n - 1)).mean(dim=0)
    return low, (2 * n - 1) * low - 2 * (n - 1) * leave_one_out
