"""The naive sampler has the distribution of the fast one that it is timed against."""

import pytest
import torch

from edlm.baselines.naive_sampler import NaiveSampler
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain
from edlm.schedule import LogLinear
from tests.counting import chi_square
from tests.enumeration import sampler_distribution
from tests.sampling.test_sampler_distribution import DENSE, FAR, BrokenReader, N, counts, denoiser
from tests.worlds import Residual

M = DENSE.mask
WHOLE = Residual(DENSE, whole_sequence=True)
CASES = {
    "plain diffusion": (None, Sampler(steps=3), [M, M, M]),
    "whole drafts": (WHOLE, Sampler(steps=2, candidates=3), [M, M, M]),
    "whole drafts in a window": (WHOLE, Sampler(steps=3, candidates=3, window=(0.6, 1)), [M, M, M]),
    "whole drafts, tempered weights": (WHOLE, Sampler(steps=2, candidates=3, energy_temperature=0.3), [M, M, M]),
    "whole drafts beside a prompt": (WHOLE, Sampler(steps=2, candidates=2), [1, M, M]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_naive_sampler_follows_the_distribution_of_the_fast_one(name):
    energy, sampler, canvas = CASES[name]
    reader, schedule = denoiser(DENSE), LogLinear()
    canvas = torch.tensor(canvas)
    generator = torch.Generator().manual_seed(1)
    texts = NaiveSampler(sampler).sample(canvas.repeat(N, 1), reader, energy, schedule, generator)
    assert (
        chi_square(counts(DENSE, texts), sampler_distribution(DENSE, reader, energy, sampler, schedule, canvas)) < FAR
    )
    if energy is not None:
        plain = sampler_distribution(DENSE, reader, None, sampler, schedule, canvas)
        assert chi_square(counts(DENSE, texts), plain) > FAR + 1


def test_what_the_naive_sampler_cannot_do_is_refused():
    with pytest.raises(ValueError, match="unmasking is most_certain; the naive sampler unmasks at_random"):
        NaiveSampler(Sampler(steps=2, unmasking=MostCertain()))
    with pytest.raises(ValueError, match=r"candidates is 0 .* k >= 1"):
        NaiveSampler(Sampler(steps=2, candidates=0))


@pytest.mark.parametrize("k", [1, 3])
def test_a_step_energy_is_refused_whatever_k_is(k):
    naive, step = NaiveSampler(Sampler(steps=2, candidates=k)), Residual(DENSE, whole_sequence=False)
    with pytest.raises(ValueError, match=r"Residual scores the tokens of a step.*use Sampler"):
        naive.sample(torch.tensor([[M, M, M]]), denoiser(DENSE), step, LogLinear(), torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("energy", "k"), [(None, 1), (WHOLE, 3)])
def test_logits_that_are_not_numbers_are_an_error_and_no_token(energy, k):
    naive, canvas = NaiveSampler(Sampler(steps=2, candidates=k)), torch.tensor([[0, M, M], [2, M, M]])
    with pytest.raises(FloatingPointError, match="logits are not numbers"):
        naive.sample(canvas, BrokenReader(DENSE), energy, LogLinear(), torch.Generator().manual_seed(1))
