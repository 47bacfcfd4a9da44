"""The texts that the sampler writes follow p_k, computed by listing every draw; chi-square over all texts.

Seeds and significance are fixed: a deviate above 3.9 has probability 5e-5 for each test. The same counts must also be
far from the distribution of plain diffusion, or else the test could not have seen the resampling.
"""

import pytest
import torch

from edlm.energies.whole_sequence import AutoregressiveEnergy, CarryOverEnergy
from edlm.interfaces import Model
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import NonFiniteRows, StepResult
from edlm.schedule import Cosine, LogLinear
from tests.counting import chi_square
from tests.enumeration import Step, sampler_distribution, step_distribution
from tests.worlds import Conditional, Constant, EnumeratedAutoregressive, Marginals, OnProposal, Residual, World, world

FAR = 3.9
N = 8000
DENSE = world("dense", seed=1)
M = DENSE.mask
LONGER = world("markov", length=4, seed=2)
HIDDEN = world("hidden-markov", length=4, seed=1)


def denoiser(of: World) -> Marginals:
    """Imperfect, and more so at late times, so that the time at which a row is read shows."""
    return Marginals(of, mix=0.1, drift=0.3)


def counts(of: World, texts: torch.Tensor) -> torch.Tensor:
    powers = of.vocabulary ** torch.arange(of.length - 1, -1, -1)
    return torch.bincount((texts * powers).sum(dim=1), minlength=len(of.texts))


ar = EnumeratedAutoregressive(DENSE)
COAR = CarryOverEnergy(ar, DENSE.mask)  # pyright: ignore[reportArgumentType]
CASES = {
    "whole drafts": (DENSE, Residual(DENSE, whole_sequence=True), Sampler(steps=2, candidates=3)),
    "whole drafts in one step": (DENSE, Residual(DENSE, whole_sequence=True), Sampler(steps=1, candidates=2)),
    "step": (DENSE, Residual(DENSE, whole_sequence=False), Sampler(steps=2, candidates=3)),
    "step in blocks": (LONGER, Residual(LONGER, whole_sequence=False, block=2), Sampler(steps=2, candidates=3)),
    "step in uneven blocks": (LONGER, Residual(LONGER, whole_sequence=False, block=3), Sampler(steps=1, candidates=2)),
    "step in blocks of a hidden chain": (HIDDEN, Residual(HIDDEN, False, block=2), Sampler(steps=2, candidates=3)),
    "exact": (DENSE, Conditional(DENSE), Sampler(steps=2, candidates=0)),
    "exact, by verifying drafts": (DENSE, Conditional(DENSE), Sampler(steps=2, candidates=0, speculative=True)),
    "verifying longer drafts": (LONGER, Conditional(LONGER), Sampler(steps=1, candidates=0, speculative=True)),
    "conditional, resampled": (DENSE, Conditional(DENSE), Sampler(steps=2, candidates=3)),
    "a residual energy on a proposal": (
        DENSE,
        OnProposal(DENSE, world("dense", seed=5)),
        Sampler(steps=2, candidates=3),
    ),
    "a window of the first steps": (
        DENSE,
        Residual(DENSE, whole_sequence=True),
        Sampler(steps=3, candidates=3, window=(0.6, 1.0)),
    ),
    "a window of the last step": (
        DENSE,
        Residual(DENSE, whole_sequence=True),
        Sampler(steps=3, candidates=3, window=(0, 1 / 3)),
    ),
    "exact in a window": (DENSE, Conditional(DENSE), Sampler(steps=2, candidates=0, window=(0.0, 0.5))),
    "a high temperature": (
        DENSE,
        Residual(DENSE, whole_sequence=False),
        Sampler(steps=1, candidates=3, energy_temperature=3.0),
    ),
    "a low temperature": (
        DENSE,
        Residual(DENSE, whole_sequence=True),
        Sampler(steps=1, candidates=2, energy_temperature=0.3),
    ),
    "ar": (DENSE, AutoregressiveEnergy(ar), Sampler(steps=2, candidates=3)),  # pyright: ignore[reportArgumentType]
    "coar": (DENSE, COAR, Sampler(steps=2, candidates=3)),
    "coar, exact": (DENSE, COAR, Sampler(steps=2, candidates=0)),
    "coar, exact in a window": (DENSE, COAR, Sampler(steps=3, candidates=0, window=(0.0, 0.7))),
    "coar, exact, by verifying drafts": (DENSE, COAR, Sampler(steps=2, candidates=0, speculative=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_texts_follow_p_k(name):
    here, energy, sampler = CASES[name]
    reader, schedule = denoiser(here), LogLinear()
    texts = sampler.sample(here.canvas(N), reader, energy, schedule, torch.arange(N))
    actual, canvas = counts(here, texts), here.canvas(1)[0]
    distribution = sampler_distribution(here, reader, energy, sampler, schedule, canvas)
    assert distribution.sum().item() == pytest.approx(1)
    assert chi_square(actual, distribution) < FAR
    assert chi_square(actual, sampler_distribution(here, reader, None, sampler, schedule, canvas)) > FAR + 1


@pytest.mark.parametrize("speculative", [False, True])
def test_coar_ignores_what_is_known_behind_a_token_and_sums_over_what_it_throws_away(speculative):
    canvas = torch.tensor([M, M, 1])
    reader, sampler = denoiser(DENSE), Sampler(steps=1, candidates=0, speculative=speculative)
    texts = sampler.sample(canvas.repeat(N, 1), reader, COAR, LogLinear(), torch.arange(N))
    left = torch.where(torch.arange(3) < 2, DENSE.texts, M)  # q(x^1, x^2) with whatever behind it
    distribution = torch.where(DENSE.texts[:, 2] == 1, DENSE.probability(left), 0.0)
    assert chi_square(counts(DENSE, texts), distribution) < FAR
    result = sampler.step(
        DENSE.canvas(N), torch.ones(N, dtype=torch.float64), torch.full((N,), 0.6, dtype=torch.float64),
        torch.ones(N, dtype=torch.long), torch.arange(N), Model(reader, COAR, LogLinear()),
    )  # fmt: skip
    alone = (result.unmasked == torch.tensor([False, False, True])).all(dim=1)
    marginal = torch.stack([DENSE.p[DENSE.texts[:, 2] == token].sum() for token in range(3)])
    assert alone.sum() > 500
    assert chi_square(torch.bincount(result.xs[alone, 2], minlength=3), marginal) < FAR


@pytest.mark.parametrize("energy", [None, Constant(2.5), Constant(-1.0, whole_sequence=False, block=2)])
@pytest.mark.parametrize("steps", [1, 3])
def test_without_an_energy_or_with_a_constant_one_it_is_plain_diffusion(energy, steps):
    reader, schedule = denoiser(DENSE), LogLinear()
    sampler = Sampler(steps=steps, candidates=1 if energy is None else 4)
    texts = sampler.sample(DENSE.canvas(N), reader, energy, schedule, torch.arange(N))
    plain = sampler_distribution(DENSE, reader, None, Sampler(steps=steps), schedule, DENSE.canvas(1)[0])
    assert chi_square(counts(DENSE, texts), plain) < FAR


@pytest.mark.parametrize("known", [(0, None, None), (None, 1, None), (None, None, 2)])
@pytest.mark.parametrize("drafts", [True, False])
def test_prompts_and_gaps_are_filled_by_the_distribution_given_what_is_known(known, drafts):
    energy, reader, schedule = Residual(DENSE, drafts), denoiser(DENSE), LogLinear()
    canvas = torch.tensor([DENSE.mask if token is None else token for token in known])
    sampler = Sampler(steps=1, candidates=3)
    texts = sampler.sample(canvas.repeat(N, 1), reader, energy, schedule, torch.arange(N))
    given = canvas != DENSE.mask
    assert bool((texts[:, given] == canvas[given]).all())
    assert (
        chi_square(counts(DENSE, texts), sampler_distribution(DENSE, reader, energy, sampler, schedule, canvas)) < FAR
    )


def test_another_schedule_unmasks_at_another_pace():
    energy, reader, sampler = Residual(DENSE, whole_sequence=False), denoiser(DENSE), Sampler(steps=2, candidates=3)
    texts = sampler.sample(DENSE.canvas(N), reader, energy, Cosine(), torch.arange(N))
    distribution = sampler_distribution(DENSE, reader, energy, sampler, Cosine(), DENSE.canvas(1)[0])
    assert chi_square(counts(DENSE, texts), distribution) < FAR


def test_exact_sampling_of_an_exact_distribution_is_the_source_at_any_number_of_steps():
    for steps in (1, 2, 5):
        texts = Sampler(steps=steps, candidates=0).sample(
            DENSE.canvas(N), Marginals(DENSE), Conditional(DENSE), LogLinear(), torch.arange(N)
        )
        assert chi_square(counts(DENSE, texts), DENSE.p) < FAR


MIXED = {  # canvas, t, s, index of the step
    "first step": ([M, M, M], 1.0, 0.5, 2),
    "last step": ([M, 1, M], 0.5, 0.0, 1),
    "a step within": ([M, M, 2], 0.75, 0.25, 3),
    "outside the window": ([0, M, M], 0.2, 0.0, 1),
}


@pytest.mark.parametrize("energy", [Residual(DENSE, True), Residual(DENSE, False), Residual(DENSE, False, 2)])
def test_rows_at_different_times_in_one_batch_each_follow_the_distribution_of_their_own_step(energy):
    reader, schedule, each = denoiser(DENSE), LogLinear(), 4000
    sampler = Sampler(steps=4, candidates=3, window=(0.4, 1.0))
    canvases, t, s, index = zip(*MIXED.values(), strict=True)
    kinds = torch.arange(len(MIXED)).repeat(each)
    result = sampler.step(
        torch.tensor(canvases)[kinds],
        torch.tensor(t, dtype=torch.float64)[kinds],
        torch.tensor(s, dtype=torch.float64)[kinds],
        torch.tensor(index)[kinds],
        torch.arange(len(kinds)),
        Model(reader, energy, schedule),
    )
    powers = (DENSE.vocabulary + 1) ** torch.arange(DENSE.length)
    for kind, (canvas, now, then, _) in enumerate(MIXED.values()):
        k = sampler.candidates if now >= 0.4 else 1
        step = Step(DENSE, reader, energy, k)
        expected = torch.zeros((DENSE.vocabulary + 1) ** DENSE.length, dtype=torch.float64)
        for xs, probability in step_distribution(step, torch.tensor(canvas), now, then, schedule).items():
            expected[(torch.tensor(xs) * powers).sum()] = probability
        codes = (result.xs[kinds == kind] * powers).sum(dim=1)
        actual = torch.bincount(codes, minlength=len(expected))
        assert chi_square(actual, expected) < FAR, kind


@pytest.mark.parametrize("wrong", [-1, M + 1])
def test_a_canvas_with_an_invalid_token_is_refused_by_its_position(wrong):
    canvas = torch.tensor([[0, M, M], [M, 1, wrong]])
    with pytest.raises(
        ValueError, match=f"row 1 of the canvas holds {wrong} at position 2; tokens are 0 to 2, and 3 is"
    ):
        Sampler(steps=2).sample(canvas, denoiser(DENSE), None, LogLinear(), torch.arange(2))


def test_where_nothing_is_masked_nothing_is_asked():
    class Unasked:
        mask, vocabulary = DENSE.mask, DENSE.vocabulary

        def read(self, xt, t):
            raise AssertionError("asked")

        def log_p(self, context, where):
            raise AssertionError("asked")

    canvas = torch.tensor([[0, 1, 2]])
    assert torch.equal(
        Sampler(steps=3, candidates=4).sample(canvas, Unasked(), None, LogLinear(), torch.arange(1)), canvas
    )


def test_no_canvas_is_no_work_and_no_error():
    none = torch.empty(0, 3, dtype=torch.long)
    assert Sampler(steps=2).sample(none, Marginals(DENSE), None, LogLinear(), torch.empty(0)).shape == (0, 3)


def test_exact_draws_have_no_temperature():
    with pytest.raises(ValueError, match="at temperature 1; got energy_temperature = 2"):
        Sampler(steps=2, candidates=0, energy_temperature=2.0)


@pytest.mark.parametrize("drafts", [True, False])
def test_one_new_token_asks_no_energy_and_is_the_plain_one(drafts):
    """So that neither its calls nor an effective sample size of 1 are counted."""

    class Asked(Residual):
        def __call__(self, x, xt, t, log_p, context):
            raise AssertionError("no energy is called for a single token")

    canvas, seeds = torch.tensor([[0, M, 1], [M, 2, 2]]), torch.arange(2)
    steps: list[StepResult] = []
    actual = Sampler(steps=1, candidates=5).sample(
        canvas, Marginals(DENSE), Asked(DENSE, whole_sequence=drafts), LogLinear(), seeds, on_step=steps.append
    )
    assert torch.equal(actual, Sampler(steps=1).sample(canvas, Marginals(DENSE), None, LogLinear(), seeds))
    assert steps[0].energy_calls.tolist() == [0, 0]
    assert steps[0].energies is None


class BrokenReader(Marginals):
    """The distribution as it is, but for rows that begin with token 2: their logits are not numbers."""

    def read(self, xt, t):
        return torch.where((xt[:, 0] == 2)[:, None, None], torch.nan, super().read(xt, t))


class BrokenEnergy(Residual):
    """The same for an energy."""

    def __call__(self, x, xt, t, log_p, context):
        return torch.where((xt[:, 0] == 2)[:, None, None], torch.nan, super().__call__(x, xt, t, log_p, context))


class BrokenConditional(Conditional):
    """The same for a distribution that is drawn from token by token."""

    def draw(self, xt, where, context, u):
        x, log_p = yield from super().draw(xt, where, context, u)
        return x, torch.where((xt[:, 0] == 2)[:, None], torch.nan, log_p)


@pytest.mark.parametrize(
    ("reader", "energy", "sampler"),
    [
        (BrokenReader(DENSE), None, Sampler(steps=2)),
        (BrokenReader(DENSE), Residual(DENSE, whole_sequence=False), Sampler(steps=2, candidates=3)),
        (BrokenReader(DENSE), Conditional(DENSE), Sampler(steps=2, candidates=0)),
        (Marginals(DENSE), BrokenEnergy(DENSE, whole_sequence=False), Sampler(steps=1, candidates=3)),
        (Marginals(DENSE), BrokenConditional(DENSE), Sampler(steps=2, candidates=0)),
    ],
)
def test_a_row_whose_numbers_are_none_is_named_and_the_others_are_as_they_would_be_alone(reader, energy, sampler):
    canvas = torch.tensor([[0, M, M], [2, M, M], [1, M, M]])
    with pytest.raises(NonFiniteRows, match=r"rows \[1\] of 3 are not numbers") as raised:
        sampler.sample(canvas, reader, energy, LogLinear(), torch.arange(3))
    alone = sampler.sample(canvas[[0, 2]], reader, energy, LogLinear(), torch.tensor([0, 2]))
    assert torch.equal(raised.value.x[[0, 2]], alone)
    assert raised.value.x[1].tolist() == [2, M, M]
