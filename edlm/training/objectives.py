"""Training objectives (two here, two in `energy_objectives`): modules whose forward returns the loss, for an engine.

Each takes `Rows` and returns (loss, observations). All noise is keyed by (seed, step, index in the global batch), so it
does not depend on the number of workers. It is drawn on the host, which then knows the masked positions without waiting
for a device. Losses are means over rows, in nats per token or per group.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from edlm import equations
from edlm.data.batches import Rows
from edlm.device_copies import selected_indices, sent
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser
from edlm.models.documents import document_index
from edlm.rng import Purpose, uniforms
from edlm.schedule import AbstractSchedule, draw_times

BUCKETS = 32  # numbers of masked positions for which a device computes batches of one shape
Loss = tuple[Tensor, dict[str, Tensor]]
M = TypeVar("M", bound=nn.Module)


class Denoising(nn.Module):
    """Diffusion pretraining: the continuous-time NELBO in nats per token (MDLM eq. 10).

    Tokens that are not learnt, prompts, are never masked; the loss is that of the answers given them, per learnt token
    of the row. Given a `separator`, the tokens of a row attend within their document only.
    """

    def __init__(
        self, denoiser: AbstractDenoiser, schedule: AbstractSchedule, seed: int, separator: int | None = None
    ) -> None:
        super().__init__()
        self.trained, self.schedule, self.seed, self.separator = denoiser, schedule, seed, separator

    def forward(self, rows: Rows) -> Loss:
        x0, denoiser, host = rows.tokens, self.trained, rows.on_host
        t = draw_times(self.seed, host.step, host.batch_index, host.global_batch_size)
        xt = noised(self.seed, host, self.schedule.alpha(t), denoiser.mask)
        masked, weight = xt == denoiser.mask, self.schedule.weight(t)
        xt, t, weight = sent([xt, t, weight], x0.device)
        on_host = torch.nonzero(masked, as_tuple=True)
        padded = tuple(sent(padded_to_bucket(on_host, x0.shape, x0.device), x0.device))
        count, more = len(on_host[0]), len(padded[0]) - len(on_host[0])
        features = features_at(denoiser, xt, t, x0, padded, self.separator)
        index = tuple(axis[:count] for axis in padded)
        scale = weight / rows.loss_token_counts()  # of the log-probabilities of a row
        of_each = F.pad((scale / len(x0))[index[0]], (0, more))
        total, log_p = denoiser.readout.log_p_sum(features, x0[padded], of_each)
        nll = torch.zeros(x0.shape, device=x0.device).index_put(index, -log_p[:count])
        return -total, {"t": t, "nelbo_nats_per_token": equations.nelbo_integrand(nll, scale)}


class NextToken(nn.Module):
    """Autoregressive training: cross-entropy of every token, including the first, in nats per token.

    Where tokens are not learnt, prompts, it is the mean over rows of the mean over a row's learnt tokens. Given a
    `separator`, each document of a row starts after BOS and sees no other one.
    """

    def __init__(self, model: AbstractAutoregressiveModel, separator: int | None = None) -> None:
        super().__init__()
        self.trained, self.separator = model, separator

    def forward(self, rows: Rows) -> Loss:
        x, model, host, separator = rows.tokens, self.trained, rows.on_host, self.separator
        features = model.read(x) if separator is None else model.read_within(x, document_index(x, separator))
        if rows.loss_mask is None or host.loss_mask is None:
            every = torch.full((x.numel(),), 1 / x.numel(), device=x.device)
            return -model.readout.log_p_sum(features.flatten(0, 1), x.flatten(), every)[0], {}
        index = selected_indices(host.loss_mask, x.device)
        scale = 1 / (len(x) * rows.loss_mask.sum(dim=1).clamp(min=1))
        return -model.readout.log_p_sum(features[index], x[index], scale[index[0]])[0], {}


def padded_to_bucket(
    index: tuple[Int[Tensor, " n"], ...], shape: tuple[int, ...], device: torch.device
) -> tuple[Int[Tensor, " m"], ...]:
    """Append the last position of a batch of a `shape` [b l] to the index up to one of BUCKETS numbers of positions.

    A device then computes few shapes: memory is used again, and kernels are chosen and compiled once for each. On
    average 1/64 of the batch is computed for nothing. The CPU gains nothing by it, and gets the index as it is.
    """
    rows, positions = index
    more = 0 if device.type == "cpu" else -len(rows) % math.ceil(shape[0] * shape[1] / BUCKETS)
    return F.pad(rows, (0, more), value=shape[0] - 1), F.pad(positions, (0, more), value=shape[1] - 1)


def noised(seed: int, rows: Rows, alpha: Float[Tensor, " b"], mask: int) -> Int[Tensor, "b l"]:
    """Draw x_t ~ q(x_t | x_0), in which only learnt tokens may be masked."""
    u = uniforms(seed, rows.step, rows.batch_index, Purpose.MASK, (rows.tokens.shape[1],))
    xt = equations.noise(rows.tokens, alpha, u, mask)
    return xt if rows.loss_mask is None else torch.where(rows.loss_mask, xt, rows.tokens)


def features_at(
    denoiser: AbstractDenoiser,
    xt: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    x0: Int[Tensor, "b l"],
    index: tuple[Int[Tensor, " n"], ...],
    separator: int | None,
) -> Float[Tensor, "n h"]:
    """Compute the denoiser's features of x_t at selected positions, given as (rows, positions).

    Given a `separator`, within the documents that it bounds in x_0: the boundaries are those of x_0 at every noise
    level, also where the separator itself is masked.
    """
    return denoiser.features_at(xt, t, index, None if separator is None else document_index(x0, separator))
