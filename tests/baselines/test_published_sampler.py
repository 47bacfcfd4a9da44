"""The published sampler: the bias of its races, and its agreement with our sampler otherwise."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from edlm import equations
from edlm.baselines.published_sampler import EXACT_LABEL, PublishedSampler, grained, race, reverse
from edlm.config import ConfigurationError, dump, parse, plain
from edlm.energies.uniform import Uniform
from edlm.evaluation.race_entropy import entropy_against_steps
from edlm.rng import Purpose, uniforms
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import NonFiniteRows, StepResult
from edlm.schedule import Cosine, LogLinear
from tests.counting import chi_square
from tests.enumeration import Step, resampled, sampler_distribution
from tests.networks import denoiser
from tests.sampling.test_sampler_distribution import BrokenEnergy, BrokenReader
from tests.worlds import Constant, Marginals, Residual, world

FAR = 3.9
N = 8000
DENSE = world("dense", seed=1)
GRAIN = {"bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
FLOAT32, FLOAT64 = torch.float32, torch.float64
VOCABULARY = 50_000


def zipf(vocabulary: int) -> Tensor:
    p = 1 / torch.arange(1, vocabulary + 1, dtype=FLOAT64)
    return p / p.sum()


ZIPF = zipf(VOCABULARY)


class Same:
    """A denoiser that says the same distribution everywhere."""

    def __init__(self, p: Tensor) -> None:
        self.p, self.mask, self.vocabulary = p, len(p), len(p)

    def read(self, xt: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(xt.shape)

    def log_p(self, context: Tensor, where: Tensor) -> Tensor:
        return self.p.log().expand(int(where.sum()), -1)


def entropy(p: Tensor) -> float:
    return -torch.xlogy(p, p).sum().item()


# ---------------------------------------------------------------- one race


@pytest.mark.parametrize("precision", GRAIN)
def test_the_uniforms_of_a_race_are_on_the_grid_of_torch_rand(precision):
    dtype, grain = getattr(torch, precision), GRAIN[precision]
    ours = grained(uniforms(0, 0, 0, Purpose.UNMASK, (20_000,)), dtype)
    theirs = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for u in (ours, theirs):
        in_grains = u[u > 0.5].double() / grain
        assert u.dtype == dtype
        assert torch.equal(in_grains, in_grains.floor())
        assert bool((in_grains % 2 == 1).any())
        assert 0 <= u.min() < u.max() < 1
    top = [(u.double() == 1 - GRAIN["bfloat16"]).double().mean() for u in (ours, theirs)]
    assert torch.allclose(*top, atol=0.003)
    assert grained(torch.tensor([1 - 1e-15, 1e-15], dtype=FLOAT64), FLOAT32).tolist() == [1 - 2**-24, 0.0]


def share_of_wins(q: float, dtype: torch.dtype) -> float:
    """P(a token of weight q wins against a mask of weight 1 - q), by listing the noise of both: no draw is random."""
    cells, tail = 250, torch.arange(1, 2001, dtype=FLOAT64) - 0.5
    fine = 12 * q / len(tail)  # of the token only u above 1 - 12 q can win, but for e^-12
    token, mask = torch.cartesian_prod(1 - fine * tail, (torch.arange(cells).double() + 0.5) / cells).unbind(-1)
    rows = len(token)
    log_p, share = torch.zeros(rows, 1, dtype=FLOAT64), torch.full((rows,), q, dtype=FLOAT64)
    winner = reverse(log_p, share, torch.stack([token, mask], dim=-1), dtype)
    return fine * (winner == 0).sum().item() / cells


@pytest.mark.parametrize("q", [5e-9, 2.0**-24, 3e-7, 1e-5])
def test_a_rare_token_loses_what_the_grain_of_float32_cuts_off(q):
    """The closed form, which the entropies below rest on, of the race itself: against the mask."""
    expected = GRAIN["float32"] / math.expm1(GRAIN["float32"] / q)
    assert share_of_wins(q, FLOAT32) == pytest.approx(expected, rel=0.02, abs=1e-4 * q)
    assert share_of_wins(q, FLOAT64) == pytest.approx(q, rel=0.005)


def test_likely_tokens_are_drawn_by_their_probability_in_any_precision():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=FLOAT64)
    for dtype in (FLOAT32, FLOAT64):
        winners = race(p.expand(N, -1), uniforms(1, 0, torch.arange(N), Purpose.UNMASK, (4,)), dtype)
        assert chi_square(torch.bincount(winners, minlength=4), p) < FAR


# ---------------------------------------------------------------- the entropy of a large vocabulary


def raced_distribution(p: Tensor, steps: int, grain: float) -> Tensor:
    """Return the distribution of one position after `steps` reverse steps of one race each, in closed form."""
    distribution, masked = torch.zeros_like(p), 1.0
    for i in range(steps, 0, -1):
        wins = grain / torch.expm1(grain * i / p)
        if i == 1:  # the mask has no weight any more
            wins = wins / wins.sum()
        distribution, masked = distribution + masked * wins, masked * (1 - wins.sum().item())
    return distribution


def test_entropy_falls_with_the_number_of_steps_in_float32_and_not_in_float64():
    exact = entropy(ZIPF)
    lost = [exact - entropy(raced_distribution(ZIPF, steps, GRAIN["float32"])) for steps in (1, 16, 256)]
    assert lost[0] > 0.005
    assert all(more > 2 * fewer for fewer, more in itertools.pairwise(lost))
    assert lost[-1] > 0.5
    assert abs(exact - entropy(raced_distribution(ZIPF, 16, GRAIN["float64"]))) < 1e-7


def test_our_draws_keep_the_whole_vocabulary_at_its_probability():
    """The cells of the inverse CDF are the probabilities, to the last token, and do not know the number of steps."""
    log_p = ZIPF.flip(0).log()[None]
    edges = log_p.double().exp().cumsum(dim=-1)
    inside = edges - log_p.exp() / 2
    tokens, _ = equations.draw(log_p, inside)
    assert torch.equal(tokens[0], torch.arange(VOCABULARY))
    cells = edges.diff(dim=-1, prepend=torch.zeros(1, 1, dtype=FLOAT64))[0]
    assert entropy(cells) == pytest.approx(entropy(ZIPF), abs=1e-9)


def marginal(sampler: Sampler | PublishedSampler, p: Tensor, count: int) -> Tensor:
    """The frequencies of the tokens that a sampler writes when every position has the distribution p."""
    canvas = torch.full((count // 8, 8), len(p))
    texts = sampler.sample(canvas, Same(p), None, LogLinear(), torch.arange(len(canvas)))
    return torch.bincount(texts.flatten(), minlength=len(p)) / count


def test_the_whole_sampler_loses_entropy_with_its_steps_in_low_precision_alone():
    """In bfloat16, whose grain is 2^-8, so that a vocabulary of 100 is large enough and the texts few."""
    p, count = zipf(100), 800
    actual = {
        (steps, how): entropy(marginal(sampler, p, count))
        for steps in (1, 4, 16)
        for how, sampler in {
            "low": PublishedSampler(sampler=Sampler(steps=steps), precision="bfloat16"),
            "high": PublishedSampler(sampler=Sampler(steps=steps), precision="float64"),
            "ours": Sampler(steps=steps),
        }.items()
    }
    error = 0.04  # the standard error of these entropies: 1.1 nats of spread over 800 tokens
    assert actual[1, "high"] - actual[1, "low"] > 4 * error
    assert actual[1, "low"] - actual[4, "low"] > 6 * error
    assert actual[4, "low"] - actual[16, "low"] > 6 * error
    for steps in (1, 4, 16):
        assert abs(actual[steps, "high"] - actual[1, "ours"]) < 4 * error
        assert abs(actual[steps, "ours"] - actual[1, "ours"]) < 4 * error


def test_candidates_are_raced_without_the_mask_so_that_uniform_weights_restore_entropy():
    """In low precision k candidates with uniform weights are NOT plain diffusion: drafts lose less of the tail."""
    p, count = zipf(100), 800
    canvas = torch.full((count // 8, 8), len(p))
    plain, control = (
        PublishedSampler(sampler=Sampler(steps=16, candidates=k), precision="bfloat16").sample(
            canvas, Same(p), Uniform(), LogLinear(), torch.arange(len(canvas))
        )
        for k in (1, 2)
    )
    assert entropy(torch.bincount(control.flatten()) / count) > entropy(torch.bincount(plain.flatten()) / count) + 0.5


# ---------------------------------------------------------------- where it is our sampler


def counts(texts: Tensor) -> Tensor:
    powers = DENSE.vocabulary ** torch.arange(DENSE.length - 1, -1, -1)
    return torch.bincount((texts * powers).sum(dim=1), minlength=len(DENSE.texts))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=["log-linear", "cosine"])
@pytest.mark.parametrize("canvas", [(3, 3, 3), (3, 1, 3)])
def test_on_a_small_vocabulary_a_plain_step_of_the_published_sampler_is_plain_diffusion(precision, schedule, canvas):
    reader, sampler, xt = Marginals(DENSE, 0.1, 0.3), Sampler(steps=3), torch.tensor(canvas)
    published = PublishedSampler(sampler=sampler, precision=precision)
    texts = published.sample(xt.repeat(N, 1), reader, None, schedule, torch.arange(N))
    assert bool((texts[:, xt != 3] == xt[xt != 3]).all())
    assert chi_square(counts(texts), sampler_distribution(DENSE, reader, None, sampler, schedule, xt)) < FAR


def test_scored_candidates_follow_the_distribution_of_one_of_k_and_single_tokens_are_resampled():
    """T = 1 and one token to fill: here ours does not resample, and the published generator does."""
    reader, energy, k = Marginals(DENSE, mix=0.4), Residual(DENSE, whole_sequence=True), 3
    for canvas in (torch.tensor([3, 3, 3]), torch.tensor([3, 1, 3]), torch.tensor([3, 1, 2])):
        published = PublishedSampler(sampler=Sampler(steps=1, candidates=k))
        texts = published.sample(canvas.repeat(N, 1), reader, energy, LogLinear(), torch.arange(N))
        masked = canvas == 3
        drafts, log_p, energies = Step(DENSE, reader, energy, k).drafts(canvas, 1.0, masked)
        distribution = torch.zeros(len(DENSE.texts), dtype=FLOAT64)
        distribution[(drafts * torch.tensor([9, 3, 1])).sum(dim=1)] = resampled(
            log_p.sum(dim=1).exp(), energies[:, 0], k
        )
        assert chi_square(counts(texts), distribution) < FAR
        plain = sampler_distribution(DENSE, reader, None, Sampler(steps=1), LogLinear(), canvas)
        assert chi_square(counts(texts), plain) > FAR + 1


def test_low_energy_is_what_is_kept_and_candidates_meet_their_own_sequence():
    """The two errors of the released loop that are not reproduced: the sign, and the order of the batch."""

    class Prefers:
        """Low energy for the row's own token, which stands at its first position."""

        whole_sequence, block = True, None

        def __call__(self, x, xt, t, log_p, context):
            return 50.0 * (x[..., 1] != xt[:, None, 0]).double()[..., None]

    canvas = torch.tensor([[row % 3, 3, 3] for row in range(300)])
    published = PublishedSampler(sampler=Sampler(steps=1, candidates=32))
    texts = published.sample(
        canvas, Same(torch.full((3,), 1 / 3, dtype=FLOAT64)), Prefers(), LogLinear(), torch.arange(300)
    )
    assert bool((texts[:, 1] == canvas[:, 0]).all())


def test_outside_the_window_a_step_is_plain():
    reader, energy = Marginals(DENSE, 0.1, 0.3), Residual(DENSE, whole_sequence=True)
    canvas, seeds = DENSE.canvas(50), torch.arange(50)

    def steps_of(window: tuple[float, float]) -> list[StepResult]:
        results: list[StepResult] = []
        sampler = PublishedSampler(sampler=Sampler(steps=4, candidates=3, window=window))
        sampler.sample(canvas, reader, energy, LogLinear(), seeds, on_step=results.append)
        return results

    calls = [int(step.energy_calls.max()) for step in steps_of((0.6, 1.0))]
    assert calls == [3, 3, 0, 0, 0]
    assert all(step.energies is None for step in steps_of((0.0, 0.0)))


def test_a_row_depends_on_its_own_canvas_and_seed_alone():
    net, sampler = denoiser(5), PublishedSampler(sampler=Sampler(steps=4, candidates=3, window=(0.0, 0.6)))
    canvas = torch.where(torch.rand(6, 12, generator=torch.Generator().manual_seed(0)) < 0.7, 5, 2)
    seeds = torch.arange(6)
    together = sampler.sample(canvas, net, Constant(1.0), LogLinear(), seeds)
    for row in range(6):
        row_ = slice(row, row + 1)
        assert torch.equal(sampler.sample(canvas[row_], net, Constant(1.0), LogLinear(), seeds[row_]), together[row_])
    assert int(together.max()) < 5
    assert torch.equal(together[canvas == 2], canvas[canvas == 2])


@pytest.mark.parametrize(
    ("reader", "energy", "sampler", "end"),
    [
        (BrokenReader(DENSE), None, Sampler(steps=2), 1e-5),
        (BrokenReader(DENSE), None, Sampler(steps=1), 1.0),  # everything is left to the likeliest token
        (BrokenReader(DENSE), Residual(DENSE, whole_sequence=True), Sampler(steps=2, candidates=3), 1e-5),
        (Marginals(DENSE), BrokenEnergy(DENSE, whole_sequence=True), Sampler(steps=2, candidates=3), 1e-5),
    ],
)
def test_a_row_whose_numbers_are_none_is_named_and_the_others_are_as_they_would_be_alone(reader, energy, sampler, end):
    published, mask = PublishedSampler(sampler=sampler, end=end), DENSE.mask
    canvas = torch.tensor([[0, mask, mask], [2, mask, mask], [1, mask, mask]])
    with pytest.raises(NonFiniteRows, match=r"rows \[1\] of 3 are not numbers") as raised:
        published.sample(canvas, reader, energy, LogLinear(), torch.arange(3))
    alone = published.sample(canvas[[0, 2]], reader, energy, LogLinear(), torch.tensor([0, 2]))
    assert torch.equal(raised.value.x[[0, 2]], alone)


def test_time_ends_at_end_and_the_rest_becomes_the_likeliest_token():
    p = torch.tensor([0.2, 0.45, 0.35], dtype=FLOAT64)
    reader, results = Same(p), []
    published = PublishedSampler(sampler=Sampler(steps=2), end=0.3)
    texts = published.sample(torch.full((2000, 4), 3), reader, None, LogLinear(), torch.arange(2000), results.append)
    assert [step.t[0].item() for step in results] == pytest.approx([1.0, 0.65, 0.3])
    rest = results[-1].unmasked
    assert rest.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert bool((texts[rest] == 1).all())
    actual = torch.bincount(texts.flatten(), minlength=3)
    assert chi_square(actual, 0.7 * p + 0.3 * torch.tensor([0, 1, 0])) < FAR


# ---------------------------------------------------------------- tables and refusals


def test_entropy_against_steps_is_a_table_in_nats_and_bits_with_every_row_labelled():
    p = zipf(200)
    canvas = torch.full((20, 64), 200)
    rows = entropy_against_steps(canvas, Same(p), LogLinear(), steps=(1, 16), seed=0, precision="bfloat16")
    assert [(row.steps, row.sampler) for row in rows] == [
        (steps, label) for steps in (1, 16) for label in (EXACT_LABEL, "published sampler, bfloat16 race")
    ]
    by = {(row.steps, row.sampler): row for row in rows}
    for row in rows:
        assert row.entropy_bits == pytest.approx(row.entropy_nats / math.log(2))
        assert 0 < row.standard_error < 0.1
    few, many = (by[steps, EXACT_LABEL].entropy_nats - by[steps, rows[1].sampler].entropy_nats for steps in (1, 16))
    assert many > few + 0.2
    again = entropy_against_steps(canvas, Same(p), LogLinear(), steps=(1, 16), seed=0, precision="bfloat16")
    assert rows == again


def test_the_error_of_a_single_text_is_not_known():
    (row, _) = entropy_against_steps(torch.full((1, 6), 3), Same(zipf(3)), LogLinear(), steps=(1,), seed=0)
    assert math.isnan(row.standard_error)


def test_step_energies_and_exact_sampling_are_refused_with_a_way_out():
    published = PublishedSampler(sampler=Sampler(steps=2, candidates=2))
    with pytest.raises(ValueError, match=r"Residual scores the tokens of a step.*use Sampler"):
        published.sample(DENSE.canvas(2), Marginals(DENSE), Residual(DENSE, False), LogLinear(), torch.arange(2))
    with pytest.raises(ConfigurationError, match=r"sampler.candidates is 0 .* k >= 1"):
        parse(PublishedSampler, {"sampler": {"steps": 2, "candidates": 0}})
    with pytest.raises(ConfigurationError, match="precision"):
        parse(PublishedSampler, {"sampler": {"steps": 2}, "precision": "float16"})


def test_it_is_a_configuration_and_states_what_it_is():
    published = PublishedSampler(sampler=Sampler(steps=2))
    assert parse(PublishedSampler, plain(published)) == published
    assert "precision: float32" in dump(published)
    assert published.label == "published sampler, float32 race"
