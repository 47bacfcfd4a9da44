"""k candidates with uniform weights are plain diffusion: distributions by enumeration, bounds text by text."""

import itertools
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from edlm.energies.uniform import Uniform
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model
from edlm.likelihood.bounds import sampler_bound
from edlm.rng import Purpose
from edlm.sampling import sampler as sampler_module
from edlm.sampling import state as state_module
from edlm.sampling.sampler import Sampler
from edlm.schedule import AbstractSchedule, Cosine, LogLinear
from tests.enumeration import sampler_distribution, subsets
from tests.networks import denoiser
from tests.worlds import Marginals, Residual, World, cartesian, world

M = 2
WORLDS = {"markov": world("markov", vocabulary=2, seed=2), "dense": world("dense", vocabulary=2, seed=1)}
CONTROLS = {
    "whole drafts": Uniform(whole_sequence=True),
    "whole drafts in blocks": Uniform(whole_sequence=True, block=2),
    "step": Uniform(whole_sequence=False),
    "step in blocks": Uniform(whole_sequence=False, block=2),
}
every_world, every_control = pytest.mark.parametrize("source", WORLDS), pytest.mark.parametrize("name", CONTROLS)


def reader(of: World) -> Marginals:
    """Imperfect, and more so at late times, so that the time at which a row is read shows."""
    return Marginals(of, mix=0.1, drift=0.3)


@dataclass(frozen=True)
class Draws:
    """All that a step from t to s can draw, for several x_t; row n of each table is what seed n stands for."""

    xt: Tensor
    weights: Tensor
    tables: dict[Purpose, Tensor]

    def uniforms(self, seeds: Tensor, step: Tensor, row: int, purpose: Purpose, shape: tuple[int, ...]) -> Tensor:
        return self.tables[purpose][seeds][(slice(None), *(slice(size) for size in shape))]


def every_draw(
    distribution: dict, sampler: Sampler, groups: int, reading: AnyDenoiser, t: float, share: float
) -> Draws:
    """Positions to unmask, the tokens of k candidates (at the middle of their cells), and which one is picked."""
    parts = []
    for xt, p in distribution.items():
        masked = torch.tensor(xt) == reading.mask
        kept = [unmasked for unmasked in subsets(masked) if share < 1 or torch.equal(unmasked, masked)]
        context = reading.read(torch.tensor([xt]), torch.tensor([t], dtype=torch.float64))[0].exp()
        tokens = cartesian(reading.vocabulary, sampler.candidates * int(masked.sum()))
        at = torch.nonzero(masked)[:, 0].repeat(sampler.candidates)
        middle = torch.full((len(tokens), sampler.candidates, len(xt)), 0.5, dtype=torch.float64)
        middle[:, :, masked] = (context.cumsum(dim=-1) - context / 2)[at, tokens].view(
            len(tokens), sampler.candidates, -1
        )
        drawn = p * context[at, tokens].prod(dim=1)
        for unmasked, picks in itertools.product(kept, cartesian(sampler.candidates, groups)):
            count, left = int(unmasked.sum()), int(masked.sum() - unmasked.sum())
            coin = torch.where(unmasked, share / 2, (1 + share) / 2).double()
            pick = (picks + 0.5) / sampler.candidates
            weight = drawn * share**count * (1 - share) ** left / sampler.candidates**groups
            rows = (len(tokens), -1)
            parts.append((torch.tensor(xt).expand(rows), weight, coin.expand(rows), middle, pick.double().expand(rows)))
    xt, weights, coins, middles, picks = (torch.cat(column) for column in zip(*parts, strict=True))
    return Draws(xt, weights, {Purpose.UNMASK: coins, Purpose.CANDIDATE: middles, Purpose.PICK: picks})


def listed_distribution(
    of: World,
    sampler: Sampler,
    energy: AnyEnergy,
    schedule: AbstractSchedule,
    canvas: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> Tensor:
    """The distribution of the texts of this very `Sampler`: its steps are taken once for everything that can be drawn.

    Of the choice among candidates only equal weights are listed rightly, which is what is claimed of them.
    """
    distribution, groups = {tuple(canvas.tolist()): 1.0}, 1 if energy.block is None else -(-of.length // energy.block)
    for i in range(sampler.steps, 0, -1):
        now, then = i / sampler.steps, (i - 1) / sampler.steps
        t, s = (torch.tensor(time, dtype=torch.float64) for time in (now, then))
        draws = every_draw(distribution, sampler, groups, reader(of), now, schedule.unmask_probability(t, s).item())
        for module in (sampler_module, state_module):
            monkeypatch.setattr(module, "uniforms", draws.uniforms)
        n, model = len(draws.xt), Model(reader(of), energy, schedule)
        result = sampler.step(draws.xt, t.expand(n), s.expand(n), torch.full((n,), i), torch.arange(n), model)
        powers = (of.vocabulary + 1) ** torch.arange(of.length)
        sums = torch.zeros((of.vocabulary + 1) ** of.length, dtype=torch.float64)
        sums.index_add_(0, (result.xs * powers).sum(dim=1), draws.weights)
        states = cartesian(of.vocabulary + 1, of.length).flip(-1)
        distribution = {tuple(states[code].tolist()): sums[code].item() for code in torch.nonzero(sums)[:, 0].tolist()}
    return torch.tensor([distribution.get(tuple(text), 0.0) for text in of.texts.tolist()], dtype=torch.float64)


CASES = [
    (Sampler(steps=1, candidates=2), LogLinear(), (M, M, M)),
    (Sampler(steps=1, candidates=3), LogLinear(), (M, M, M)),
    (Sampler(steps=2, candidates=2), Cosine(), (M, M, M)),
    (Sampler(steps=3, candidates=2, window=(0.5, 1.0)), LogLinear(), (M, M, M)),
    (Sampler(steps=3, candidates=2, window=(0.0, 1 / 3), energy_temperature=0.3), LogLinear(), (M, M, M)),
    (Sampler(steps=2, candidates=2), LogLinear(), (M, 1, M)),
    (Sampler(steps=1, candidates=4), LogLinear(), (0, M, M)),
]


@every_world
@every_control
@pytest.mark.parametrize(("sampler", "schedule", "canvas"), CASES)
def test_uniform_weights_are_plain_diffusion(source, name, sampler, schedule, canvas, monkeypatch):
    of, energy = WORLDS[source], CONTROLS[name]
    actual = listed_distribution(of, sampler, energy, schedule, torch.tensor(canvas), monkeypatch)
    plain = sampler_distribution(of, reader(of), None, Sampler(steps=sampler.steps), schedule, torch.tensor(canvas))
    torch.testing.assert_close(actual, plain, atol=1e-12, rtol=0)


@every_world
@every_control
def test_the_reference_agrees_for_uniform_weights(source, name):
    of, canvas = WORLDS[source], WORLDS[source].canvas(1)[0]
    plain = sampler_distribution(of, reader(of), None, Sampler(steps=2), LogLinear(), canvas)
    actual = sampler_distribution(of, reader(of), CONTROLS[name], Sampler(steps=2, candidates=3), LogLinear(), canvas)
    torch.testing.assert_close(actual, plain, atol=1e-12, rtol=0)


def test_an_energy_with_weights_would_be_detected(monkeypatch):
    of, sampler = WORLDS["dense"], Sampler(steps=1, candidates=2)
    actual = listed_distribution(
        of, sampler, Residual(of, whole_sequence=True), LogLinear(), of.canvas(1)[0], monkeypatch
    )
    plain = sampler_distribution(of, reader(of), None, Sampler(steps=1), LogLinear(), of.canvas(1)[0])
    assert (actual - plain).abs().max() > 0.01


@settings(max_examples=40, deadline=None)
@given(
    source=st.sampled_from(sorted(WORLDS)),
    steps=st.integers(1, 6),
    candidates=st.integers(2, 9),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).map(tuple),
    drafts=st.booleans(),
    block=st.none() | st.integers(1, 4),
    repeats=st.integers(1, 3),
)
def test_the_bound_is_plain_diffusions_text_by_text(source, steps, candidates, window, drafts, block, repeats):
    of, energy = WORLDS[source], Uniform(drafts, block)
    sampler = Sampler(steps=steps, candidates=candidates, window=window)
    plain = sampler_bound(of.texts, reader(of), None, LogLinear(), Sampler(steps=steps), seed=3, draws=2)
    actual = sampler_bound(of.texts, reader(of), energy, LogLinear(), sampler, seed=3, draws=2, repeats=repeats)
    torch.testing.assert_close(actual.values, plain.values, atol=1e-12, rtol=0)


@every_control
def test_with_networks_too_the_bound_is_plain_diffusions_and_samples_fill_the_canvas(name):
    net, energy = denoiser(5), CONTROLS[name]
    x0 = torch.randint(5, (4, 12), generator=torch.Generator().manual_seed(0))
    plain = sampler_bound(x0, net, None, LogLinear(), Sampler(steps=3), seed=3, draws=1)
    actual = sampler_bound(x0, net, energy, LogLinear(), Sampler(steps=3, candidates=4), seed=3, draws=1)
    torch.testing.assert_close(actual.values, plain.values, atol=1e-4, rtol=0)
    canvas = torch.where(x0 == 0, x0, net.mask)
    texts = Sampler(steps=3, candidates=4).sample(canvas, net, energy, LogLinear(), torch.arange(4))
    assert bool((texts[x0 == 0] == 0).all())
    assert int(texts.max()) < 5


def test_a_block_without_positions_is_refused():
    with pytest.raises(ValueError, match="block is 0"):
        Uniform(block=0)


def test_by_default_it_is_compared_with_energies_of_whole_sequences():
    assert Uniform().whole_sequence
    assert Uniform().block is None
