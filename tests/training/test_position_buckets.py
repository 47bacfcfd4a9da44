"""Buckets: on a device, masked positions are padded to few numbers of them, which changes no loss."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.schedule import LogLinear
from edlm.training.objectives import BUCKETS, Denoising, padded_to_bucket
from tests.networks import denoiser
from tests.training.objectives import SEPARATOR, L, N, V, rows
from workflows.benchmarking.pretended_device import NAME, pretended

META = torch.device("meta")  # any device but the CPU


@given(b=st.integers(1, 9), length=st.integers(1, 40), data=st.data())
def test_there_are_few_numbers_of_positions_and_little_padding(b, length, data):
    masked = torch.tensor(data.draw(st.lists(st.booleans(), min_size=b * length, max_size=b * length))).view(b, length)
    index = torch.nonzero(masked, as_tuple=True)
    padded = padded_to_bucket(index, (b, length), META)
    count, unit = len(index[0]), -(-b * length // BUCKETS)
    assert len(padded[0]) % unit == 0
    assert 0 <= len(padded[0]) - count < unit
    for axis, whole, last in zip(index, padded, (b - 1, length - 1), strict=True):
        assert torch.equal(whole[:count], axis)
        assert (whole[count:] == last).all()
    assert all(map(torch.equal, padded_to_bucket(index, (b, length), torch.device("cpu")), index))


@pytest.mark.parametrize("separator", [None, SEPARATOR])
def test_padding_changes_neither_the_loss_nor_its_gradients(separator):
    here, counts = Denoising(denoiser(V), LogLinear(), 0, separator), set()
    with pretended():
        device = torch.device(NAME)
        there = copy.deepcopy(here).to(device)
        last_norm = dict(there.named_modules())["trained.transformer.norm"]
        last_norm.register_forward_hook(lambda *call: counts.add(len(call[1][0])))
        for step in range(6):
            loss, seen = here(rows(step=step))
            other, seen_there = there(rows(step=step).to(device))
            torch.testing.assert_close(other.cpu(), loss)
            nelbo = "nelbo_nats_per_token"
            torch.testing.assert_close(seen_there[nelbo].cpu(), seen[nelbo], rtol=1e-5, atol=1e-6)
            loss.backward()
            other.backward()
        for mine, theirs in zip(here.trained.parameters(), there.trained.parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            torch.testing.assert_close(theirs.grad.cpu(), mine.grad)
    assert all(count % (N * L // BUCKETS) == 0 for count in counts)
    assert len(counts) < 6
