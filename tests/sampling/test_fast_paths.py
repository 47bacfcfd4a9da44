"""With every saving of the sampler, the texts follow the distribution of the naive one: chi-square over all texts.

The reference enumerates every draw of the naive sampler (`tests.enumeration`, checked in `test_naive`). Each case is
drawn in one batch of different canvases. Limits of memory (tokens at once, rows of the vocabulary at once) and mixed
batches (rows at different times) must not change a single token, so these cases are compared text by text.
"""

import itertools

import pytest
import torch

from edlm.energies.whole_sequence import CarryOverEnergy
from edlm.interfaces import Model
from edlm.models import readout
from edlm.sampling import candidates
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import LogLinear
from tests.counting import chi_square
from tests.enumeration import sampler_distribution, sampler_distributions
from tests.worlds import Conditional, EnumeratedAutoregressive, Marginals, Residual, world

WORLD = world("dense", vocabulary=2, length=3, seed=11)
READER = Marginals(WORLD, mix=0.1, drift=0.3)  # the time at which a row is read shows
SCHEDULE = LogLinear()
M = WORLD.mask
CANVASES = torch.tensor([[M, M, M], [M, 1, M], [0, M, M]])
EACH = 2500
FAR = 4.6  # 2e-6 a comparison: of the 300 here one in two thousand seeds would fail
coar = CarryOverEnergy(EnumeratedAutoregressive(WORLD), M)  # pyright: ignore[reportArgumentType]

ENERGIES = {
    "whole drafts": Residual(WORLD, whole_sequence=True),
    "a step": Residual(WORLD, whole_sequence=False),
    "a step in blocks": Residual(WORLD, whole_sequence=False, block=2),
    "coar": coar,
    "conditional": Conditional(WORLD),
}
HOW = {  # energy, k, speculative
    "plain diffusion": (None, 1, False),
    **{f"{name}, k = {k}": (name, k, False) for name, k in itertools.product(ENERGIES, (1, 2, 8))},
    **{
        f"{name}, exact{', by verifying drafts' if verifying else ''}": (name, EXACT, verifying)
        for name, verifying in itertools.product(("coar", "conditional"), (False, True))
    },
}
WINDOWS = {"every step": (0.0, 1.0), "a window": (0.3, 0.8)}
STEPS = (2, 5)  # with 5 steps and 3 positions some unmask nothing


def sampler_of(how: str, window: str, steps: int) -> tuple[Residual | CarryOverEnergy | None, Sampler]:
    name, k, speculative = HOW[how]
    sampler = Sampler(steps=steps, candidates=k, window=WINDOWS[window], speculative=speculative)
    return (None if name is None else ENERGIES[name]), sampler


def batch(each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvases in turn, and the seed of every row."""
    return CANVASES.repeat(each, 1), torch.arange(each * len(CANVASES))


every_case = pytest.mark.parametrize(("how", "window", "steps"), list(itertools.product(HOW, WINDOWS, STEPS)), ids=str)


@every_case
def test_every_row_of_a_mixed_batch_follows_the_distribution_of_the_naive_sampler(how, window, steps):
    energy, sampler = sampler_of(how, window, steps)
    xt, seeds = batch(EACH)
    reported = []
    texts = sampler.sample(xt, READER, energy, SCHEDULE, seeds, on_step=reported.append)
    codes = (texts * torch.tensor([4, 2, 1])).sum(dim=1)
    distributions = sampler_distributions(WORLD, READER, energy, sampler, SCHEDULE, CANVASES)
    for kind, (canvas, distribution) in enumerate(zip(CANVASES, distributions, strict=True)):
        counts = torch.bincount(codes[kind :: len(CANVASES)], minlength=8)
        assert chi_square(counts, distribution) < FAR, canvas
    calls = torch.stack([step.denoiser_calls for step in reported]).sum(dim=0)
    assert calls.max() <= (CANVASES == M).sum(dim=1).max()  # a step that unmasks nothing reads nothing


@every_case
def test_what_bounds_memory_and_what_mixes_the_batch_change_no_token(how, window, steps, monkeypatch):
    energy, sampler = sampler_of(how, window, steps)
    xt, seeds = batch(5)
    expected = sampler.sample(xt, READER, energy, SCHEDULE, seeds)
    for tokens, rows in itertools.product((False, True), (False, True)):
        with monkeypatch.context() as patch:
            if tokens:
                patch.setattr(candidates, "TOKENS_AT_ONCE", 1)
            if rows:  # of the vocabulary
                patch.setattr(readout, "CHUNK", 1)
                patch.setattr(readout, "ROWS_MULTIPLE", 1)
            assert torch.equal(sampler.sample(xt, READER, energy, SCHEDULE, seeds), expected), (tokens, rows)
            staggered = torch.stack([text for _, text in sorted(drawn_in_turn(sampler, energy, xt, seeds).items())])
            assert torch.equal(staggered, expected), (tokens, rows)


def drawn_in_turn(sampler: Sampler, energy, xt: torch.Tensor, seeds: torch.Tensor) -> dict[int, torch.Tensor]:
    """Each row's text, where a row joins the batch at every step and leaves it when it is done."""
    done, at = {}, {}
    times = sampler.times()
    texts = xt.clone()
    for turn in range(len(xt) + sampler.steps):
        if turn < len(xt):
            at[turn] = sampler.steps
        rows = torch.tensor(list(at))
        i = torch.tensor(list(at.values()))
        result = sampler.step(texts[rows], times[i], times[i - 1], i, seeds[rows], Model(READER, energy, SCHEDULE))
        texts[rows] = result.xs
        at = {row: step - 1 for row, step in at.items() if step > 1}
        done |= {row: texts[row] for row in rows.tolist() if row not in at}
        if not at and turn >= len(xt) - 1:
            break
    return done


@pytest.mark.parametrize("how", [name for name, (energy, k, _) in HOW.items() if energy is not None and k != 1])
def test_the_reference_distinguishes_every_weighting_from_plain_diffusion(how):
    energy, sampler = sampler_of(how, "every step", 2)
    blank = CANVASES[0]
    distribution, plain = (sampler_distribution(WORLD, READER, e, sampler, SCHEDULE, blank) for e in (energy, None))
    expected = EACH * ((distribution - plain) ** 2 / plain).sum()
    assert expected > 60  # of a chi-square of 7 degrees of freedom
