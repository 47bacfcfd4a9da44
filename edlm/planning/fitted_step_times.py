"""Fitted step times: the times of T steps that minimise a sampler's bound, from the measured cost of every step.

The T-step bound is a sum over steps (docs/mathematics.md 5.1), and a step's term depends on its start and end alone. So
the best grid among given times is a shortest path, which is found exactly. The distribution is that of the sampler on
that grid. Only the grid is fitted, so fit it on other sequences than those that the bound is reported for.
"""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.interfaces import Model
from edlm.likelihood.bounds import step_bound
from edlm.likelihood.unmasking_paths import unmask_steps
from edlm.sampling.sampler import Sampler


@torch.no_grad()
def step_costs(
    x0: Int[Tensor, "b l"],
    model: Model,
    sampler: Sampler,
    points: int,
    seed: int,
    draws: int,
) -> Float64[Tensor, "i j"]:
    """Return [i, j]: nats per sequence of the step from t = i / points to j / points for j < i, infinite elsewhere.

    All steps are measured on the same trajectories, so that their differences are paired. `sampler` defines k, window
    and temperature.
    """
    times = torch.arange(points + 1, dtype=torch.float64) / points
    costs = torch.zeros(points + 1, points + 1, dtype=torch.float64)
    for draw in range(draws):
        unmask_at = unmask_steps(x0, model.schedule, times, seed, draw)
        for i in range(1, points + 1):
            xt = torch.where(unmask_at <= i, model.denoiser.mask, x0)
            for j in range(i):
                unmasked = (unmask_at <= i) & (unmask_at > j)
                nats = step_bound(x0, xt, unmasked, times[i].item(), i, model, sampler, seed, draw)
                costs[i, j] += nats.mean().cpu()
    earlier = torch.ones_like(costs, dtype=torch.bool).tril(diagonal=-1)
    return torch.where(earlier, costs / draws, torch.inf)


def best_grid(costs: Float64[Tensor, "i j"], steps: int) -> tuple[tuple[float, ...], float]:
    """Return (times from 0 to 1, nats) of the cheapest path from 1 to 0 in exactly `steps` steps over measured times.

    Raise ValueError if there are fewer times than steps.
    """
    points = len(costs) - 1
    if not 1 <= steps <= points:
        raise ValueError(f"steps is 1 to {points}, the number of measured times; got {steps}")
    nats = torch.full((points + 1,), torch.inf, dtype=torch.float64)
    nats[0] = 0.0
    came_from = []
    for _ in range(steps):
        nats, next_point = (costs + nats).min(dim=1)  # [i, j]: the step from i to j, then the cheapest path from j
        came_from.append(next_point)
    point, grid = points, [points]
    for next_point in reversed(came_from):
        point = int(next_point[point])
        grid.append(point)
    return tuple(i / points for i in reversed(grid)), nats[points].item()
