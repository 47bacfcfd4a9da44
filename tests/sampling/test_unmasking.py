"""Most certain first, and remasking: distributions by enumeration, given text, and bounds along their paths."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError, parse
from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound
from edlm.rng import Purpose, uniforms
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import NonFiniteRows
from edlm.sampling.unmasking import AtRandom, MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from tests.counting import chi_square
from tests.enumeration import Step, path_bound, sampler_distribution, step_distribution, subsets
from tests.sampling.test_sampler_distribution import DENSE, FAR, LONGER, BrokenReader, N, counts, denoiser
from tests.worlds import Conditional, Marginals, Residual, World

CERTAIN, FIXED, AGAIN = MostCertain(), MostCertain(counts="fixed"), Remasking(share=0.7)
CASES = {
    "certain": (LONGER, None, Sampler(steps=3, unmasking=CERTAIN)),
    "certain, whole drafts": (DENSE, Residual(DENSE, True), Sampler(steps=2, candidates=3, unmasking=CERTAIN)),
    "certain, step": (DENSE, Residual(DENSE, False), Sampler(steps=2, candidates=3, unmasking=CERTAIN)),
    "certain, blocks": (LONGER, Residual(LONGER, False, block=2), Sampler(steps=2, candidates=2, unmasking=CERTAIN)),
    "certain, exact": (DENSE, Conditional(DENSE), Sampler(steps=2, candidates=0, window=(0, 0.5), unmasking=CERTAIN)),
    "fixed counts": (LONGER, None, Sampler(steps=3, unmasking=FIXED)),
    "fixed counts, step": (DENSE, Residual(DENSE, False), Sampler(steps=2, candidates=3, unmasking=FIXED)),
    "fixed counts, exact": (
        DENSE,
        Conditional(DENSE),
        Sampler(steps=2, candidates=0, window=(0, 0.5), unmasking=FIXED),
    ),
    "remasking": (DENSE, None, Sampler(steps=4, unmasking=AGAIN)),
    "remasking, whole drafts": (DENSE, Residual(DENSE, True), Sampler(steps=3, candidates=2, unmasking=AGAIN)),
    "remasking, step": (DENSE, Residual(DENSE, False), Sampler(steps=3, candidates=3, unmasking=AGAIN)),
    "remasking in a window": (DENSE, None, Sampler(steps=4, unmasking=Remasking(share=1.0, window=(0.6, 0.8)))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_texts_follow_the_distribution_that_is_another_one(name):
    here, energy, sampler = CASES[name]
    reader, canvas = denoiser(here), here.canvas(1)[0]
    texts = sampler.sample(here.canvas(2 * N), reader, energy, LogLinear(), torch.arange(2 * N))
    distribution = sampler_distribution(here, reader, energy, sampler, LogLinear(), canvas)
    at_random = sampler_distribution(here, reader, energy, replace(sampler, unmasking=AtRandom()), LogLinear(), canvas)
    assert distribution.sum().item() == pytest.approx(1)
    assert (distribution - at_random).abs().max() > 1e-3
    assert chi_square(counts(here, texts), distribution) < FAR


@pytest.mark.parametrize("name", ["certain", "fixed counts", "remasking", "remasking in a window"])
def test_the_texts_are_not_those_of_plain_diffusion(name):
    here, energy, sampler = CASES[name]
    texts = sampler.sample(here.canvas(4 * N), denoiser(here), energy, LogLinear(), torch.arange(4 * N))
    plain = replace(sampler, unmasking=AtRandom())
    distribution = sampler_distribution(here, denoiser(here), energy, plain, LogLinear(), here.canvas(1)[0])
    assert chi_square(counts(here, texts), distribution) > FAR + 1


@pytest.mark.parametrize("unmasking", [CERTAIN, FIXED, AGAIN, Remasking(share=1.0)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_conditional_distribution_stays_the_source_whatever_is_unmasked_when(unmasking, steps):
    sampler = Sampler(steps=steps, candidates=0, unmasking=unmasking)
    distribution = sampler_distribution(
        DENSE, Marginals(DENSE), Conditional(DENSE), sampler, LogLinear(), DENSE.canvas(1)[0]
    )
    torch.testing.assert_close(distribution, DENSE.p)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("length", [2, 3])
def test_where_the_text_is_known_remasking_keeps_the_marginals_of_the_noise(schedule, share, length):
    text = torch.tensor([2, 0, 1][:length])
    known = World(text[None], torch.ones(1, dtype=torch.float64), vocabulary=3)
    step, sampler = Step(known, Marginals(known), None, 1), Sampler(steps=4, unmasking=Remasking(share=share))
    distributions = {tuple(known.canvas(1)[0].tolist()): 1.0}
    for i in range(4, 0, -1):
        t, s = sampler.times()[i].item(), sampler.times()[i - 1].item()
        after = {}
        for xt, weight in distributions.items():
            distribution = step_distribution(step, torch.tensor(xt), t, s, schedule, sampler.unmasking)
            for xs, probability in distribution.items():
                after[xs] = after.get(xs, 0.0) + weight * probability
        distributions = after
        alpha = schedule.alpha(torch.tensor(s, dtype=torch.float64)).item()
        for masked in subsets(torch.ones(length, dtype=torch.bool)):
            expected = (1 - alpha) ** int(masked.sum()) * alpha ** int((~masked).sum())
            assert distributions.get(tuple(torch.where(masked, 3, text).tolist()), 0.0) == pytest.approx(
                expected, abs=1e-12
            )


@pytest.mark.parametrize("energy", [None, Residual(DENSE, whole_sequence=False)])
def test_remasking_nothing_is_plain_diffusion_bit_for_bit(energy):
    plain = Sampler(steps=7, candidates=1 if energy is None else 3)
    texts = [
        replace(plain, unmasking=how).sample(DENSE.canvas(500), denoiser(DENSE), energy, Cosine(), torch.arange(500))
        for how in (AtRandom(), Remasking(share=0.0), Remasking(share=1.0, window=(0.01, 0.02)))
    ]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("known", [(0, None, None), (None, 1, 2)])
def test_what_the_canvas_gives_is_never_masked_again(known):
    canvas = torch.tensor([DENSE.mask if token is None else token for token in known])
    sampler, steps = Sampler(steps=4, unmasking=Remasking(share=1.0)), []
    texts = sampler.sample(canvas.repeat(N, 1), denoiser(DENSE), None, LogLinear(), torch.arange(N), steps.append)
    given = canvas != DENSE.mask
    assert all(bool((step.xs[:, given] == canvas[given]).all()) for step in steps)
    assert chi_square(
        counts(DENSE, texts), sampler_distribution(DENSE, denoiser(DENSE), None, sampler, LogLinear(), canvas)
    ) < FAR  # fmt: skip


def test_a_step_that_masks_again_and_unmasks_nothing_reads_nothing():
    steps, sampler = [], Sampler(steps=40, unmasking=Remasking(share=1.0))
    sampler.sample(DENSE.canvas(300), denoiser(DENSE), None, LogLinear(), torch.arange(300), steps.append)
    hidden = [(a.xs != DENSE.mask) & (b.xs == DENSE.mask) for a, b in itertools.pairwise(steps)]
    assert any(bool(rows.any()) for rows in hidden)
    still = [~b.unmasked.any(dim=1) & rows.any(dim=1) for b, rows in zip(steps[1:], hidden, strict=True)]
    assert any(bool(rows.any()) for rows in still)
    assert all(bool((b.denoiser_calls[rows] == 0).all()) for b, rows in zip(steps[1:], still, strict=True))
    assert bool((steps[-1].xs != DENSE.mask).all())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), rows=st.integers(1, 4), share=st.floats(0, 1))
def test_the_most_certain_are_as_many_as_at_random_and_none_left_is_more_certain(seed, rows, share):
    generator = torch.Generator().manual_seed(seed)
    xt = torch.where(torch.rand(rows, 4, generator=generator) < 0.7, LONGER.mask, 1)
    context = torch.randn(rows, 4, 3, generator=generator).log_softmax(-1)
    drawn = (xt == LONGER.mask) & (torch.rand(rows, 4, generator=generator) < share)
    unmasked = CERTAIN.settle(drawn, xt, context, denoiser(LONGER))
    assert torch.equal(unmasked.sum(1), drawn.sum(1))
    assert not bool((unmasked & (xt != LONGER.mask)).any())
    top = context.max(-1).values
    for row in range(rows):
        left = (xt[row] == LONGER.mask) & ~unmasked[row]
        if left.any() and unmasked[row].any():
            assert top[row][left].max() <= top[row][unmasked[row]].min()
        alone = CERTAIN.settle(drawn[row : row + 1], xt[row : row + 1], context[row : row + 1], denoiser(LONGER))
        assert torch.equal(alone[0], unmasked[row])


def test_of_equally_certain_positions_the_left_ones_come_first():
    xt = torch.tensor([[LONGER.mask, 1, LONGER.mask, LONGER.mask]])
    drawn = torch.tensor([[False, False, True, True]])
    actual = CERTAIN.settle(drawn, xt, torch.zeros(1, 4, 3), denoiser(LONGER))
    assert actual.tolist() == [[True, False, True, False]]
    many = torch.full((1, 100), LONGER.mask)
    drawn = torch.arange(100)[None] >= 60  # forty of them, in a row that is long enough to be sorted in another way
    actual = CERTAIN.settle(drawn, many, torch.zeros(1, 100, 3), denoiser(LONGER))
    assert actual[0].nonzero()[:, 0].tolist() == list(range(40))


BOUNDED = ("certain", "certain, step", "certain, blocks", "remasking", "remasking, step", "remasking in a window")


@pytest.mark.parametrize("name", BOUNDED)
def test_the_bound_is_the_mean_over_the_samplers_paths_and_lies_above_the_likelihood(name):
    here, energy, sampler = CASES[name]
    reader, schedule = denoiser(here), LogLinear()
    distribution = sampler_distribution(here, reader, energy, sampler, schedule, here.canvas(1)[0])
    text = int(here.p.argmax())
    x0 = here.texts[text]
    exact = path_bound(Step(here, reader, energy, sampler.candidates), sampler, schedule, x0)
    assert exact >= -math.log(distribution[text]) - 1e-9
    actual = sampler_bound(x0.repeat(6000, 1), reader, energy, schedule, sampler, seed=1, draws=1)
    # The estimate of a resampling step lies above -log p_k (one set of other candidates): plain ones meet it.
    assert actual.mean > exact - 4 * actual.standard_error
    if energy is None:
        assert actual.mean < exact + 4 * actual.standard_error


def test_a_text_is_paid_for_as_often_as_it_is_unmasked_so_that_remasking_loosens_the_bound():
    known = World(torch.tensor([[0, 1, 2]]), torch.ones(1, dtype=torch.float64), vocabulary=3)
    blind = Marginals(known, mix=1.0)  # every token costs log 3
    sampler = Sampler(steps=4, unmasking=Remasking(share=1.0))
    actual = sampler_bound(known.texts.repeat(4000, 1), blind, None, LogLinear(), sampler, seed=0, draws=1)
    again = sum(min(1 - t, t - 0.25) for t in (0.75, 0.5, 0.25))  # sigma_t alpha_t = min(alpha_t, 1 - alpha_s)
    assert actual.mean == pytest.approx(3 * math.log(3) * (1 + again), abs=4 * actual.standard_error)


@pytest.mark.parametrize("unmasking", [CERTAIN, FIXED, AGAIN])
def test_in_one_step_every_way_of_unmasking_is_the_same(unmasking):
    x0 = DENSE.texts
    bounds = [
        sampler_bound(x0, denoiser(DENSE), None, LogLinear(), Sampler(steps=1, unmasking=how), seed=0, draws=1).values
        for how in (AtRandom(), unmasking)
    ]
    torch.testing.assert_close(bounds[0], bounds[1])


@pytest.mark.parametrize("unmasking", [CERTAIN, FIXED, Remasking(share=1.0)])
def test_a_row_whose_numbers_are_none_stays_as_it_is_and_the_others_are_finished(unmasking):
    m = DENSE.mask
    with pytest.raises(NonFiniteRows, match=r"rows \[1\] of 3") as raised:
        Sampler(steps=5, unmasking=unmasking).sample(
            torch.tensor([[0, m, m], [2, m, m], [1, m, m]]), BrokenReader(DENSE), None, LogLinear(), torch.arange(3)
        )
    assert raised.value.x[1].tolist() == [2, m, m]
    assert bool((raised.value.x[[0, 2]] != m).all())


def test_a_row_does_not_depend_on_the_other_rows_of_its_batch():
    for sampler in (Sampler(steps=4, unmasking=rule) for rule in (CERTAIN, FIXED, AGAIN)):
        together = sampler.sample(LONGER.canvas(20), denoiser(LONGER), None, LogLinear(), torch.arange(20))
        alone = sampler.sample(LONGER.canvas(1), denoiser(LONGER), None, LogLinear(), torch.tensor([13]))
        assert torch.equal(together[13], alone[0])


def test_how_many_are_unmasked_is_drawn_from_the_same_stream_as_at_random():
    xt, seeds = LONGER.canvas(200), torch.arange(200)
    t, s = torch.full((200,), 1.0).double(), torch.full((200,), 0.6).double()
    result = Sampler(steps=2, unmasking=CERTAIN).step(
        xt, t, s, torch.full((200,), 2), seeds, Model(denoiser(LONGER), None, LogLinear())
    )
    u = uniforms(seeds, 2, 0, Purpose.UNMASK, (4,))
    assert torch.equal(result.unmasked.sum(dim=1), (u < 0.4).sum(dim=1))


def counts_by_step(canvas: torch.Tensor, sampler: Sampler, schedule, seeds: int = 50) -> torch.Tensor:
    """How many positions each step unmasked, per row: [seeds, T]."""
    steps = []
    sampler.sample(canvas.repeat(seeds, 1), denoiser(LONGER), None, schedule, torch.arange(seeds), steps.append)
    return torch.stack([step.unmasked.sum(dim=1) for step in steps], dim=1)


@pytest.mark.parametrize(
    ("known", "steps", "schedule", "expected"),
    [
        ((), 4, LogLinear(), [1, 1, 1, 1]),
        ((), 2, LogLinear(), [2, 2]),
        ((), 3, LogLinear(), [1, 2, 1]),
        ((), 8, LogLinear(), [1, 0, 1, 0, 1, 0, 1, 0]),
        ((0,), 2, LogLinear(), [2, 1]),
        ((0, 1, 2), 4, LogLinear(), [0, 1, 0, 0]),
        ((0, 1, 2, 0), 3, LogLinear(), [0, 0, 0]),
        ((), 4, Cosine(), [0, 1, 1, 2]),
    ],
)
def test_fixed_counts_follow_the_schedule_in_whole_numbers_whatever_the_seed(known, steps, schedule, expected):
    canvas = torch.tensor([[*known, *[LONGER.mask] * (4 - len(known))]])
    actual = counts_by_step(canvas, Sampler(steps=steps, unmasking=FIXED), schedule)
    assert actual.unique(dim=0).tolist() == [expected]


def test_with_fixed_counts_the_positions_of_a_step_are_a_function_of_the_tokens():
    sampler, steps = Sampler(steps=3, unmasking=FIXED), []
    sampler.sample(LONGER.canvas(300), denoiser(LONGER), None, LogLinear(), torch.arange(300), steps.append)
    before = LONGER.canvas(300)
    for step in steps:
        chosen = {}
        for xt, unmasked in zip(before.tolist(), step.unmasked.tolist(), strict=True):
            assert chosen.setdefault(tuple(xt), unmasked) == unmasked
        before = step.xs
    drawn = counts_by_step(LONGER.canvas(1), replace(sampler, unmasking=CERTAIN), LogLinear())
    assert len(drawn.unique(dim=0)) > 3


@pytest.mark.parametrize(
    ("unmasking", "message"),
    [
        ({"kind": "remasking", "share": 1.5}, "unmasking.share: Input should be less than or equal to 1; got 1.5"),
        ({"kind": "remasking", "share": -0.1}, "greater than or equal to 0; got -0.1"),
        ({"kind": "remasking", "share": 0.5, "window": [0.9, 0.1]}, r"0 <= from <= to <= 1; got \[0.9, 0.1\]"),
        ({"kind": "remasking", "share": 0.5, "window": [0.0, 2.0]}, "less than or equal to 1; got 2.0"),
        ({"kind": "remasking"}, "unmasking.share: missing"),
        ({"kind": "most_certian"}, "there is no 'most_certian'; did you mean 'most_certain'"),
        ({"kind": "most_certain", "share": 0.5}, "unmasking.share: unknown key"),
        ({"kind": "most_certain", "counts": "random"}, "unmasking.counts: .*'drawn' or 'fixed'; got 'random'"),
        ({}, "unmasking.kind: missing; allowed: at_random, most_certain, remasking"),
    ],
)
def test_settings_that_are_none_are_refused_with_the_way_out(unmasking, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(Sampler, {"steps": 2, "unmasking": unmasking})
