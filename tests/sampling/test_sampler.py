"""A step is what its text says, row by row and group by group, by numbers of its own streams; it says what it did."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from edlm.config import ConfigurationError, parse
from edlm.cooperative_work import run_to_end
from edlm.energies.whole_sequence import CarryOverEnergy
from edlm.interfaces import Model
from edlm.rng import Purpose, uniforms
from edlm.sampling.sampler import LEAST_TEMPERATURE, Sampler
from edlm.sampling.state import NonFiniteRows
from edlm.sampling.unmasking import AtRandom, Remasking
from edlm.schedule import Cosine
from tests.worlds import Conditional, EnumeratedAutoregressive, Marginals, OnProposal, Residual, world

DENSE = world("dense", length=4, seed=1)
M, L, V = DENSE.mask, DENSE.length, DENSE.vocabulary
READER = Marginals(DENSE, mix=0.1, drift=0.3)
COAR = CarryOverEnergy(EnumeratedAutoregressive(DENSE), M)  # pyright: ignore[reportArgumentType]
ROWS = 60
KINDS = {
    "whole drafts": Residual(DENSE, whole_sequence=True),
    "a step": Residual(DENSE, whole_sequence=False),
    "a step in blocks": Residual(DENSE, whole_sequence=False, block=3),
    "pairs": Residual(DENSE, whole_sequence=False, block=2),
    "on a proposal": OnProposal(DENSE, world("dense", length=4, seed=5)),
}


def situation():
    """Rows at times of their own, some blank, some whole, the rest partly masked."""
    g = torch.Generator().manual_seed(0)
    x0 = DENSE.texts[torch.randint(len(DENSE.texts), (ROWS,), generator=g)]
    masked = torch.rand(x0.shape, generator=g) < 0.8
    masked[0], masked[1] = True, False
    t = 0.3 + 0.7 * torch.rand(ROWS, generator=g, dtype=torch.float64)
    s = t * torch.rand(ROWS, generator=g, dtype=torch.float64)
    s[::4] = 0
    index, seeds = torch.randint(1, 9, (ROWS,), generator=g), torch.randint(2**40, (ROWS,), generator=g)
    return torch.where(masked, M, x0), t, s, index, seeds


def drawn(distribution: Tensor, u: Tensor) -> Tensor:
    """A token for each position by its distribution function: distribution [... v], u [...]."""
    return (u[..., None] >= distribution.exp().cumsum(-1)).sum(-1).clamp(max=V - 1)


def unmasked_of(xt, t, s, index, seeds) -> Tensor:
    """U of a step of the noise process."""
    share = (Cosine().alpha(s) - Cosine().alpha(t)) / (1 - Cosine().alpha(t))
    return (xt == M) & (uniforms(seeds, index, 0, Purpose.UNMASK, (L,)) < share[:, None])


@pytest.mark.parametrize("energy", [None, *KINDS.values(), Conditional(DENSE)])
def test_a_plain_step_draws_each_unmasked_token_by_its_own_number(energy):
    rows = xt, t, s, index, seeds = situation()
    result = Sampler(steps=9).step(xt, t, s, index, seeds, Model(READER, energy, Cosine()))
    new = unmasked_of(*rows)
    tokens = drawn(READER.read(xt, t), uniforms(seeds, index, 0, Purpose.CANDIDATE, (1, L))[:, 0])
    assert torch.equal(result.xs, torch.where(new, tokens, xt))
    assert torch.equal(result.unmasked, new)
    assert torch.equal(result.denoiser_calls, new.any(dim=1).long())
    assert torch.equal(result.t, t)
    assert torch.equal(result.s, s)
    groups = math.ceil(L / ((energy.block if energy else None) or L))
    assert torch.equal(result.picked, torch.zeros(ROWS, groups, dtype=torch.long))
    assert result.energies is None
    assert not result.energy_calls.any()
    assert not result.broken.any()
    assert not result.accepted.any()
    assert bool((result.ess == 1).all())
    assert bool((result.distinct == 1).all())


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_keeps_of_each_group_with_two_new_tokens_one_candidate_by_its_weight(name, temperature):
    rows = xt, t, s, index, seeds = situation()
    k, energy = 4, KINDS[name]
    sampler = Sampler(steps=9, candidates=k, energy_temperature=temperature, window=(0.4, 0.95))
    result = sampler.step(xt, t, s, index, seeds, Model(READER, energy, Cosine()))
    new, context = unmasked_of(*rows), READER.read(xt, t)
    u = uniforms(seeds, index, 0, Purpose.CANDIDATE, (k, L))
    groups = torch.arange(L).split(energy.block or L)
    u_pick = uniforms(seeds, index, 0, Purpose.PICK, (len(groups),))
    proposal = getattr(energy, "proposal", None)
    if proposal is None:
        tokens = drawn(context[:, None], u)
    else:
        tokens = torch.stack([run_to_end(proposal.draw(xt, new, context, u[:, j]))[0] for j in range(k)], dim=1)
    kinds, energies = set(), result.energies
    assert energies is not None
    for row in range(ROWS):
        joint = [int(new[row, at].sum()) > 1 for at in groups]
        asks = any(joint) or (proposal is not None and bool(new[row].any()))
        if not (asks and 0.4 <= t[row] <= 0.95):
            plain = drawn(context, uniforms(seeds, index, 0, Purpose.CANDIDATE, (1, L))[:, 0])[row]
            assert torch.equal(result.xs[row], torch.where(new[row], plain, xt[row]))
            assert (result.energy_calls[row], result.ess[row], result.distinct[row]) == (0, 1, 1)
            assert energies[row].isnan().all()
            continue
        filled = (xt[row] == M) if energy.whole_sequence else new[row]
        x = torch.where(filled, tokens[row], xt[row])
        shown = x.clone()
        if not energy.whole_sequence:  # what is not scored stays masked
            for at, weighed in zip(groups, joint, strict=True):
                shown[:, at] = shown[:, at] if weighed else xt[row, at]
        alone = slice(row, row + 1)
        log_p = torch.zeros(1, k, len(groups))
        e = energy(shown[None], xt[alone], t[alone], log_p, context[alone])[0]
        expected, effective = xt[row].clone(), []
        for g, at in enumerate(groups):
            v = (-e[:, g] / temperature).exp()
            v = torch.ones(k, dtype=v.dtype) if not v.any() else v
            share = v / v.sum()
            keep = int((u_pick[row, g] >= share.cumsum(0)[:-1]).sum()) if joint[g] else 0
            expected[at] = torch.where(new[row, at], x[keep, at], expected[at])
            assert result.picked[row, g] == keep
            if joint[g]:
                torch.testing.assert_close(energies[row, :, g], e[:, g])
                effective.append(1 / (share**2).sum().item())
            else:
                assert energies[row, :, g].isnan().all()
        assert torch.equal(result.xs[row], expected)
        assert result.energy_calls[row] == k
        assert result.ess[row].item() == pytest.approx(sum(effective) / len(effective) if effective else 1)
        assert result.distinct[row] == len(shown.unique(dim=0))
        kinds.add(tuple(joint))
    assert len(kinds) == {"pairs": 3, "on a proposal": 2}.get(name, 1)  # a proposal is asked for one token, too
    assert torch.equal(result.unmasked, new)
    assert torch.equal(result.denoiser_calls, new.any(dim=1).long())


@pytest.mark.parametrize("energy", [Conditional(DENSE), COAR])
def test_an_exact_step_draws_by_the_same_numbers_and_a_verified_one_by_two_more(energy):
    rows = xt, t, s, index, seeds = situation()
    new, context = unmasked_of(*rows), READER.read(xt, t)
    last = torch.where(new, torch.arange(L), -1).max(dim=1, keepdim=True).values
    filled = ((xt == M) & (torch.arange(L) <= last)) if energy.whole_sequence else new
    u = {p: uniforms(seeds, index, 0, p, (1, L))[:, 0] for p in (Purpose.CANDIDATE, Purpose.KEEP, Purpose.REDRAW)}
    exact = run_to_end(energy.draw(xt, filled, context, u[Purpose.CANDIDATE]))[0]
    result = Sampler(steps=9, candidates=0).step(xt, t, s, index, seeds, Model(READER, energy, Cosine()))
    assert torch.equal(result.xs, torch.where(new, exact, xt))
    assert torch.equal(result.energy_calls, new.any(dim=1).long())
    assert not result.accepted.any()
    verified = Sampler(steps=9, candidates=0, speculative=True).step(
        xt, t, s, index, seeds, Model(READER, energy, Cosine())
    )  # fmt: skip
    x, kept = xt.clone(), torch.zeros(ROWS, dtype=torch.long)
    draft = drawn(context, u[Purpose.CANDIDATE])
    for at in range(L):
        p_c = energy.distribution(energy.read(torch.where(filled & (torch.arange(L) > at), draft, x), xt, context),
                                  (torch.arange(L) == at).expand(ROWS, -1)).exp()  # fmt: skip
        p = context[:, at].exp()
        keep = u[Purpose.KEEP][:, at] < (p_c / p).gather(1, draft[:, at, None])[:, 0]
        left = (p_c - p).clamp(min=0).cumsum(dim=1)
        again = (u[Purpose.REDRAW][:, at, None] * left[:, -1:] >= left).sum(dim=1).clamp(max=V - 1)
        x[:, at] = torch.where(filled[:, at], torch.where(keep, draft[:, at], again), x[:, at])
        kept += filled[:, at] & keep
    assert torch.equal(verified.xs, torch.where(new, x, xt))
    assert torch.equal(verified.accepted, kept)


def test_what_is_masked_again_is_so_by_numbers_of_its_own():
    xt, t, s, index, seeds = situation()
    given = torch.zeros_like(xt, dtype=torch.bool)
    given[:, 2] = xt[:, 2] != M
    unmasking = Remasking(share=0.9, window=(0.35, 0.9))
    result = Sampler(steps=9, unmasking=unmasking).step(xt, t, s, index, seeds, Model(READER, None, Cosine()), given)
    alpha_t, alpha_s = Cosine().alpha(t), Cosine().alpha(s)
    inside = (t >= 0.35) & (t <= 0.9)
    sigma = torch.where(inside, 0.9 * ((1 - alpha_s) / alpha_t).clamp(max=1), 0.0)
    share = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    new = (xt == M) & (uniforms(seeds, index, 0, Purpose.UNMASK, (L,)) < share[:, None])
    hidden = (xt != M) & ~given & (uniforms(seeds, index, 0, Purpose.REMASK, (L,)) < sigma[:, None])
    tokens = drawn(READER.read(xt, t), uniforms(seeds, index, 0, Purpose.CANDIDATE, (1, L))[:, 0])
    assert hidden.any()
    assert torch.equal(result.xs, torch.where(new, tokens, torch.where(hidden, M, xt)))


@pytest.mark.parametrize("steps", [1, 3, 7, 30])
def test_a_window_from_one_step_to_another_holds_both_and_no_more(steps):
    times = Sampler(steps=steps).times()
    assert times.tolist() == [i / steps for i in range(steps + 1)]
    for low, high in itertools.combinations_with_replacement(range(steps + 1), 2):
        for sampler in (Sampler(steps=steps, window=(low / steps, high / steps)),
                        Sampler(steps=steps, window=(float(times[low]), float(times[high])))):  # fmt: skip
            assert sampler.in_window(times).tolist() == [low <= i <= high for i in range(steps + 1)]
            assert sampler.in_window(times + 1e-10).tolist() == [low <= i <= high for i in range(steps + 1)]
        again = Remasking(share=1.0, window=(low / steps, high / steps))
        sigma = again.shares(times[1:-1], times[:-2], Cosine())[1]
        assert (sigma > 0).tolist() == [low <= i <= high and i > 1 for i in range(1, steps)]


def test_steps_are_taken_from_one_to_zero_between_neighbouring_times_each_with_its_number():
    seen, sampler = [], Sampler(steps=3, grid=(0.0, 0.2, 0.7, 1.0))
    canvas, seeds = DENSE.canvas(5), torch.arange(5)
    texts = sampler.sample(canvas, READER, None, Cosine(), seeds, seen.append)
    assert [(step.t.unique().item(), step.s.unique().item()) for step in seen] == [(1.0, 0.7), (0.7, 0.2), (0.2, 0.0)]
    x = canvas
    for i, step in zip((3, 2, 1), seen, strict=True):
        alone = sampler.step(x, step.t, step.s, torch.full((5,), i), seeds, Model(READER, None, Cosine()))
        assert torch.equal(alone.xs, step.xs)
        x = step.xs
    assert torch.equal(texts, x)


def test_an_infinite_weight_is_no_energy_and_an_impossible_candidate_is():
    class Wild(Residual):
        def __call__(self, x, xt, t, log_p, context):
            e = torch.zeros_like(log_p)
            e[0, 0], e[1], e[2, 1:] = -torch.inf, torch.inf, torch.inf
            return e

    canvas, t = DENSE.canvas(4), torch.ones(4, dtype=torch.float64)
    result = Sampler(steps=1, candidates=3).step(
        canvas, t, 0 * t, torch.ones(4, dtype=torch.long), torch.arange(4), Model(READER, Wild(DENSE, False), Cosine())
    )
    assert result.broken.tolist() == [True, False, False, False]
    assert torch.equal(result.xs[0], canvas[0])
    assert not bool((result.xs[1:] == M).any())
    assert not result.unmasked[0].any()
    assert result.picked[2].tolist() == [0]
    assert result.ess.tolist() == pytest.approx([3, 3, 1, 3])


def test_weights_beyond_float32_still_show_which_energy_is_the_least():
    class Steep(Residual):
        def __call__(self, x, xt, t, log_p, context):
            return torch.tensor([3e34, 1e34, 2e34]).expand(len(x), 3)[:, : x.shape[1], None]

    canvas, t, model = (
        DENSE.canvas(20),
        torch.ones(20, dtype=torch.float64),
        Model(READER, Steep(DENSE, True), Cosine()),
    )
    result = Sampler(steps=1, candidates=3, energy_temperature=LEAST_TEMPERATURE).step(
        canvas, t, 0 * t, torch.ones(20, dtype=torch.long), torch.arange(20), model
    )
    least = result.distinct == 3  # equal candidates share the first one's energy
    assert least.any()
    assert bool((result.picked[least] == 1).all())


def test_a_row_that_was_broken_at_any_step_is_named_even_if_later_steps_fill_it():
    class AtFirst(Residual):
        def __call__(self, x, xt, t, log_p, context):
            broken = (t > 0.9) & (xt[:, 0] == 2)
            return torch.where(broken[:, None, None], torch.nan, super().__call__(x, xt, t, log_p, context))

    canvas = DENSE.canvas(3)
    canvas[:, 0] = torch.tensor([0, 2, 1])
    sampler, energy = Sampler(steps=2, candidates=3, grid=(0.0, 0.2, 1.0)), AtFirst(DENSE, whole_sequence=False)
    with pytest.raises(NonFiniteRows, match=r"rows \[1\] of 3") as raised:
        sampler.sample(canvas, READER, energy, Cosine(), torch.arange(3))
    assert not bool((raised.value.x == M).any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": [0.6, 0.5]}, r"0 <= from <= to <= 1; got \[0.6, 0.5\]"),
        ({"window": [-0.1, 0.5]}, r"got \[-0.1, 0.5\]"),
        ({"window": [0.5, 1.1]}, r"got \[0.5, 1.1\]"),
        ({"energy_temperature": LEAST_TEMPERATURE / 2}, "energy_temperature"),
        ({"steps": 0}, "steps"),
        ({"candidates": -1}, "candidates"),
        ({"speculative": True}, "candidates = 0; got candidates = 1"),
        ({"grid": [0.0, 0.5, 0.5, 1.0], "steps": 3}, "4 ascending times"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(Sampler, {"steps": 2, **settings})


def test_settings_at_their_ends_are_taken():
    for window in ([0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.0, 1.0]):
        assert parse(Sampler, {"steps": 1, "window": window}).window == tuple(window)
    usual = Sampler(steps=1, energy_temperature=LEAST_TEMPERATURE)
    assert (usual.candidates, usual.window, usual.speculative, usual.unmasking) == (1, (0.0, 1.0), False, AtRandom())
    assert Sampler(steps=1).energy_temperature == 1
