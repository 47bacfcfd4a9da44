"""Likelihood bounds of denoisers and samplers, and their standard errors (docs/mathematics.md 5).

Every estimate is in nats per sequence, with the standard error of its mean over sequences. Estimates with the same seed
share their noise, so their `difference` is paired.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, NormalisedEnergy, VerifiesDrafts, proposal_of
from edlm.likelihood.constrained_bound import constrained_step_nll
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.unmasking_paths import trajectory
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.readout import chunks
from edlm.rng import Purpose, seeds, uniforms
from edlm.sampling.candidates import propose, propose_from
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import AbstractSchedule


@torch.no_grad()
def autoregressive_nll(x0: Int[Tensor, "b l"], model: AbstractAutoregressiveModel) -> Estimate:
    """Compute -log p_AR(x_0), exact."""
    return Estimate(-model.log_p(x0).double().sum(dim=-1), draws=1)


@torch.no_grad()
def nelbo(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    schedule: AbstractSchedule,
    seed: int,
    draws: int,
    first_row: int = 0,
    known: Bool[Tensor, "b l"] | None = None,
) -> Estimate:
    """Estimate the continuous-time NELBO, integrated down to t = 0 (a floor in t would drop a part of the bound).

    Each sequence's times are stratified over its `draws`. `first_row`: the sequences are the rows from there on of a
    longer list and get the same values as in that list, also in the other estimates of this module. `known`: positions
    that are never masked, such as a prompt; the bound is one on -log p of the others given them.
    """
    total = torch.zeros(len(x0), dtype=torch.float64)
    for i in range(draws):
        t, xt = noise_sample(x0, denoiser, schedule, seed, i, draws, first_row)
        xt = xt if known is None else torch.where(known, x0, xt)
        nll = -log_p_of(denoiser, denoiser.read(xt, t), xt == denoiser.mask, x0)
        total += equations.nelbo_integrand(nll, schedule.weight(t)).cpu()
    return Estimate(total / draws, draws)


def sampler_bound(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    energy: AnyEnergy | None,
    schedule: AbstractSchedule,
    sampler: Sampler,
    seed: int,
    draws: int,
    repeats: int = 1,
    known: Bool[Tensor, "b l"] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
) -> Estimate:
    """Estimate the rigorous T-step bound on -log p(x_0) of the given sampler (docs/mathematics.md 5.1).

    All T steps of `draws` paths per text are evaluated (`edlm.likelihood.unmasking_paths`); `repeats` independent sets
    of other candidates tighten the bound for whole-sequence energies. With candidates = 0 (exact sampling) the energy
    must be normalised, and the bound is that of p_theta exp(-E) itself. The sampler's temperature and its selection of
    positions are part of its distribution. `known`: positions that the canvas holds from the start, such as a prompt;
    the bound is one on -log p of the others given them. (The difference of two bounds is not a bound.)
    `constraints`: of the sampler, one per text; infinite for a text that does not satisfy its own.
    """
    model, of_rows = Model(denoiser, energy, schedule), None if constraints is None else RowConstraints(constraints)
    return run_to_end(stepwise_sampler_bound(x0, model, sampler, seed, draws, repeats, 0, known, of_rows))


@torch.no_grad()
def stepwise_sampler_bound(
    x0: Int[Tensor, "b l"],
    model: Model,
    sampler: Sampler,
    seed: int,
    draws: int,
    repeats: int = 1,
    first_row: int = 0,
    known: Bool[Tensor, "b l"] | None = None,
    constraints: RowConstraints | None = None,
) -> Cooperative[Estimate]:
    """Compute `sampler_bound` as cooperative work, one step of all sequences per pause."""
    if constraints is not None and constraints.constrained.any():
        sampler.require_candidates()
        given = torch.zeros_like(x0, dtype=torch.bool) if known is None else known
        constraints.require_possible(torch.where(given, x0, model.denoiser.mask), model.denoiser.mask)
    total = torch.zeros(len(x0), dtype=torch.float64)
    for draw in range(draws):
        for i, xt, unmasked in trajectory(x0, model, sampler, seed, draw, first_row, known):
            t = sampler.times()[i].item()
            nats = step_bound(x0, xt, unmasked, t, i, model, sampler, seed, draw, repeats, first_row, constraints)
            total += nats.cpu()
            yield
    return Estimate(total / draws, draws)


def step_nll(
    x0: Int[Tensor, "b l"],
    xt: Int[Tensor, "b l"],
    unmasked: Bool[Tensor, "b l"],
    t: Float64[Tensor, " b"],
    model: Model,
    candidates: int,
    temperature: float,
    u: Float64[Tensor, "b r k l"],
) -> Float64[Tensor, " b"]:
    """Compute an upper bound on -log p_k(x_0 at U | x_t) of a step that resamples k candidates, from given uniforms.

    Candidate 1 is x_0 at U; its other masked positions (whole sequences) and the other candidates are drawn with `u`
    from p_theta, or from the energy's proposal. Groups with one new token are not resampled and cost -log p_theta.
    With candidates = 0 the bound is that of p_theta exp(-E) itself.
    """
    denoiser, energy = model.denoiser, model.energy
    assert energy is not None
    context, block = denoiser.read(xt, t), energy.block
    if candidates == EXACT:
        return _exact_nll(x0, xt, unmasked, t, context, denoiser, energy, u)
    if (proposal := proposal_of(energy)) is not None:
        return _residual_nll(x0, xt, unmasked, t, context, energy, proposal, temperature, u)
    log_p = equations.sum_by_group(log_p_of(denoiser, context, unmasked, x0), block)
    filled = xt == denoiser.mask if energy.whole_sequence else unmasked
    repeats, k = u.shape[1:3]
    x, by_position = propose(denoiser, context, xt, filled, u.flatten(1, 2))
    truth = log_p_of(denoiser, context, filled, x0)
    x, by_position = x.unflatten(1, (repeats, k)), by_position.unflatten(1, (repeats, k))
    x[:, :, 0] = torch.where(unmasked[:, None], x0[:, None], x[:, :, 0])
    by_position[:, :, 0] = torch.where(unmasked[:, None], truth[:, None].to(by_position), by_position[:, :, 0])
    drawn = equations.sum_by_group(by_position.flatten(1, 2), block)
    return _resampled_nll(x, xt, unmasked, t, context, energy, drawn, log_p, temperature)


def _exact_nll(
    x0, xt, unmasked, t, context, denoiser: AnyDenoiser, energy: AnyEnergy, u: Float64[Tensor, "b r k l"]
) -> Float64[Tensor, " b"]:
    """Compute -log of p_theta exp(-E) of the unmasked tokens, exactly if E is a function of these tokens alone.

    For whole sequences the probability is a sum over the discarded tokens. They are drawn from the distribution itself,
    in reading order, with the true tokens in place; the mean over the repeats of the resulting probability of the true
    tokens is unbiased, and minus its logarithm is a bound.
    """
    if not isinstance(energy, NormalisedEnergy):
        raise ValueError(f"the exact bound needs a normalised energy; {type(energy).__name__} is not")
    if not energy.whole_sequence:
        return normalised_nll(x0, xt, unmasked, t, context, log_p_of(denoiser, context, unmasked, x0), energy)
    truth = equations.carry_over(xt, x0, unmasked)
    if not isinstance(energy, VerifiesDrafts):
        raise ValueError(f"{type(energy).__name__} scores whole sequences and cannot give log p of a part of one")
    repeats = u.shape[1]
    truth, xt, unmasked, context = (v.repeat_interleave(repeats, 0) for v in (truth, xt, unmasked, context))
    where = equations.up_to_last(truth == denoiser.mask, unmasked)
    x, _ = run_to_end(energy.draw(truth, where, context, u[:, :, 0].flatten(0, 1)))
    log_p = energy.log_p_of(energy.read(x, xt, context), unmasked, x).double().sum(dim=1).unflatten(0, (-1, repeats))
    return math.log(repeats) - log_p.logsumexp(dim=1)


def normalised_nll(
    x0: Int[Tensor, "b l"],
    xt: Int[Tensor, "b l"],
    unmasked: Bool[Tensor, "b l"],
    t: Float64[Tensor, " b"],
    context: Tensor,
    log_p: Float64[Tensor, "b l"],
    energy: NormalisedEnergy,
) -> Float64[Tensor, " b"]:
    """Compute E - log p_theta of x_0 at U, which is -log of p_theta exp(-E), for a normalised energy of steps.

    `log_p`: that of the denoiser, by position, 0 outside U.
    """
    truth, by_group = equations.carry_over(xt, x0, unmasked), equations.sum_by_group(log_p, energy.block)
    return (energy(truth[:, None], xt, t, by_group[:, None], context)[:, 0] - by_group).double().sum(dim=-1)


def _residual_nll(x0, xt, unmasked, t, context, energy, proposal, temperature, u) -> Float64[Tensor, " b"]:
    """Compute `step_nll` for candidates from a proposal, whose -log p replaces -log p_theta."""
    repeats, k = u.shape[1:3]
    truth = equations.carry_over(xt, x0, unmasked)
    x, drawn = propose_from(proposal, context, xt, unmasked, u.flatten(1, 2))
    log_p = proposal.log_p(truth[:, None], xt, context).double()
    x, drawn = x.unflatten(1, (repeats, k)), drawn.unflatten(1, (repeats, k))
    x[:, :, 0], drawn[:, :, 0] = truth[:, None], log_p.to(drawn)[:, None]
    return _resampled_nll(x, xt, unmasked, t, context, energy, drawn.flatten(1, 2), log_p, temperature)


def _resampled_nll(
    x: Int[Tensor, "b r k l"], xt, unmasked, t, context, energy: AnyEnergy, drawn, log_p, temperature: float
) -> Float64[Tensor, " b"]:
    """Compute the bound from the candidates of every repeat, the true one first, and their log-probability `drawn`."""
    energies = energy(x.flatten(1, 2), xt, t, drawn, context).unflatten(1, x.shape[1:3])
    log_v = equations.log_weight(energies.double(), temperature).transpose(0, 1)
    joint = equations.sum_by_group(unmasked.long(), energy.block) > 1
    return torch.where(joint, equations.resampled_nll(log_p, log_v), -log_p).sum(dim=-1)


def step_bound(
    x0: Int[Tensor, "b l"],
    xt: Int[Tensor, "b l"],
    unmasked: Bool[Tensor, "b l"],
    t: float,
    index: int,
    model: Model,
    sampler: Sampler,
    seed: int,
    draw: int,
    repeats: int = 1,
    first_row: int = 0,
    constraints: RowConstraints | None = None,
) -> Float64[Tensor, " b"]:
    """Compute the nats of one step at time t per sequence; sequences that unmask nothing cost nothing.

    `index` and `draw` identify the step and the trajectory in the random streams of the other candidates.
    """
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    moves = unmasked.any(dim=1)
    bound = moves & False if constraints is None else moves & constraints.constrained.to(x0.device)
    time = torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
    scores = bool(sampler.may_score(time[:1], model.energy).any())
    k = max(sampler.candidates, 1) if scores else 1
    for constrained, chosen in ((False, moves & ~bound), (True, bound)):
        rows = torch.nonzero(chosen)[:, 0]
        if len(rows) == 0:
            continue
        selected = x0[rows], xt[rows], unmasked[rows], time[rows]
        keys = seeds(seed, index, first_row + rows, Purpose.REPEAT)
        u, u_class = (
            uniforms(keys, draw, 0, purpose, (repeats, k, x0.shape[1]))
            for purpose in (Purpose.CANDIDATE, Purpose.TOKEN_CLASS)
        )
        if constrained:
            assert constraints is not None
            context = model.denoiser.read(selected[1], selected[3])
            log_p = log_p_of(model.denoiser, context, selected[1] == model.denoiser.mask, selected[0])
            total[rows] = constrained_step_nll(
                *selected, model, constraints[rows], context, log_p, sampler.energy_temperature, u, u_class
            )
        elif scores:
            total[rows] = step_nll(*selected, model, sampler.candidates, sampler.energy_temperature, u)
        else:
            context = model.denoiser.read(selected[1], selected[3])
            total[rows] = -log_p_of(model.denoiser, context, selected[2], selected[0]).sum(dim=-1)
    return total


def noise_sample(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    schedule: AbstractSchedule,
    seed: int,
    i: int,
    draws: int,
    first_row: int = 0,
) -> tuple[Float64[Tensor, " b"], Int[Tensor, "b l"]]:
    """Draw (t, x_t), the i-th of `draws` noise samples of every sequence; their times are stratified."""
    rows = first_row + torch.arange(len(x0), device=x0.device)
    t = (uniforms(seed, 0, rows, Purpose.TIME) + i / draws) % 1.0
    u = uniforms(seed, i, rows, Purpose.MASK, (x0.shape[1],))
    return t, equations.noise(x0, schedule.alpha(t), u, denoiser.mask)


def log_p_of(denoiser: AnyDenoiser, context: Tensor, where: Bool[Tensor, "b l"], x0: Tensor) -> Float64[Tensor, "b l"]:
    """Return log p_theta of x_0 at the selected positions, 0 elsewhere."""
    result = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
    for chunk in chunks(where, denoiser.vocabulary):
        result[chunk] = denoiser.log_p(context, chunk).gather(-1, x0[chunk][:, None])[:, 0].double()
    return result
