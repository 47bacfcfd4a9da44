"""Plain implementation of the published training step: the timing baseline of training.

Every position is projected to the vocabulary, whose log-softmax is computed in float32 for all of them at once; noise
comes from torch's generator, negatives from a race over the whole vocabulary at every position; the optimizer is the
default AdamW of torch, the average is updated tensor by tensor, and every step reads its loss back (Xu et al. 2024,
sections 3 and 4; Sahoo et al. 2024, section 3). The networks are those of this project, so that what differs is the
step. In bfloat16 it computes as the published training ran: under autocast, which rounds float32 weights in every step,
with the log-softmax in float32. Where the description leaves work open, the cheaper option is taken: no tensor of all
logits is copied to write what SUBS prescribes at unmasked positions, which the loss does not read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from edlm import equations
from edlm.baselines.naive_sampler import race
from edlm.interfaces import AbstractEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.readout import LMHead
from edlm.schedule import TRAINING_FLOOR, AbstractSchedule
from edlm.training.settings import Training

Tokens = Int[Tensor, "b l"]


@dataclass(frozen=True)
class PlainDenoising:
    """NELBO of a denoiser, in nats per token (MDLM eq. 10)."""

    denoiser: Denoiser
    schedule: AbstractSchedule
    generator: torch.Generator

    def __call__(self, x0: Tokens) -> Float[Tensor, ""]:
        t = stratified_times(x0, self.generator)
        return self.loss(x0, masked_tokens(x0, self.schedule.alpha(t), self.denoiser.mask, self.generator), t)

    def loss(self, x0: Tokens, xt: Tokens, t: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the loss given the noise."""
        log_p = log_probabilities(self.denoiser.readout, self.denoiser.read(xt, t))
        nll = -log_p.gather(-1, x0[..., None])[..., 0] * (xt == self.denoiser.mask)
        return equations.nelbo_integrand(nll, self.schedule.weight(t)).mean() / x0.shape[1]


@dataclass(frozen=True)
class PlainNextToken:
    """Cross-entropy of an autoregressive model, in nats per token."""

    model: AutoregressiveModel

    def __call__(self, x0: Tokens) -> Float[Tensor, ""]:
        log_p = log_probabilities(self.model.readout, self.model.read(x0))
        return -log_p.gather(-1, x0[..., None]).mean()


@dataclass(frozen=True)
class PlainContrastive:
    """NCE of whole drafts against the frozen denoiser (EDLM eq. 10)."""

    denoiser: Denoiser
    energy: AbstractEnergy
    schedule: AbstractSchedule
    negatives: int
    generator: torch.Generator

    def __call__(self, x0: Tokens) -> Float[Tensor, ""]:
        t = stratified_times(x0, self.generator)
        xt = masked_tokens(x0, self.schedule.alpha(t), self.denoiser.mask, self.generator)
        return self.loss(x0, xt, t, self.drawn(xt, t))

    @torch.no_grad()
    def drawn(self, xt: Tokens, t: Float[Tensor, " b"]) -> Int[Tensor, "b k l"]:
        """Draw the negatives from p_theta(. | x_t), position by position."""
        p = log_probabilities(self.denoiser.readout, self.denoiser.read(xt, t)).exp()
        drawn = torch.stack([race(p, self.generator) for _ in range(self.negatives)], dim=1)
        return torch.where((xt == self.denoiser.mask)[:, None], drawn, xt[:, None])

    def loss(
        self, x0: Tokens, xt: Tokens, t: Float[Tensor, " b"], negatives: Int[Tensor, "b k l"]
    ) -> Float[Tensor, ""]:
        """Return the loss given noise and negatives."""
        x = torch.cat([x0[:, None], negatives], dim=1)
        nothing = torch.zeros(x.shape[:2], device=x.device)[..., None]  # the paper's energy reads neither of these
        energies = self.energy(x, xt, t, nothing, nothing)
        return equations.nce_binary(energies[:, 0], energies[:, 1:]).mean()


class PlainTrainer:
    """Optimizer, clipping, average and the loss of every step, one after the other; the weights are float32."""

    def __init__(self, loss: Callable[[Tokens], Tensor], weights: Sequence[nn.Parameter], training: Training) -> None:
        self.loss, self.weights, self.training = loss, list(weights), training
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=training.learning_rate,
            betas=training.betas,
            eps=training.epsilon,
            weight_decay=training.weight_decay,
        )
        self.averages = [weight.detach().clone() for weight in self.weights]

    def step(self, x0: Tokens) -> float:
        """Take a step and return its loss."""
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.training.precision == "bfloat16"):
            loss = self.loss(x0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.training.ema is not None:
            with torch.no_grad():
                for mean, weight in zip(self.averages, self.weights, strict=True):
                    mean.sub_((1 - self.training.ema) * (mean - weight))
        return loss.item()


def log_probabilities(readout: LMHead, features: Float[Tensor, "b l h"]) -> Float[Tensor, "b l v"]:
    """Return log p over the vocabulary at every position."""
    return F.linear(features, readout.weight, readout.bias).float().log_softmax(dim=-1)


def stratified_times(x0: Tokens, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Draw the time of each row in a stratum of its own of (floor, 1)."""
    rows = len(x0)
    u = torch.rand(rows, generator=generator, device=generator.device).to(x0.device, non_blocking=True)
    t = (u + torch.arange(rows, device=x0.device)) / rows
    return TRAINING_FLOOR + (1 - TRAINING_FLOOR) * t


def masked_tokens(x0: Tokens, alpha: Float[Tensor, " b"], mask: int, generator: torch.Generator) -> Tokens:
    """Draw x_t ~ q(x_t | x_0)."""
    u = torch.rand(x0.shape, generator=generator, device=generator.device).to(x0.device, non_blocking=True)
    return torch.where(u < alpha[:, None], x0, mask)
