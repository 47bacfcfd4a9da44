"""Verifying drafts draws from the conditional law exactly, whatever wrote the drafts, and each row on its own."""

import pytest
import torch

from edlm.candidates import propose
from edlm.sampler import Sampler
from edlm.schedule import LogLinear
from edlm.speculative import verify
from edlm.step_energy import ConditionalEnergy
from edlm.streams import Purpose, uniforms
from tests.laws import chi_square
from tests.networks import denoiser, stirred
from tests.worlds import Marginals, Residual, cartesian, world

V, N = 4, 9000
READER = denoiser(V)
ENERGY = stirred(ConditionalEnergy(16, 1, 2, READER), seed=5, scale=0.5)
XT = torch.tensor([V, 2, V, V, V])
WHERE = torch.tensor([True, False, True, False, True])  # the fourth stays masked


def verified(rows: int, seed: int = 0):
    xt, where = XT.repeat(rows, 1), WHERE.repeat(rows, 1)
    context = READER.read(xt, torch.full((rows,), 0.7))
    keys = torch.arange(rows) + seed
    u = [uniforms(keys, 1, 0, purpose, (5,)) for purpose in (Purpose.CANDIDATE, Purpose.KEEP, Purpose.AGAIN)]
    draft, log_p = propose(READER, context, xt, where, u[0][:, None])
    return verify(draft[:, 0], log_p[:, 0], xt, where, context, READER, ENERGY, *u[1:])


@torch.no_grad()
def law() -> torch.Tensor:
    """p_c of all ways to fill the new positions."""
    x = XT.repeat(V**3, 1)
    x[:, WHERE] = cartesian(V, 3)
    return ENERGY.log_p(x[None], XT[None], READER.read(XT[None], torch.tensor([0.7])))[0].double().exp()


def test_what_is_kept_follows_the_conditional_law():
    found = verified(N)
    assert bool((found.x[:, ~WHERE] == XT[~WHERE]).all())
    counts = torch.bincount((found.x[:, WHERE] * torch.tensor([V * V, V, 1])).sum(dim=1), minlength=V**3)
    assert law().sum().item() == pytest.approx(1, abs=1e-5)
    assert chi_square(counts, law()) < 3.9
    x = XT.repeat(V**3, 1)
    x[:, WHERE] = cartesian(V, 3)
    p = READER.log_p(READER.read(XT[None], torch.tensor([0.7])), WHERE[None]).double().exp()
    drafts = torch.stack([p[i, x[:, place]] for i, place in enumerate((0, 2, 4))]).prod(dim=0)
    assert chi_square(counts, drafts / drafts.sum()) > 9  # the draft's own law is another


def test_a_pass_settles_one_position_at_least_and_all_where_the_laws_agree():
    assert set(verified(400).passes.tolist()) == {1, 2, 3}
    same = ConditionalEnergy(16, 1, 2, READER).eval()  # before training p_c is p_theta
    context = READER.read(XT[None], torch.tensor([0.7]))
    u = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(0)).double()
    draft, log_p = propose(READER, context, XT[None], WHERE[None], u[:1].transpose(0, 1))
    found = verify(draft[:, 0], log_p[:, 0], XT[None], WHERE[None], context, READER, same, u[1] * 0.999, u[2])
    assert found.passes.tolist() == [1]
    assert torch.equal(found.x, draft[:, 0])


def test_a_row_does_not_depend_on_its_mates():
    together, later = verified(64), verified(1, seed=37)
    assert torch.equal(together.x[37], later.x[0])
    assert together.passes[37] == later.passes[0]


@torch.no_grad()
def test_the_two_views_of_the_law_agree_with_its_log_probability():
    x = XT.repeat(V**3, 1)
    x[:, WHERE] = cartesian(V, 3)
    xt = XT.repeat(V**3, 1)
    context = READER.read(xt, torch.full((V**3,), 0.7))
    each = ENERGY.by_position(x[:, None], xt, context)[:, 0]
    assert torch.allclose(each.sum(dim=1), ENERGY.log_p(x[:, None], xt, context)[:, 0], atol=1e-5)
    assert bool((each[:, ~WHERE] == 0).all())
    every = ENERGY.distribution(x, xt, WHERE.repeat(V**3, 1), context)
    assert torch.allclose(every.exp().sum(dim=1), torch.ones(len(every)), atol=1e-5)
    assert torch.allclose(every.gather(1, x[:, WHERE].reshape(-1, 1))[:, 0], each[:, WHERE].reshape(-1), atol=1e-5)


def test_only_exact_sampling_is_speculative():
    with pytest.raises(ValueError, match="candidates = 0; got candidates = 8"):
        Sampler(steps=2, candidates=8, speculative=True)
    of = world("dense")

    class Normalised(Residual):
        def draw(self, xt, where, context, u):
            raise AssertionError("never asked")

    with pytest.raises(ValueError, match="verifies a draft, and Normalised cannot"):
        Sampler(steps=1, candidates=0, speculative=True).sample(
            of.canvas(1), Marginals(of), Normalised(of, drafts=False), LogLinear(), torch.arange(1)
        )
