"""Noise schedules alpha_t, the probability that a token is clean at time t, and the times drawn in training."""

import functools
import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from edlm.config import Fraction, PositiveFloat, config
from edlm.rng import Purpose, uniforms

TRAINING_FLOOR = 1e-3  # published floor of t in training; evaluation has none (docs/mathematics.md 2)


class AbstractSchedule(ABC):
    """Decreasing noise schedule with alpha_0 = 1 and alpha_1 = 0; all methods take t in [0, 1] of any shape."""

    @abstractmethod
    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return P(token clean at t)."""

    @abstractmethod
    def weight(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return w(t) = -alpha'_t / (1 - alpha_t), the weight of the NELBO's integrand (Sahoo et al. 2024, eq. 10).

        In closed form, because near t = 0 the difference 1 - alpha_t would round to 0 and the weight to infinity.
        """

    def unmask_probability(self, t: Float[Tensor, "*b"], s: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return P(a position masked at t is unmasked by s < t) = (alpha_s - alpha_t) / (1 - alpha_t).

        Exactly 1 at s = 0.
        """
        return (self.alpha(s) - self.alpha(t)) / (1 - self.alpha(t))


@config
class LogLinear(AbstractSchedule):
    """Log-linear schedule: alpha_t = 1 - t; w(t) = 1 / t."""

    kind: Literal["log_linear"] = "log_linear"

    def alpha(self, t):
        return 1 - t

    def weight(self, t):
        return 1 / t


@config
class Cosine(AbstractSchedule):
    """Cosine schedule: alpha_t = 1 - cos(pi / 2 (1 - t)); masks early and unmasks slowly near t = 1."""

    kind: Literal["cosine"] = "cosine"

    def alpha(self, t):
        # A squared sine has no cancellation, unlike 1 - cos near t = 1; `where` makes alpha(0) exactly 1.
        return torch.where(t <= 0, 1.0, 2 * torch.sin(math.pi / 4 * (1 - t)) ** 2)

    def weight(self, t):
        return math.pi / 2 / torch.tan(math.pi / 2 * t)


@config
class Polynomial(AbstractSchedule):
    """Polynomial schedule: alpha_t = 1 - t^exponent (Shi et al. 2024); w(t) = exponent / t. Log-linear if 1."""

    kind: Literal["polynomial"] = "polynomial"
    exponent: PositiveFloat = 2.0
    """Exponent of t: 1 is log-linear; the larger, the more tokens are clean at every t below 1."""

    def alpha(self, t):
        return 1 - t**self.exponent

    def weight(self, t):
        return self.exponent / t


ScheduleConfig = LogLinear | Cosine | Polynomial


def draw_times(
    seed: int, step: int, batch_index: Int[Tensor, " b"], global_batch_size: int, floor: Fraction = TRAINING_FLOOR
) -> Float[Tensor, " b"]:
    """Draw times in (floor, 1), stratified over the GLOBAL batch: t_i = (u + s_i) / N (Kingma et al. 2021).

    `batch_index`: the rows' indices i in the global batch of N = `global_batch_size` rows, over all workers and
    accumulation steps; u is shared by the whole step. Each of the N equal strata of (0, 1) is hit exactly once. Their
    order s spreads the rows of one worker over (0, 1), too (`_strata`): with s_i = i one of the workers would have the
    times near 1, nearly all of whose tokens are masked, and the others would wait for it. In which place of that order
    the rows begin, and whether it is mirrored, is drawn for the step, so that every row's time is uniform.
    """
    drawn = 2 * global_batch_size * uniforms(seed, step, 0, Purpose.TIME, device=batch_index.device)
    turn, u = drawn.long(), drawn % 1.0
    place = (batch_index + turn // 2 * 2) % global_batch_size  # an even number of places on, which parts no pair
    strata = torch.from_numpy(_strata(global_batch_size)).to(batch_index.device)[place]
    strata = torch.where(turn % 2 == 0, strata, global_batch_size - 1 - strata)
    return floor + (1 - floor) * (u + strata.double()) / global_batch_size


@functools.cache
def _strata(n: int) -> Int64[np.ndarray, " n"]:
    """Return the strata 0 to n - 1 in pairs of s and n - 1 - s, whose mean is that of all; of an odd n the middle last.

    So workers with an even number of rows in a micro-step have the same mean of times. The pairs are in the order of
    the fractional parts of the golden ratio's multiples, neighbours of which are evenly spread over (0, 1) (Weyl 1916),
    so that they have about the same mean of a convex schedule, too. Which of a pair comes first follows the sequence of
    Thue and Morse, which favours neither at regular distances: those of a worker's single rows in its micro-steps.
    """
    pair = np.arange(n // 2)
    low = (pair * ((math.sqrt(5) - 1) / 2) % 1.0).argsort(kind="stable").argsort(kind="stable")
    first = np.where(np.bitwise_count(pair) % 2 == 0, low, n - 1 - low)
    pairs = np.stack([first, n - 1 - first], axis=1).flatten()
    return np.append(pairs, [n // 2] * (n % 2)).astype(np.int64)
