"""Training objectives of energies: noise contrastive estimation, or the likelihood of a normalised energy.

Modules whose forward returns (loss, observations), as in `edlm.training.objectives`; the denoiser is frozen. Given a
`separator`, the denoiser attends within documents, so that its features and its samples are those of each document
alone; the energy's own network reads the whole row.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm import equations
from edlm.data.batches import Rows
from edlm.device_copies import selected_indices, sent
from edlm.interfaces import AbstractEnergy, Model, Proposal, score
from edlm.models.denoiser import AbstractDenoiser
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import propose_from
from edlm.schedule import AbstractSchedule, draw_times
from edlm.training.objectives import Loss, M, features_at, noised

LARGEST_GRID = 64  # default number of steps of the grids that a step energy is trained on (docs/mathematics.md 3.3)

EnergyModel = Model[AbstractDenoiser, AbstractEnergy]  # networks, which have gradients and parameters


class ContrastiveObjective(nn.Module):
    """Noise contrastive estimation against the frozen denoiser (EDLM eq. 10; docs/mathematics.md 3.1, 3.3).

    Pairs (x_t, x_0), and K negatives from p_theta(. | x_t) for the SAME x_t. Whole-sequence energies see every masked
    position; step energies see the positions U that a random step of a random grid unmasks. Groups with at most one new
    token are left out, because the sampler does not resample them.
    `gain_nats` is log k - ranking loss with k = K + 1: the gain of resampling k candidates in that step.
    """

    def __init__(
        self,
        model: EnergyModel,
        negatives: int,
        loss: Literal["binary", "ranking"],
        seed: int,
        largest_grid: int = LARGEST_GRID,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.trained = frozen(model.denoiser), model.energy
        self.schedule, self.seed = model.schedule, seed
        self.negatives, self.largest_grid, self.separator = negatives, largest_grid, separator
        self.nce = {"binary": equations.nce_binary, "ranking": equations.nce_ranking}[loss]

    def forward(self, rows: Rows) -> Loss:
        x0, block, k, host = rows.tokens, self.trained.block, self.negatives, rows.on_host
        if self.trained.whole_sequence:
            t = draw_times(self.seed, host.step, host.batch_index, host.global_batch_size)
            s = torch.zeros_like(t)
        else:
            t, s = draw_step(self.seed, host, self.largest_grid)
        xt, new = noised_step(self.seed, host, t, s, self.schedule, self.denoiser.mask)
        xt, t, joint = sent([xt, t, equations.sum_by_group(new.long(), block) > 1], x0.device)
        with torch.no_grad():
            self.denoiser.eval()  # no dropout in the noise distribution
            index = selected_indices(new, x0.device)
            context = context_at(self.denoiser, xt, t, x0, index, self.separator)
            u = uniforms(self.seed, host.step, host.batch_index, Purpose.NEGATIVE, (k, x0.shape[1]), x0.device)
            if self.trained.proposal is None:
                x, log_p = self._from_denoiser(x0, xt, index, context, u)
            else:
                x, log_p = self._from_proposal(x0, xt, new, context, u)
        energies = score(self.trained, x, xt, t, log_p, context, new)
        loss = (self.nce(energies[:, 0], energies[:, 1:]) * joint).mean(dim=-1)
        ranking = equations.nce_ranking(energies[:, 0], energies[:, 1:]).detach()
        gain = ((math.log(k + 1) - ranking) * joint).sum(dim=-1)
        return loss.mean(), {"t": t, "gain_nats": gain}

    def _from_denoiser(self, x0, xt, index, context, u) -> tuple[Int[Tensor, "b k1 l"], Float[Tensor, "b k1 g"]]:
        """Return the data and K negatives from p_theta, with log p_theta of each by group."""
        rows, positions = index
        readout = self.denoiser.readout
        tokens, drawn, given = readout.draw_beside(context[index], x0[index], u[rows, :, positions])
        x = xt[:, None].expand(-1, u.shape[1] + 1, -1).clone()
        x[rows, 0, positions] = x0[index]
        x[rows, 1:, positions] = tokens
        by_position = torch.zeros(x.shape, device=x.device)
        by_position[rows, 0, positions] = given
        by_position[rows, 1:, positions] = drawn
        return x, equations.sum_by_group(by_position, self.trained.block)

    def _from_proposal(self, x0, xt, new, context, u) -> tuple[Int[Tensor, "b k1 l"], Float[Tensor, "b k1 1"]]:
        """Return the data and K negatives from the proposal, with its log-probability of each."""
        proposal = self.trained.proposal
        assert isinstance(proposal, Proposal)
        (new,) = sent([new], x0.device)
        negatives, _ = propose_from(proposal, context, xt, new, u)
        x = torch.cat([equations.carry_over(xt, x0, new)[:, None], negatives], dim=1)
        return x, proposal.log_p(x, xt, context)[..., None]


class ConditionalLikelihoodObjective(nn.Module):
    """Cross-entropy of a normalised energy's p_c on the tokens that a random step unmasks (docs/mathematics.md 3.4).

    Rows have equal weight: nats per unmasked token. `gain_nats` is log p_c - log p_theta of the step.
    Raise ValueError if the energy does not return log p_c.
    """

    def __init__(
        self,
        model: EnergyModel,
        seed: int,
        largest_grid: int = LARGEST_GRID,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model.energy, Proposal):
            raise ValueError(
                f"{type(model.energy).__name__} has no `log_p` and `draw`, so that its likelihood cannot be trained"
            )
        self.denoiser, self.trained = frozen(model.denoiser), model.energy
        self.schedule, self.seed = model.schedule, seed
        self.largest_grid, self.separator = largest_grid, separator

    def forward(self, rows: Rows) -> Loss:
        x0, host = rows.tokens, rows.on_host
        t, s = draw_step(self.seed, host, self.largest_grid)
        xt, new = noised_step(self.seed, host, t, s, self.schedule, self.denoiser.mask)
        xt, t, unmasked = sent([xt, t, new], x0.device)
        with torch.no_grad():
            self.denoiser.eval()
            index = selected_indices(new, x0.device)
            context = context_at(self.denoiser, xt, t, x0, index, self.separator)
            log_p_theta = self.denoiser.log_p_of(context, new, x0).sum(dim=-1)
        x = equations.carry_over(xt, x0, unmasked)[:, None]
        known = {"new": new} if self.trained.takes_positions else {}
        log_p = self.trained.log_p(x, xt, context, **known)[:, 0]
        loss = -log_p / unmasked.sum(dim=-1).clamp(min=1)
        return loss.mean(), {"t": t, "gain_nats": (log_p - log_p_theta).detach()}


def energy_objective(
    model: EnergyModel,
    negatives: int,
    loss: Literal["binary", "ranking"],
    seed: int,
    largest_grid: int = LARGEST_GRID,
    separator: int | None = None,
) -> ContrastiveObjective | ConditionalLikelihoodObjective:
    """Return the objective that trains the model's energy: maximum likelihood if it is normalised (Z = 1), else NCE.

    `negatives` and `loss` are settings of NCE.
    """
    if model.energy.normalised:
        return ConditionalLikelihoodObjective(model, seed, largest_grid, separator)
    return ContrastiveObjective(model, negatives, loss, seed, largest_grid, separator)


def draw_step(seed: int, rows: Rows, largest_grid: int) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Draw (t, s) of a random step of a random grid: T log-uniform in 1..`largest_grid`, then one of its T steps."""
    u = uniforms(seed, rows.step, rows.batch_index, Purpose.GRID, (2,))
    steps = (largest_grid ** u[:, 0]).round()
    i = (u[:, 1] * steps).floor() + 1
    return i / steps, (i - 1) / steps


def noised_step(
    seed: int, rows: Rows, t: Float[Tensor, " b"], s: Float[Tensor, " b"], schedule: AbstractSchedule, mask: int
) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Draw x_t ~ q(x_t | x_0) and the masked positions that a step to s unmasks; only learnt tokens are masked."""
    xt = noised(seed, rows, schedule.alpha(t), mask)
    u = uniforms(seed, rows.step, rows.batch_index, Purpose.UNMASK, (rows.tokens.shape[1],))
    return xt, equations.unmask(xt == mask, schedule.unmask_probability(t, s), u)


def context_at(
    denoiser: AbstractDenoiser,
    xt: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    x0: Int[Tensor, "b l"],
    index: tuple[Int[Tensor, " n"], ...],
    separator: int | None,
) -> Float[Tensor, "b l h"]:
    """Compute the denoiser's features at selected positions, 0 elsewhere: energies read no others, as in a sampler."""
    features = features_at(denoiser, xt, t, x0, index, separator)
    return features.new_zeros(*xt.shape, features.shape[-1]).index_put(index, features)


def frozen(module: M) -> M:
    """Return the module in evaluation mode, with no trainable parameters."""
    return module.eval().requires_grad_(False)
