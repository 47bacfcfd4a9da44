"""The bound of a step of rows with a constraint C, whose log p_theta(. | x_t, C) takes the place of log p_theta.

docs/mathematics.md 3.7.
"""

import math

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.constraints.constraint import RowConstraints
from edlm.cooperative_work import run_to_end
from edlm.interfaces import Model
from edlm.sampling.constrained import (
    against_denoiser,
    as_seen,
    constrained_posterior,
    has_constrained_choice,
    rows_at_once,
)


def constrained_step_nll(
    x0: Int[Tensor, "b l"],
    xt: Int[Tensor, "b l"],
    unmasked: Bool[Tensor, "b l"],
    t: Float64[Tensor, " b"],
    model: Model,
    constraints: RowConstraints,
    context: Tensor,
    log_p: Float64[Tensor, "b l"],
    temperature: float,
    u: Float64[Tensor, "b r k l"],
    u_class: Float64[Tensor, "b r k l"],
) -> Float64[Tensor, " b"]:
    """Compute an upper bound on -log p_k(x_0 at U | x_t, C), from given uniforms; exact for k = 1.

    Candidate 1 is x_0 at U; its other masked positions are drawn given x_0 at U and the constraint. `log_p`: log
    p_theta of x_0, 0 where x_t is not masked. Infinite for an x_0 that does not satisfy the constraint.
    """
    parts, rows = [], rows_at_once(x0.shape[1], model.denoiser, u.shape[1] * u.shape[2])
    for part in torch.arange(len(x0), device=x0.device).split(rows):
        rest = [values[part] for values in (x0, xt, unmasked, t, context, log_p, u, u_class)]
        parts.append(_of_rows(*rest, model=model, constraints=constraints[part], temperature=temperature))
    return torch.cat(parts)


def _of_rows(
    x0, xt, unmasked, t, context, log_p, u, u_class, model: Model, constraints: RowConstraints, temperature: float
) -> Float64[Tensor, " b"]:
    energy, (_, repeats, k, _) = model.energy, u.shape
    posterior = run_to_end(constrained_posterior(model.denoiser, context, xt, constraints, u.flatten(1, 2)))
    clamped = posterior.clamped(x0, unmasked, log_p)
    log_p_given = torch.where(clamped.log_z == -math.inf, -math.inf, clamped.log_z - posterior.log_z)
    if energy is None or k == 1:
        return -log_p_given
    x, by_position = (part.unflatten(1, (repeats, k)) for part in posterior.draw(u_class.flatten(1, 2)))
    others = clamped.draw(u_class.flatten(1, 2))
    for values, drawn, truth in zip((x, by_position), others, (x0, log_p), strict=True):
        values[:, :, 0] = torch.where(unmasked[:, None], truth[:, None], drawn.unflatten(1, (repeats, k))[:, :, 0])
    seen, by_group = as_seen(energy, x.flatten(1, 2), by_position.flatten(1, 2), xt, unmasked)
    energies = against_denoiser(energy)(seen, xt, t, by_group, context).double().sum(dim=2)
    log_v = equations.log_weight(energies, temperature).unflatten(1, (repeats, k)).transpose(0, 1)[..., None]
    nll = equations.resampled_nll(log_p_given[:, None], log_v)[:, 0]
    return torch.where(has_constrained_choice(unmasked), nll, -log_p_given)
