"""Training objectives (two here, two in `energy_objectives`): modules whose forward returns the loss, for an engine.

Each takes `Rows` and returns (loss, observations). All noise is keyed by (seed, step, index in the global batch), so it
does not depend on the number of workers. Losses are means over rows, in nats per token or per group.
"""

from typing import TypeVar

from torch import Tensor, nn

from edlm import equations
from edlm.data.batches import Rows
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser
from edlm.rng import Purpose, uniforms
from edlm.schedule import AbstractSchedule, draw_times

Loss = tuple[Tensor, dict[str, Tensor]]
M = TypeVar("M", bound=nn.Module)


class Denoising(nn.Module):
    """Diffusion pretraining: the continuous-time NELBO in nats per token (MDLM eq. 10)."""

    def __init__(self, denoiser: AbstractDenoiser, schedule: AbstractSchedule, seed: int) -> None:
        super().__init__()
        self.trained, self.schedule, self.seed = denoiser, schedule, seed

    def forward(self, rows: Rows) -> Loss:
        x0, denoiser = rows.tokens, self.trained
        t = draw_times(self.seed, rows.step, rows.batch_index, rows.global_batch_size)
        u = uniforms(self.seed, rows.step, rows.batch_index, Purpose.MASK, (x0.shape[1],))
        xt = equations.noise(x0, self.schedule.alpha(t), u, denoiser.mask)
        nll = -denoiser.log_p_of(denoiser.read(xt, t), xt == denoiser.mask, x0)
        loss = equations.nelbo_integrand(nll, self.schedule.weight(t)) / x0.shape[1]
        return loss.mean(), {"t": t, "nelbo_nats_per_token": loss.detach()}


class NextToken(nn.Module):
    """Autoregressive training: cross-entropy of every token, including the first, in nats per token."""

    def __init__(self, model: AbstractAutoregressiveModel) -> None:
        super().__init__()
        self.trained = model

    def forward(self, rows: Rows) -> Loss:
        return -self.trained.log_p(rows.tokens).mean(), {}
