"""Log-probabilities of tokens, each with the likeliest tokens in its place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edlm.cooperative_work import Cooperative
from edlm.inference.components import ModelComponents
from edlm.interfaces import read

ROWS_AT_ONCE = 16  # canvases of a prompt between two pauses


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of one token, in nats."""

    token: int
    log_p: float
    likeliest: tuple[tuple[int, float], ...]
    """The likeliest tokens in its place with their log-probabilities, in this order; it need not be among them."""


def token_logprobs(log_p: Float[Tensor, "n v"], tokens: Int[Tensor, " n"], count: int) -> list[TokenLogprob]:
    """Return log p of each token, and of the `count` likeliest in its place; raise FloatingPointError for NaN."""
    if log_p.isnan().any():
        raise FloatingPointError("the log-probability of a token is not a number")
    given = log_p.gather(-1, tokens[:, None])[:, 0].tolist()
    most = log_p.topk(min(count, log_p.shape[-1]), dim=-1)
    likeliest = zip(most.indices.tolist(), most.values.tolist(), strict=True)
    return [
        TokenLogprob(token, value, tuple(zip(others, values, strict=True)))
        for token, value, (others, values) in zip(tokens.tolist(), given, likeliest, strict=True)
    ]


def left_to_right(tokens: Sequence[int], components: ModelComponents, count: int) -> Cooperative[list[TokenLogprob]]:
    """Return log p of each token given those before it: EXACT, but of ANOTHER DISTRIBUTION.

    It is that of the sampler which in each of L steps, L the length of the canvas, unmasks the leftmost position: a
    text has one path, so that log p of a text is the sum over its tokens, and given its beginning, over the others.
    Beyond one canvas a text is read half a canvas at a time, after half a canvas of context, as in generation. Pauses
    between batches.
    """
    network, length = components.denoiser.network, components.length
    found: list[TokenLogprob] = []
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        positions = range(start, min(start + ROWS_AT_ONCE, len(tokens)))
        xt = torch.full((len(positions), length), components.mask, dtype=torch.int64)
        before = torch.tensor([_context(position, length) for position in positions])
        for row, (position, context) in enumerate(zip(positions, before.tolist(), strict=True)):
            xt[row, :context] = torch.tensor(tokens[position - context : position], dtype=torch.int64)
        where = torch.arange(length) == before[:, None]
        t = (length - before).double() / length
        found += _logprobs(
            network, xt, t, where, torch.tensor(tokens[start : positions.stop]), count, components.device
        )
        yield
    return found


@torch.no_grad()
def _logprobs(network, xt, t, where, tokens, count: int, device: torch.device) -> list[TokenLogprob]:
    xt, t, where, tokens = (values.to(device) for values in (xt, t, where, tokens))
    return token_logprobs(network.log_p(read(network, xt, t, where), where), tokens, count)


def _context(position: int, length: int) -> int:
    """Return how many tokens before `position` of a text are on the canvas that it is read on."""
    if position < length:
        return position
    return length // 2 + (position - length) % (length - length // 2)
