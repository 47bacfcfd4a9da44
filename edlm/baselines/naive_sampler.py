"""Direct implementation of the published sampler, with its errors corrected: the timing baseline of the fast sampler.

Every step calls the network, projects every position to the vocabulary, and runs a race over the whole vocabulary for
each of the k candidates, of which a part is kept; energies see all k candidates at once, as a batch repeated k times
(Xu et al. 2024, algorithm 1, and its released code). Its distribution is that of `edlm.sampling.sampler.Sampler` up to
the resolution of float32. Corrected are the sign of the energy, the order of the batch, the final time (0, where every
token is drawn), and that a single new token is not resampled. Where the description leaves the work open, the cheaper
option is taken: a resampling step selects positions with one uniform per position, not by another race over the
vocabulary.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.unmasking import AtRandom
from edlm.schedule import AbstractSchedule


@dataclass(frozen=True)
class NaiveSampler:
    """Naive sampler with the settings of the fast one; whole-sequence energies, k >= 1 and random unmasking only."""

    sampler: Sampler

    def __post_init__(self) -> None:
        if self.sampler.candidates == EXACT:
            raise ValueError("candidates is 0 (exact); the naive sampler has k >= 1 candidates")
        if self.sampler.unmasking != AtRandom():
            raise ValueError(f"unmasking is {self.sampler.unmasking.kind}; the naive sampler unmasks at_random")

    @torch.no_grad()
    def sample(
        self,
        xt: Int[Tensor, "b l"],
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        schedule: AbstractSchedule,
        generator: torch.Generator,
    ) -> Int[Tensor, "b l"]:
        """Return the canvas with every masked position filled. Raise ValueError for a step energy."""
        model = Model(denoiser, energy, schedule)
        for i in range(self.sampler.steps, 0, -1):
            xt = self.step(xt, i, model, generator)
        return xt

    @torch.no_grad()
    def step(
        self,
        xt: Int[Tensor, "b l"],
        i: int,
        model: Model,
        generator: torch.Generator,
    ) -> Int[Tensor, "b l"]:
        """Compute x_s from x_t, from the i-th time of the grid to the previous one.

        Raise ValueError for a step energy, which would be given the tokens of positions that the step does not unmask,
        and FloatingPointError if logits are NaN, which a race would take for winners.
        """
        denoiser, energy = model.denoiser, model.energy
        if energy is not None and not energy.whole_sequence:
            raise ValueError(
                f"{type(energy).__name__} scores the tokens of a step, and the naive sampler whole sequences alone; "
                "use Sampler"
            )
        b, length = xt.shape
        times = self.sampler.times().to(xt.device)
        t = times[i].expand(b)
        share = model.schedule.unmask_probability(t, times[i - 1].expand(b))[:, None]
        everywhere = torch.ones_like(xt, dtype=torch.bool)
        context = denoiser.read(xt, t)
        log_p = denoiser.log_p(context, everywhere).unflatten(0, (b, length))
        masked = xt == denoiser.mask
        if (log_p.sum(dim=-1).isnan() & masked).any():
            raise FloatingPointError("logits are not numbers; the network or its input is broken")
        if energy is None or self.sampler.candidates == 1 or not bool(self.sampler.in_window(t)[0]):
            # One race over the vocabulary and the mask selects both the positions and their tokens.
            shared = share[..., None].float()
            q = torch.cat([log_p.exp() * shared, (1 - shared).expand(b, length, 1)], dim=-1)
            return torch.where(masked, race(q, generator), xt)
        k = self.sampler.candidates
        x = race(log_p.exp()[:, None].expand(-1, k, -1, -1), generator)
        x = torch.where(masked[:, None], x, xt[:, None])
        index = x.clamp(max=denoiser.vocabulary - 1)[..., None]
        drawn = log_p[:, None].expand(-1, k, -1, -1).gather(-1, index)[..., 0] * masked[:, None]
        # Each candidate is a separate sequence, as in a batch repeated k times.
        xts, ts, contexts = (values.repeat_interleave(k, 0) for values in (xt, t, context))
        log_ps = drawn.sum(dim=-1).flatten()[:, None, None]
        energies = energy(x.flatten(0, 1)[:, None], xts, ts, log_ps, contexts).unflatten(0, (b, k))[:, :, 0]
        log_v = equations.log_weight(energies, self.sampler.energy_temperature)[..., 0]
        picked = torch.multinomial(log_v.softmax(dim=1), 1, generator=generator)[:, 0]
        unmasked = masked & (torch.rand(b, length, generator=generator, device=xt.device) < share)
        picked = torch.where(unmasked.sum(dim=1) > 1, picked, 0)
        return torch.where(unmasked, x[torch.arange(b, device=x.device), picked], xt)


def race(p: Float[Tensor, "*n v"], generator: torch.Generator) -> Int[Tensor, "*n"]:
    """Return argmax p_v / e_v with exponential e_v: v wins with probability p_v / sum p, up to float32 resolution."""
    noise = torch.empty(p.shape, dtype=p.dtype, device=p.device).exponential_(generator=generator)
    return (p / noise).argmax(dim=-1)
