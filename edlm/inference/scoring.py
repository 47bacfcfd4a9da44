"""Scoring of a given text: likelihood bounds and energies over noise samples, computed a few at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from edlm import equations
from edlm.checkpoints.networks import OpenDenoiser
from edlm.cooperative_work import Cooperative
from edlm.interfaces import AbstractEnergy, Model
from edlm.likelihood.bounds import nelbo, stepwise_sampler_bound
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import FIXED_ORDER, stepwise_exact_order
from edlm.rng import Purpose, uniforms
from edlm.sampling.sampler import Sampler

ROWS_AT_ONCE = 16  # noise samples between two pauses without candidates to score; fewer with them


@dataclass(frozen=True)
class TextScore:
    """Likelihood of a text given its prompt in nats, each estimate with the standard error over its noise samples."""

    nelbo: Estimate
    """NELBO of plain diffusion, in continuous time."""
    bound: Estimate
    """Bound of the generating sampler itself, in T steps."""
    energies: Mapping[str, Estimate]
    """E(x_0, x_t, t) of every energy, averaged over the noise: low is likely, the zero is arbitrary."""
    exact_order: float | None = None
    """-log p, exact, of ANOTHER DISTRIBUTION: the sampler that unmasks the most certain first in fixed counts."""


def score_text(
    x0: Int64[Tensor, "b l"],
    denoiser: OpenDenoiser,
    energies: Mapping[str, AbstractEnergy],
    energy: AbstractEnergy | None,
    sampler: Sampler,
    seed: int,
    known: Bool[Tensor, " l"] | None = None,
    exact_order: bool = False,
) -> Cooperative[TextScore]:
    """Compute the score of a text.

    `energy` is the one that the sampler chooses with, `energies` are those whose value is reported. `x0` repeats the
    text once per noise sample, so that the standard errors are those of the noise. `known`: positions of the prompt,
    given which the others are scored. Raise FloatingPointError if a network's values are not finite, and
    ConfigurationError if `exact_order` is asked of a sampler that has no exact likelihood.
    """
    model = Model(denoiser.network, energy, denoiser.schedule)
    exact = None
    if exact_order:
        fixed = replace(sampler, unmasking=FIXED_ORDER)
        one = yield from stepwise_exact_order(x0[:1], model, fixed, None if known is None else known[None])
        exact = joined([one.nll]).mean
    at_once = ROWS_AT_ONCE if energy is None else max(1, ROWS_AT_ONCE // (1 + sampler.candidates))
    nelbos, bounds = [], []
    energy_parts = {name: [] for name in energies}
    for first in range(0, len(x0), at_once):
        rows = x0[first : first + at_once]
        given = None if known is None else known.expand(rows.shape)
        nelbos.append(nelbo(rows, model.denoiser, model.schedule, seed, 1, first, given))
        yield
        bound = stepwise_sampler_bound(rows, model, sampler, seed, draws=1, first_row=first, known=given)
        bounds.append((yield from bound))
        for name, scored_energy in energies.items():
            energy_parts[name].append(mean_energy(rows, denoiser, scored_energy, seed, first, given))
            yield
    means = {name: joined(parts) for name, parts in energy_parts.items()}
    return TextScore(joined(nelbos), joined(bounds), means, exact)


@torch.no_grad()
def mean_energy(
    x0: Int64[Tensor, "b l"],
    denoiser: OpenDenoiser,
    energy: AbstractEnergy,
    seed: int,
    first_row: int,
    known: Bool[Tensor, "b l"] | None = None,
) -> Estimate:
    """Return E(x_0, x_t, t) per row, with every masked position as new, t uniform and independent noise per row.

    `known`: positions that are never masked.
    """
    network, rows = denoiser.network, first_row + torch.arange(len(x0), device=x0.device)
    t = uniforms(seed, 0, rows, Purpose.TIME)
    u = uniforms(seed, 0, rows, Purpose.MASK, (x0.shape[1],))
    xt = equations.noise(x0, denoiser.schedule.alpha(t), u, network.mask)
    xt = xt if known is None else torch.where(known, x0, xt)
    context = network.read(xt, t)
    log_p = equations.sum_by_group(network.log_p_of(context, xt == network.mask, x0), energy.block)
    values = energy(x0[:, None], xt, t, log_p[:, None], context).double().sum(dim=(1, 2))
    return Estimate(values.cpu(), draws=1)


def joined(parts: list[Estimate]) -> Estimate:
    """Concatenate estimates. Raise FloatingPointError for a non-finite value: the network or its input is broken."""
    values = torch.cat([part.values for part in parts])
    if not values.isfinite().all():
        raise FloatingPointError("how likely this text is, is not a finite number")
    return Estimate(values, draws=1)
