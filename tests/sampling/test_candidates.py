"""Positions are taken in chunks that cover each once, in order, and bound what is held of the vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.interfaces import read
from edlm.models import readout
from edlm.models.readout import chunks
from edlm.sampling.candidates import propose
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
    places = [place for part in parts for place in part.flatten().nonzero()[:, 0].tolist()]
    assert places == where.flatten().nonzero()[:, 0].tolist()


def test_what_is_proposed_is_drawn_by_the_numbers_of_its_place_with_its_log_probability():
    of = world("dense", length=4, seed=1)
    reader, g = Marginals(of, mix=0.1), torch.Generator().manual_seed(0)
    xt = torch.where(torch.rand(20, 4, generator=g) < 0.7, of.mask, 1)
    where = (xt == of.mask) & (torch.rand(20, 4, generator=g) < 0.6)
    context, u = reader.read(xt, torch.ones(20)), torch.rand(20, 3, 4, generator=g, dtype=torch.float64)
    x, by_position = propose(reader, context, xt, where, u)
    tokens = (u[..., None] >= context.exp().cumsum(-1)[:, None]).sum(-1).clamp(max=2)
    assert torch.equal(x, torch.where(where[:, None], tokens, xt[:, None]))
    told = context[:, None].expand(-1, 3, -1, -1).gather(-1, tokens[..., None])[..., 0]
    assert torch.equal(by_position, torch.where(where[:, None], told, 0.0))
    assert by_position.dtype == torch.float64


def test_a_denoiser_that_can_is_asked_for_some_positions_alone():
    net, where = denoiser(5), torch.tensor([[True, False, False, True]])
    xt, t = torch.tensor([[5, 1, 5, 5]]), torch.tensor([0.6])
    found, whole = read(net, xt, t, where), net.read(xt, t)
    torch.testing.assert_close(found[where], whole[where])
    reader = Marginals(world("dense", length=4))
    assert torch.equal(read(reader, xt.clamp(max=3), t, where), reader.read(xt.clamp(max=3), t))
