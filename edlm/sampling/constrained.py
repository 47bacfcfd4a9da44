"""Steps of rows with a constraint C: candidates are drawn from p_theta(. | x_t, C), so that every text satisfies it.

A step draws whole sequences and unmasks U of one, so that what is unmasked can always be completed (docs/mathematics.md
3.7). The weights exp(-E) are those of rows without a constraint; but what is unmasked must come from one sequence, so
the energy's groups are summed and one candidate is picked for all of them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.constraints.class_masses import ClassMasses, class_masses
from edlm.constraints.constraint import RowConstraints
from edlm.constraints.forward_backward import AutomataOfRows
from edlm.cooperative_work import Cooperative
from edlm.device_copies import fetched, sent
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, proposal_of
from edlm.rng import Purpose
from edlm.sampling.candidates import propose, score_candidates
from edlm.sampling.state import StepResult, StepState

ENTRIES = 2**24  # most entries (rows x positions x vocabulary) in memory at once: 200 MB


@dataclass(frozen=True)
class ConstrainedPosterior:
    """p_theta(x | x_t, C) of rows that all have a constraint, and k draws from it with given uniforms.

    Positions that the automaton does not read follow p_theta(. | x_t). `constrained_posterior` computes it.
    """

    log_z: Float64[Tensor, " b"]
    """log Z = log P_theta(C | x_t)."""
    constraints: RowConstraints
    reads: Bool[Tensor, "b l"]
    """Positions that the automata read."""
    classes: ClassMasses
    automata: AutomataOfRows
    mass: Float64[np.ndarray, "b l c"]
    beta: Float64[np.ndarray, "i s"]
    free: tuple[Int[Tensor, "b k l"], Float[Tensor, "b k l"]]
    """Tokens at the positions that no automaton reads, and their log-probabilities."""

    def draw(self, u: Float64[Tensor, "b k l"]) -> tuple[Int[Tensor, "b k l"], Float64[Tensor, "b k l"]]:
        """Draw k candidates per row, with log p_theta(. | x_t) of each token, not given C.

        `u` selects the classes, on the host, where it best is.
        """
        x, log_p = self.classes.at(self.automata.draw(self.mass, self.beta, fetched([u])[0].numpy()))
        reads = self.reads[:, None]
        return torch.where(reads, x, self.free[0]), torch.where(reads, log_p, self.free[1].double())

    def clamped(
        self, x0: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], log_p: Float64[Tensor, "b l"]
    ) -> "ConstrainedPosterior":
        """Return the posterior with the tokens of x_0 fixed `where` selected, their log p_theta as part of its log Z.

        So log p_theta(x_0 at U | x_t, C) is the difference of the two log Z. Draws do not show the fixed tokens.
        """
        device = x0.device
        mass = torch.from_numpy(self.mass).to(device, copy=True)
        rows, at = torch.nonzero(where & self.reads, as_tuple=True)
        mass[rows, at] = -torch.inf
        for row, constraint in enumerate(self.constraints):
            mine = rows == row
            token_class = constraint.automaton.classes.to(device)[x0[row, at[mine]]].long()
            mass[row, at[mine], token_class] = torch.where(token_class > 0, log_p[row, at[mine]], -torch.inf)
        free = torch.where(where & ~self.reads, log_p, 0.0).sum(dim=1)
        fixed = mass.cpu().numpy()
        beta = self.automata.backward(fixed)
        log_z = torch.from_numpy(self.automata.log_z(beta)).to(device) + free
        return replace(self, log_z=log_z, mass=fixed, beta=beta)


def constrained_posterior(
    denoiser: AnyDenoiser,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    constraints: RowConstraints,
    u: Float64[Tensor, "b k l"],
    tokens: Int[Tensor, "b l"] | None = None,
) -> Cooperative[ConstrainedPosterior]:
    """Return the posterior, with `u` for the tokens within classes and where no automaton reads, as cooperative work.

    It pauses in proportion to the automata. `tokens` are x_t on the host; None: they are fetched.
    """
    length = xt.shape[1]
    (tokens,) = fetched([xt]) if tokens is None else (tokens,)
    reads = constraints.read(length)
    classes = class_masses(denoiser, context, xt, constraints, u, tokens)
    automata = AutomataOfRows(list(constraints), length)
    beta = yield from automata.backward_in_parts(classes.mass)
    free = propose(denoiser, context, xt, (tokens == denoiser.mask) & ~reads, u)
    log_z, reads = sent([torch.from_numpy(automata.log_z(beta)), reads], xt.device)
    return ConstrainedPosterior(log_z, constraints, reads, classes, automata, classes.mass, beta, free)


def rows_at_once(length: int, denoiser: AnyDenoiser, candidates: int) -> int:
    """Return how many rows of this length are computed at once, for the memory that their distributions take."""
    return max(1, ENTRIES // (length * max(denoiser.vocabulary, candidates)))


def has_constrained_choice(unmasked: Bool[Tensor, "b l"]) -> Bool[Tensor, " b"]:
    """Return whether an energy weighs the candidates: a single token follows p_theta(. | x_t, C)."""
    return unmasked.sum(dim=1) > 1


def constrained_step(
    state: StepState, context: Tensor, model: Model, k: int, tau: float, tokens_at_once: int | None = None
) -> Cooperative[StepResult]:
    """Draw k candidates x ~ p_theta(. | x_t, C), weigh each by exp(-E / tau), and unmask the tokens of one at U.

    With k = 1 nothing is weighed. Rows for which p_theta gives the constraint no probability, or that is NaN, are
    marked as broken. Pauses between calls of the energy, as `resample_step` does, and before them in proportion to the
    automata.
    """
    xt, block, length, host = state.xt, model.block, state.length, state.on_host
    assert state.constraints is not None
    posterior = yield from constrained_posterior(
        model.denoiser, context, xt, state.constraints, state.uniforms(Purpose.CANDIDATE, k, length), host.xt
    )
    x, by_position = posterior.draw(host.uniforms(Purpose.TOKEN_CLASS, k, length))
    broken = ~posterior.log_z.isfinite() | by_position.flatten(1).isnan().any(dim=1)
    if k == 1:
        return state.advanced(x[:, 0], block, broken=broken)
    energy = model.energy
    assert energy is not None
    seen, log_p = as_seen(energy, x, by_position, xt, state.unmasked)
    new = host.xt == model.denoiser.mask if energy.whole_sequence else host.unmasked
    e, distinct = yield from score_candidates(
        against_denoiser(energy), seen, xt, state.t, log_p, context, tokens_at_once, new
    )
    broken = broken | e.flatten(1).isnan().any(dim=1) | (e == -torch.inf).flatten(1).any(dim=1)
    e = torch.where(broken[:, None, None], 0.0, e)
    log_w = equations.log_weight(e.double().sum(dim=2, keepdim=True), tau)
    picked = equations.pick(log_w, state.uniforms(Purpose.PICK, 1), has_no_nan=True)
    chosen = x.gather(1, picked[:, :, None].expand(-1, -1, length))[:, 0]
    return replace(
        state.advanced(chosen, block, energy_calls=k, broken=broken),
        energies=e,
        picked=picked.expand(-1, e.shape[2]),
        ess=equations.effective_sample_size(log_w, has_no_nan=True)[:, 0],
        distinct=distinct,
        candidates=x,
    )


def as_seen(
    energy: AnyEnergy,
    x: Int[Tensor, "b k l"],
    by_position: Float64[Tensor, "b k l"],
    xt: Int[Tensor, "b l"],
    unmasked: Bool[Tensor, "b l"],
) -> tuple[Int[Tensor, "b k l"], Tensor]:
    """Return candidates as the energy sees them, whole or at U with masks elsewhere, and log p_theta by group."""
    if not energy.whole_sequence:
        x = torch.where(unmasked[:, None], x, xt[:, None])
        by_position = torch.where(unmasked[:, None], by_position, 0.0)
    return x, equations.sum_by_group(by_position, energy.block)


def against_denoiser(energy: AnyEnergy) -> AnyEnergy:
    """Return the energy as a residual against p_theta, also if it is one against a proposal."""
    return energy if proposal_of(energy) is None else _OnProposal(energy)


class _OnProposal:
    """E of p proportional to p_c exp(-E_phi), where p_c = p_theta exp(-E_c): the sum of the two energies."""

    whole_sequence: bool = False
    block: int | None = None

    def __init__(self, energy: AnyEnergy) -> None:
        self.energy = energy

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor:
        proposal = proposal_of(self.energy)
        assert proposal is not None
        log_c = proposal.log_p(x, xt, context)[..., None]
        return (log_p - log_c) + self.energy(x, xt, t, log_c, context)
