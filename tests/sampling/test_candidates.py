"""Candidates are drawn in chunks that cover each position once and bound what is held of the vocabulary.

Scoring computes each distinct candidate once, a bounded number per call, and changes no number.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.cooperative_work import run_to_end
from edlm.interfaces import read
from edlm.models import readout
from edlm.models.readout import chunks
from edlm.sampling import candidates
from edlm.sampling.candidates import propose, score_candidates
from tests.networks import denoiser
from tests.worlds import Marginals, world


@settings(deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 1), chunk=st.integers(1, 60), multiple=st.integers(1, 4))
def test_chunks_hold_every_position_once_in_order_and_no_more_than_they_may(seed, share, chunk, multiple):
    where = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "CHUNK", chunk)
        patch.setattr(readout, "ROWS_MULTIPLE", multiple)
        parts = list(chunks(where, vocabulary=3))
    total = int(where.sum())
    size = max(multiple, chunk // 3 // multiple * multiple)
    assert [int(part.sum()) for part in parts] == [min(size, total - start) for start in range(0, total, size)]
    positions = [position for part in parts for position in part.flatten().nonzero()[:, 0].tolist()]
    assert positions == where.flatten().nonzero()[:, 0].tolist()


def test_proposals_are_drawn_by_the_numbers_of_their_position_with_their_log_probability():
    of = world("dense", length=4, seed=1)
    reader, g = Marginals(of, mix=0.1), torch.Generator().manual_seed(0)
    xt = torch.where(torch.rand(20, 4, generator=g) < 0.7, of.mask, 1)
    where = (xt == of.mask) & (torch.rand(20, 4, generator=g) < 0.6)
    context, u = reader.read(xt, torch.ones(20)), torch.rand(20, 3, 4, generator=g, dtype=torch.float64)
    x, by_position = propose(reader, context, xt, where, u)
    tokens = (u[..., None] >= context.exp().cumsum(-1)[:, None]).sum(-1).clamp(max=2)
    assert torch.equal(x, torch.where(where[:, None], tokens, xt[:, None]))
    reported = context[:, None].expand(-1, 3, -1, -1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(by_position, torch.where(where[:, None], reported, 0.0))
    assert by_position.dtype == torch.float64


def test_a_denoiser_that_can_is_asked_for_some_positions_alone():
    net, where = denoiser(5), torch.tensor([[True, False, False, True]])
    xt, t = torch.tensor([[5, 1, 5, 5]]), torch.tensor([0.6])
    actual, whole = read(net, xt, t, where), net.read(xt, t)
    torch.testing.assert_close(actual[where], whole[where])
    reader = Marginals(world("dense", length=4))
    assert torch.equal(read(reader, xt.clamp(max=3), t, where), reader.read(xt.clamp(max=3), t))


class CountingEnergy:
    """An energy that depends on everything it is given, and remembers how much it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x, xt, t, log_p, context):
        self.calls.append(tuple(x.shape[:2]))
        positions = torch.arange(1, x.shape[2] + 1)
        definition = (
            (x * positions).sum(dim=-1)
            + t[:, None]
            + context.sum(dim=-1)[:, None]
            + (xt * positions).sum(dim=-1)[:, None]
        )
        return definition[..., None] * torch.arange(1, 3) + log_p


def some(b: int, k: int, length: int, tokens: int, seed: int = 0):
    of = torch.Generator().manual_seed(seed)
    x = torch.randint(tokens, (b, k, length), generator=of)
    log_p = torch.stack([x.double().sum(dim=-1), x.double().prod(dim=-1)], dim=-1)  # equal candidates, equal log p
    rest = torch.randint(9, (b, length), generator=of), torch.rand(b, generator=of), log_p
    return x, *rest, torch.rand(b, length, generator=of)


@settings(deadline=None)
@given(
    b=st.integers(1, 5), k=st.integers(1, 6), length=st.integers(1, 5), tokens=st.integers(1, 3),
    at_once=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_energies_are_those_of_one_call_whatever_is_computed_together(b, k, length, tokens, at_once, seed):
    arguments = some(b, k, length, tokens, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "TOKENS_AT_ONCE", at_once)
        energy = CountingEnergy()
        energies, distinct = run_to_end(score_candidates(energy, *arguments))
    assert torch.equal(energies, CountingEnergy()(*arguments))
    assert distinct.tolist() == [len(row.unique(dim=0)) for row in arguments[0]]
    assert max(rows * many * length for rows, many in energy.calls) <= max(at_once, length)
    assert sum(rows * many for rows, many in energy.calls) == b * max(distinct.tolist())


@pytest.mark.parametrize(("b", "k"), [(2, 100), (20, 20)])
def test_equal_ones_are_found_among_many_candidates_of_many_rows(b, k):
    energy, arguments = CountingEnergy(), some(b, k, 3, tokens=4)
    energies, distinct = run_to_end(score_candidates(energy, *arguments))
    assert torch.equal(energies, CountingEnergy()(*arguments))
    assert distinct.tolist() == [len(row.unique(dim=0)) for row in arguments[0]]
    assert energy.calls == [(b, max(distinct.tolist()))]


def test_few_tokens_are_one_call():
    energy = CountingEnergy()
    run_to_end(score_candidates(energy, *some(4, 3, 5, tokens=50)))
    assert energy.calls == [(4, 3)]


@pytest.mark.parametrize("at_once", [1, 12, 10**6])
def test_each_part_is_one_call_of_the_energy_with_no_more_tokens_than_the_limit(at_once):
    energy, arguments = CountingEnergy(), some(4, 3, 5, tokens=50)
    work, calls = score_candidates(energy, *arguments, tokens_at_once=at_once), []
    while True:
        try:
            next(work)
        except StopIteration as end:
            energies, _ = end.value
            break
        calls.append(len(energy.calls))
    assert calls == list(range(1, len(energy.calls)))  # the last call is in the last part
    assert len(energy.calls) == {1: 12, 12: 8, 10**6: 1}[at_once]
    assert torch.equal(energies, CountingEnergy()(*arguments))
