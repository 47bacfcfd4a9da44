"""What each estimate asks of the networks, from which streams, and what it makes of the answers: recomputed here."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from edlm.cooperative_work import run_to_end
from edlm.energies.whole_sequence import CarryOverEnergy
from edlm.interfaces import Model
from edlm.likelihood.bounds import (
    autoregressive_nll,
    nelbo,
    sampler_bound,
    step_bound,
    step_nll,
    stepwise_sampler_bound,
)
from edlm.likelihood.estimate import Estimate, difference
from edlm.likelihood.log_partition import log_partition
from edlm.likelihood.paper_estimator import paper_estimate
from edlm.rng import Purpose, seeds, uniforms
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from tests.worlds import Conditional, EnumeratedAutoregressive, Marginals, OnProposal, Residual, cartesian, world

DENSE = world("dense", length=4, seed=1)
M, L, V = DENSE.mask, DENSE.length, DENSE.vocabulary
READER = Marginals(DENSE, mix=0.1, drift=0.3)
COAR = CarryOverEnergy(EnumeratedAutoregressive(DENSE), M)  # pyright: ignore[reportArgumentType]
KINDS = {
    "whole drafts": Residual(DENSE, whole_sequence=True),
    "a step": Residual(DENSE, whole_sequence=False),
    "a step in blocks": Residual(DENSE, whole_sequence=False, block=3),
    "on a proposal": OnProposal(DENSE, world("dense", length=4, seed=5)),
}


class RecordingEnergy:
    """Hands on what it is asked, and keeps it."""

    def __init__(self, energy) -> None:
        self.energy, self.whole_sequence, self.block = energy, energy.whole_sequence, energy.block
        self.proposal = getattr(energy, "proposal", None)
        self.asked: list[tuple[Tensor, ...]] = []

    def __call__(self, *arguments: Tensor) -> Tensor:
        self.asked.append(arguments)
        return self.energy(*arguments)


class RecordingDenoiser(Marginals):
    """Keeps what was read."""

    def __init__(self) -> None:
        super().__init__(DENSE, mix=0.1, drift=0.3)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def read(self, xt: Tensor, t: Tensor) -> Tensor:
        self.seen.append((xt, t))
        return super().read(xt, t)


def of(energy) -> Model:
    return Model(READER, energy, LogLinear())


def rows():
    """Every text with some of it masked and some of that new: all of it, nothing, one token, and at random."""
    g = torch.Generator().manual_seed(0)
    x0 = DENSE.texts
    masked = torch.rand(x0.shape, generator=g) < 0.8
    new = masked & (torch.rand(x0.shape, generator=g) < 0.7)
    masked[::5], new[::5] = True, True
    return x0, torch.where(masked, M, x0), new, torch.rand(len(x0), generator=g, dtype=torch.float64)


def drawn(distribution: Tensor, u: Tensor) -> Tensor:
    """A token for each position by its distribution function: distribution [b l v], u [b l]."""
    return (u[..., None] >= distribution.exp().cumsum(-1)).sum(-1).clamp(max=V - 1)


@pytest.mark.parametrize("name", KINDS)
def test_every_candidate_is_drawn_by_its_own_numbers_and_the_true_one_holds_the_truth_where_it_is_unmasked(name):
    x0, xt, new, t = rows()
    repeats, k, energy = 2, 3, RecordingEnergy(KINDS[name])
    u = torch.rand(len(x0), repeats, k, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step_nll(x0, xt, new, t, of(energy), k, 1.0, u)
    ((x, told_xt, told_t, log_p, context),) = energy.asked
    assert torch.equal(told_xt, xt)
    assert torch.equal(told_t, t)
    torch.testing.assert_close(context, READER.read(xt, t))
    x, log_p = x.unflatten(1, (repeats, k)), log_p.unflatten(1, (repeats, k))
    filled = (xt == M) if energy.whole_sequence else new
    for r, j in itertools.product(range(repeats), range(k)):
        if energy.proposal is None:
            tokens = drawn(context, u[:, r, j])
        else:
            tokens = run_to_end(energy.proposal.draw(xt, new, context, u[:, r, j]))[0]
        expected = torch.where(filled, tokens, xt)
        expected = torch.where(new, x0, expected) if j == 0 else expected
        assert torch.equal(x[:, r, j], expected), (r, j)
        if energy.proposal is None:
            each = context.gather(-1, expected.clamp(max=V - 1)[..., None])[..., 0]
            groups = torch.where(filled, each, 0.0).split(energy.block or L, dim=-1)
            torch.testing.assert_close(log_p[:, r, j], torch.stack([group.sum(-1) for group in groups], -1))
        else:
            nats = energy.proposal.log_p(expected[:, None], xt, context)
            torch.testing.assert_close(log_p[:, r, j], nats)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_costs_as_its_weights_imply_in_every_group_with_two_new_tokens(name, temperature):
    x0, xt, new, t = rows()
    repeats, k, energy = 2, 3, RecordingEnergy(KINDS[name])
    u = torch.rand(len(x0), repeats, k, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = step_nll(x0, xt, new, t, of(energy), k, temperature, u)
    assert actual.dtype == torch.float64
    ((x, _, _, _, context),) = energy.asked
    e = energy.energy(*energy.asked[0]).unflatten(1, (repeats, k))
    truth = context.gather(-1, x0[..., None])[..., 0]
    for row in range(len(x0)):
        nats = 0.0
        for group, members in enumerate(torch.arange(L).split(energy.block or L)):
            mine = members[new[row, members]]
            if energy.proposal is None:
                plain = -truth[row, mine].sum().item()
            else:
                plain = -energy.proposal.log_p(x[row : row + 1, :1], xt[row : row + 1], context[row : row + 1]).item()
            if len(mine) > 1:
                v = (-e[row, :, :, group] / temperature).exp()
                ratios = k * v[:, 0] / v.sum(dim=1)
                plain -= math.log(ratios.mean().item()) if ratios.any() else -math.inf
            nats += plain
        assert actual[row].item() == pytest.approx(nats)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
def test_the_nelbo_is_the_mean_over_noise_of_its_own_draw_row_and_position(schedule):
    reader, draws, x0 = RecordingDenoiser(), 3, DENSE.texts
    actual = nelbo(x0, reader, schedule, seed=7, draws=draws)
    total = torch.zeros(len(x0), dtype=torch.float64)
    row = torch.arange(len(x0))
    for i, (xt, t) in enumerate(reader.seen):
        assert torch.equal(t, (uniforms(7, 0, row, Purpose.TIME) + i / draws) % 1)
        masked = uniforms(7, i, row, Purpose.MASK, (L,)) >= schedule.alpha(t)[:, None]
        assert torch.equal(xt, torch.where(masked, M, x0))
        nll = -READER.read(xt, t).gather(-1, x0[..., None])[..., 0]
        total += schedule.weight(t) * (nll * masked).sum(dim=1)
    assert len(reader.seen) == draws
    assert actual.values.dtype == torch.float64
    torch.testing.assert_close(actual.values, total / draws, rtol=1e-12, atol=1e-12)
    assert actual.draws == draws


def test_the_paper_estimate_is_its_formula_on_the_noise_of_the_nelbo():
    x0, draws, n, reader = DENSE.texts, 2, 5, RecordingDenoiser()
    energy = RecordingEnergy(KINDS["whole drafts"])
    actual = paper_estimate(x0, reader, energy, Cosine(), 7, draws, log_partition_draws=n)
    known = paper_estimate(x0, RecordingDenoiser(), COAR, Cosine(), 7, draws, log_partition_draws=None)
    values, of_coar = torch.zeros(2, len(x0), dtype=torch.float64)
    row = torch.arange(len(x0))
    for i, (xt, t) in enumerate(reader.seen):
        assert torch.equal(t, (uniforms(7, 0, row, Purpose.TIME) + i / draws) % 1)
        context, masked, w = READER.read(xt, t), xt == M, Cosine().weight(t)
        assert torch.equal(masked, uniforms(7, i, row, Purpose.MASK, (L,)) >= Cosine().alpha(t)[:, None])
        log_p = (context.gather(-1, x0[..., None])[..., 0] * masked).sum(dim=1)
        u = uniforms(7, i, row, Purpose.NEGATIVE, (n, L))
        x = torch.where(masked[:, None], drawn(context[:, None], u), xt[:, None])
        assert torch.equal(energy.asked[2 * i + 1][0], x)
        log_z = (-energy.energy(x, xt, t, log_p, context)[..., 0]).logsumexp(dim=1) - math.log(n)
        e = energy.energy(x0[:, None], xt, t, log_p, context)[:, 0, 0]
        values += w * (-log_p + e + log_z) / draws
        of_coar += w * (-log_p + COAR(x0[:, None], xt, t, log_p[:, None, None], context)[:, 0, 0]) / draws
    torch.testing.assert_close(actual.values, values)
    torch.testing.assert_close(known.values, of_coar)
    assert actual.draws == known.draws == draws


@pytest.mark.parametrize("name", ["whole drafts", "a step in blocks"])
def test_both_ends_of_log_z_are_those_of_its_drafts_summed_over_groups(name):
    x0, draws, n, reader, energy = DENSE.texts, 2, 4, RecordingDenoiser(), KINDS[name]
    actual = log_partition(x0, Model(reader, energy, LogLinear()), 7, draws, n)
    expected = torch.zeros(2, len(x0), dtype=torch.float64)
    for i, (xt, t) in enumerate(reader.seen):
        context, u = READER.read(xt, t), uniforms(7, i, torch.arange(len(x0)), Purpose.NEGATIVE, (n, L))
        x = torch.where((xt == M)[:, None], drawn(context[:, None], u), xt[:, None])
        log_v = -energy(x, xt, t, torch.zeros(len(x0), n, 1), context)
        low = log_v.logsumexp(dim=1) - math.log(n)
        fewer = [
            log_v[:, [j for j in range(n) if j != out]].logsumexp(dim=1) - math.log(n - 1) for out in range(n)
        ]  # fmt: skip
        high = (2 * n - 1) * low - 2 * (n - 1) * sum(fewer) / n
        expected += torch.stack([low.sum(dim=1), high.sum(dim=1)]) / draws
    for end, values in zip(actual, expected, strict=True):
        torch.testing.assert_close(end.values, values)
        assert end.draws == draws


WAYS = {
    "plain": (None, Sampler(steps=3)),
    "a step": (KINDS["a step"], Sampler(steps=3, candidates=3)),
    "whole drafts in a window": (KINDS["whole drafts"], Sampler(steps=3, candidates=3, window=(0.0, 0.5))),
    "on a proposal": (KINDS["on a proposal"], Sampler(steps=2, candidates=2)),
    "exact": (COAR, Sampler(steps=2, candidates=EXACT)),
    "another grid": (None, Sampler(steps=2, grid=(0.0, 0.3, 1.0))),
    "most certain": (KINDS["a step"], Sampler(steps=3, candidates=2, unmasking=MostCertain())),
    "remasking": (None, Sampler(steps=4, unmasking=Remasking(share=0.8))),
}
ways = pytest.mark.parametrize("name", WAYS)


@ways
def test_a_bound_is_the_mean_over_its_paths_and_each_path_has_noise_of_its_own(name):
    energy, sampler = WAYS[name]
    x0 = DENSE.texts[::3]
    first, two, three = (
        sampler_bound(x0, READER, energy, Cosine(), sampler, seed=4, draws=draws, repeats=2) for draws in (1, 2, 3)
    )
    second, third = 2 * two.values - first.values, 3 * three.values - 2 * two.values
    assert not torch.allclose(first.values, second)
    assert not torch.allclose(second, third)
    assert not torch.allclose(third, first.values)
    assert three.values.dtype == torch.float64
    assert three.draws == 3
    assert (second > 0).all()


@ways
def test_rows_of_a_longer_list_get_the_numbers_that_they_get_in_it(name):
    energy, sampler = WAYS[name]
    x0 = DENSE.texts[::3]
    whole = sampler_bound(x0, READER, energy, LogLinear(), sampler, seed=4, draws=2, repeats=2).values
    parts = [
        run_to_end(stepwise_sampler_bound(x0[a:b], of(energy), sampler, 4, 2, 2, first_row=a)).values
        for a, b in ((0, 5), (5, 6), (6, len(x0)))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    again = sampler_bound(x0[:1].expand(9, -1), READER, energy, LogLinear(), sampler, 4, 2, 2).values
    assert len(again.unique()) > 3  # equal texts at different rows have different noise


def test_rows_of_a_longer_list_get_their_own_times_and_masks_in_the_nelbo():
    whole = nelbo(DENSE.texts, READER, LogLinear(), seed=4, draws=2).values
    parts = [nelbo(DENSE.texts[a:b], READER, LogLinear(), 4, 2, first_row=a).values for a, b in ((0, 30), (30, 81))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


def test_the_other_candidates_of_a_step_are_keyed_by_seed_step_row_and_path():
    x0, xt, new, _ = rows()
    new[3] = False
    energy, sampler = RecordingEnergy(KINDS["a step"]), Sampler(steps=4, candidates=3)
    actual = step_bound(x0, xt, new, 0.75, 3, of(energy), sampler, seed=9, draw=2, repeats=2, first_row=11)
    moving = torch.nonzero(new.any(dim=1))[:, 0]
    t = torch.full((len(moving),), 0.75, dtype=torch.float64)
    u = uniforms(seeds(9, 3, 11 + moving, Purpose.REPEAT), 2, 0, Purpose.CANDIDATE, (2, 3, L))
    expected = torch.zeros(len(x0), dtype=torch.float64)
    expected[moving] = step_nll(x0[moving], xt[moving], new[moving], t, of(KINDS["a step"]), 3, 1.0, u)
    torch.testing.assert_close(actual, expected)
    assert torch.equal(energy.asked[0][2], t)
    assert actual[3] == 0


@pytest.mark.parametrize(("window", "inside"), [((0.5, 0.75), True), ((0.75, 1.0), True), ((0.0, 0.75), True),
                                                ((0.76, 1.0), False), ((0.0, 0.74), False)])  # fmt: skip
def test_a_step_resamples_if_its_time_lies_in_the_window_ends_included(window, inside):
    x0, xt, new, _ = rows()
    energy = RecordingEnergy(KINDS["a step"])
    sampler = Sampler(steps=4, candidates=3, window=window)
    step_bound(x0, xt, new, 0.75, 3, of(energy), sampler, seed=9, draw=0, repeats=1)
    assert bool(energy.asked) == inside


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_exact_step_of_coar_averages_the_probability_of_the_truth_over_what_stands_left_of_it(repeats):
    x0, xt, new, t = rows()
    u = torch.rand(len(x0), repeats, 1, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = step_nll(x0, xt, new, t, of(COAR), EXACT, 1.0, u)
    for row in range(0, len(x0), 7):
        ways = []
        for r in range(repeats):
            text, nats = xt[row].clone(), 0.0
            for at in range(L):
                prefix = torch.where(torch.arange(L) < at, text, M)
                distribution = DENSE.next_token(prefix, at)
                if new[row, at]:
                    text[at] = x0[row, at]
                    nats += distribution[text[at]].item()
                elif text[at] == M:
                    text[at] = drawn(distribution[None, None], u[row, r, 0, at][None, None])[0, 0]
            ways.append(math.exp(nats))
        assert actual[row].item() == pytest.approx(-math.log(sum(ways) / repeats))


def test_the_exact_step_of_a_conditional_energy_is_its_own_distribution_whatever_the_denoiser():
    x0, xt, new, t = rows()
    actual = step_nll(x0, xt, new, t, of(Conditional(DENSE)), EXACT, 1.0, torch.zeros(len(x0), 1, 1, L).double())
    torch.testing.assert_close(actual, -DENSE.log_conditional(torch.where(new, x0, xt), xt))


def test_an_estimate_of_one_sequence_has_a_mean_and_no_error_and_of_many_the_error_of_their_mean():
    assert math.isnan(Estimate(torch.tensor([2.0]).double(), 1).standard_error)
    two = Estimate(torch.tensor([1.0, 4.0]).double(), 5)
    assert (two.mean, two.standard_error) == (2.5, pytest.approx(1.5))
    assert difference(two, Estimate(torch.zeros(2).double(), 3)).draws == 3


def test_the_autoregressive_nll_is_that_of_every_token():
    texts = cartesian(V, L)
    actual = autoregressive_nll(texts, EnumeratedAutoregressive(DENSE))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(actual.values.neg().exp(), DENSE.p)
    assert (actual.draws, actual.values.dtype) == (1, torch.float64)
