"""Speculative verification draws from the conditional distribution exactly, for any drafts, and row by row."""

import pytest
import torch

from edlm.cooperative_work import run_to_end
from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.whole_sequence import CarryOverEnergy
from edlm.interfaces import Model, VerifiesDrafts
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import propose
from edlm.sampling.sampler import Sampler
from edlm.sampling.speculative import _residual, verify_draft
from edlm.schedule import LogLinear
from tests.counting import chi_square
from tests.networks import autoregressive, denoiser, stirred
from tests.worlds import Marginals, Residual, cartesian, world

V, N = 4, 9000
READER = denoiser(V)
CONDITIONAL = stirred(ConditionalEnergy(16, 1, 2, 3, 2, READER), seed=5, scale=0.5)
COAR = CarryOverEnergy(autoregressive(V), V)
ENERGIES = {"conditional": CONDITIONAL, "coar": COAR}
energies = pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES)
XT = torch.tensor([V, 2, V, V, V])
WHERE = torch.tensor([True, False, True, False, True])  # the fourth stays masked


def new(energy) -> torch.Tensor:
    """The positions that are drawn: of whole sequences all that are masked."""
    return XT == V if energy.whole_sequence else WHERE


def situation(energy, rows: int, seed: int = 0):
    """x_t, drafts and their log-probabilities, the context, and uniforms to keep and to draw again by."""
    xt, where = XT.repeat(rows, 1), new(energy).repeat(rows, 1)
    context = READER.read(xt, torch.full((rows,), 0.7))
    keys = torch.arange(rows) + seed
    u = [uniforms(keys, 1, 0, purpose, (5,)) for purpose in (Purpose.CANDIDATE, Purpose.KEEP, Purpose.REDRAW)]
    draft, log_p = propose(READER, context, xt, where, u[0][:, None])
    return xt, draft[:, 0], log_p[:, 0], context, *u[1:]


def verified(energy, rows: int, seed: int = 0):
    xt, draft, log_p, context, u_keep, u_redraw = situation(energy, rows, seed)
    where = new(energy).repeat(rows, 1)
    return run_to_end(verify_draft(draft, log_p, xt, where, context, READER, energy, u_keep, u_redraw))


def drawn(energy, rows: int) -> torch.Tensor:
    """The same position by position."""
    xt, where = XT.repeat(rows, 1), new(energy).repeat(rows, 1)
    context = READER.read(xt, torch.full((rows,), 0.7))
    u = uniforms(torch.arange(rows), 1, 0, Purpose.CANDIDATE, (5,))
    return run_to_end(energy.draw(xt, where, context, u))[0]


def drafts(energy) -> torch.Tensor:
    """All ways to fill the new positions."""
    x = XT.repeat(V ** int(new(energy).sum()), 1)
    x[:, new(energy)] = cartesian(V, int(new(energy).sum()))
    return x


@torch.no_grad()
def distributions(energy) -> tuple[torch.Tensor, torch.Tensor]:
    """p_c and p_theta of each of them."""
    x, where = drafts(energy), new(energy)
    context = READER.read(XT[None], torch.tensor([0.7]))
    p = READER.log_p(context, where[None]).double()
    log_p = torch.stack([p[i, x[:, position]] for i, position in enumerate(torch.nonzero(where)[:, 0])]).sum(dim=0)
    e = energy(x[None], XT[None], torch.tensor([0.7]), log_p[None, :, None].float(), context)[0, :, 0].double()
    return (log_p - e).exp(), log_p.exp()


def counts(energy, x: torch.Tensor) -> torch.Tensor:
    where = new(energy)
    powers = V ** torch.arange(int(where.sum()) - 1, -1, -1)
    return torch.bincount((x[:, where] * powers).sum(dim=1), minlength=V ** int(where.sum()))


@energies
@pytest.mark.parametrize("how", ["by verifying drafts", "position by position"])
def test_what_is_kept_follows_the_conditional_distribution(energy, how):
    x = verified(energy, N).x if how == "by verifying drafts" else drawn(energy, N)
    assert torch.equal(x[:, ~new(energy)], XT[~new(energy)].expand(N, -1))
    p_c, p_theta = distributions(energy)
    assert p_c.sum().item() == pytest.approx(1, abs=1e-5)
    assert chi_square(counts(energy, x), p_c) < 3.9
    assert chi_square(counts(energy, x), p_theta / p_theta.sum()) > 9  # the draft's own distribution is another


@energies
@torch.no_grad()
def test_passes_over_the_whole_draft_end_where_going_from_left_to_right_does(energy):
    rows, where = 200, new(energy)
    actual, (xt, draft, _, context, u_keep, u_redraw) = verified(energy, rows), situation(energy, rows)
    x, kept = draft.clone(), torch.zeros(rows, dtype=torch.long)
    for position in torch.nonzero(where)[:, 0].tolist():
        at = (torch.arange(5) == position).expand(rows, -1)
        p_c = energy.distribution(energy.read(x, xt, context), at).double().exp()
        p_theta = READER.log_p(context, at).double().exp()
        keeps = u_keep[:, position] < (p_c / p_theta).gather(1, draft[:, position, None])[:, 0]
        residual = (p_c - p_theta).clamp(min=0).cumsum(dim=1)
        again = (residual < u_redraw[:, position, None] * residual[:, -1:]).sum(dim=1).clamp(max=V - 1)
        x[:, position] = torch.where(keeps, draft[:, position], again)
        kept += keeps
    assert torch.equal(actual.x, x)
    assert torch.equal(actual.accepted, kept)
    assert not actual.broken.any()


@energies
def test_a_pass_settles_one_position_at_least_and_what_is_kept_with_it(energy):
    actual, many = verified(energy, 400), int(new(energy).sum())
    assert set(actual.passes.tolist()) == set(range(1, many + 1))
    assert bool((actual.passes[actual.accepted == many] <= many).all())
    assert bool((actual.accepted < many).any())


def test_where_the_distributions_agree_one_pass_keeps_the_whole_draft():
    same = ConditionalEnergy(16, 1, 2, 3, 2, READER).eval()  # before training p_c is p_theta
    context = READER.read(XT[None], torch.tensor([0.7]))
    u = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(0)).double()
    draft, log_p = propose(READER, context, XT[None], WHERE[None], u[:1].transpose(0, 1))
    passes = verify_draft(draft[:, 0], log_p[:, 0], XT[None], WHERE[None], context, READER, same, u[1] * 0.999, u[2])
    actual = run_to_end(passes)
    assert (actual.passes.tolist(), actual.accepted.tolist()) == ([1], [3])
    assert torch.equal(actual.x, draft[:, 0])


@energies
def test_a_row_does_not_depend_on_the_other_rows_of_its_batch(energy):
    together, later = verified(energy, 64), verified(energy, 1, seed=37)
    assert torch.equal(together.x[37], later.x[0])
    assert together.passes[37] == later.passes[0]
    assert together.accepted[37] == later.accepted[0]
    assert torch.equal(drawn(energy, 64)[:3], drawn(energy, 3))


@energies
@torch.no_grad()
def test_one_reading_of_a_draft_shows_its_log_probability_and_every_distribution_in_it(energy):
    x, where = drafts(energy), new(energy)
    xt, at = XT.repeat(len(x), 1), where.repeat(len(x), 1)
    context = READER.read(xt, torch.full((len(x),), 0.7))
    features = energy.read(x, xt, context)
    each = energy.log_p_of(features, at, x)
    assert torch.allclose(each.sum(dim=1).double(), distributions(energy)[0].log(), atol=1e-5)
    assert bool((each[:, ~where] == 0).all())
    every = energy.distribution(features, at)
    assert torch.allclose(every.exp().sum(dim=1), torch.ones(len(every)), atol=1e-5)
    assert torch.allclose(every.gather(1, x[:, where].reshape(-1, 1))[:, 0], each[:, where].reshape(-1), atol=1e-5)


def test_accepted_tokens_are_counted_where_drafts_are_verified_and_nowhere_else():
    canvas, seeds = torch.full((6, 5), V), torch.arange(6)
    steps = {True: [], False: []}
    for speculative, reported in steps.items():
        sampler = Sampler(steps=2, candidates=0, speculative=speculative)
        sampler.sample(canvas, READER, CONDITIONAL, LogLinear(), seeds, on_step=reported.append)
    accepted, calls, unmasked = (
        torch.stack([getattr(step, name) for step in steps[True]]).sum(dim=0)
        for name in ("accepted", "energy_calls", "unmasked")
    )
    assert bool((accepted > 0).any())
    assert bool((unmasked.sum(dim=1) == 5).all())
    assert bool((calls <= 5).all())
    assert all(step.accepted.sum() == 0 for step in steps[False])


class Torn(Marginals):
    """Cannot tell p_c of what follows token 2, which is then not a number."""

    whole_sequence, block, normalised = False, None, True

    def __call__(self, x, xt, t, log_p, context):
        raise AssertionError("nothing is weighed")

    def draw(self, xt, where, context, u):
        raise AssertionError("nothing is drawn token by token")

    def read(self, x, xt, context, new=None):  # type: ignore[override]
        return torch.where((x[:, :1] == 2)[..., None], torch.nan, context)

    def log_p_of(self, features, where, x):
        tokens = x.clamp(max=self.vocabulary - 1)[..., None]
        return torch.where(where, features.gather(-1, tokens)[..., 0], 0.0)

    def distribution(self, features, where):
        return features[where]


def test_a_row_whose_head_shows_no_number_is_broken_and_the_others_are_not():
    of = world("dense")
    energy = Torn(of)
    assert isinstance(energy, VerifiesDrafts)
    canvas = torch.tensor([[0, 3, 3], [2, 3, 3], [1, 3, 3]])
    t = torch.ones(3, dtype=torch.float64)
    result = Sampler(steps=1, candidates=0, speculative=True).step(
        canvas, t, t * 0, torch.ones(3, dtype=torch.long), torch.arange(3), Model(Marginals(of), energy, LogLinear())
    )
    assert result.broken.tolist() == [False, True, False]
    assert (result.xs == 3).any(dim=1).tolist() == [False, True, False]


class TornInThePass:
    """A head whose numbers are none in one of its passes, and good again in the next."""

    def __init__(self, energy: ConditionalEnergy, torn: int) -> None:
        self.energy, self.torn, self.passes = energy, torn, 0
        self.whole_sequence = energy.whole_sequence

    def read(self, x, xt, context, new=None):
        self.passes += 1
        features = self.energy.read(x, xt, context, new)
        return torch.full_like(features, torch.nan) if self.passes == self.torn else features

    def log_p_of(self, features, where, x):
        return self.energy.log_p_of(features, where, x)

    def distribution(self, features, where):
        return self.energy.distribution(features, where)


@torch.no_grad()
def test_a_row_that_was_broken_in_one_pass_stays_broken_though_the_next_has_numbers_again():
    whole, torn = verified(CONDITIONAL, 200), verified(TornInThePass(CONDITIONAL, torn=2), 200)
    asked_again = whole.passes >= 2
    assert 0 < int(asked_again.sum()) < 200
    assert torch.equal(torn.broken, asked_again)
    assert torch.equal(torn.x[~asked_again], whole.x[~asked_again])
    assert int(torn.passes.max()) == 2  # a broken row is asked no more


def test_what_is_drawn_again_follows_what_p_c_has_over_p_theta_and_p_c_where_it_has_nothing_over():
    p_c = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.75, 0.0, 0.0]], dtype=torch.float64)
    p_theta = torch.tensor([[0.25, 0.5, 0.0, 0.25], [0.25, 0.75, 0.0, 0.0]], dtype=torch.float64)
    for u, tokens in {0.1: [0, 0], 0.4: [0, 1], 0.6: [2, 1], 0.999: [2, 1]}.items():
        actual = _residual(p_c.clone(), p_theta.clone(), torch.full((2,), u, dtype=torch.float64))
        assert actual.tolist() == tokens, u


def test_only_exact_sampling_is_speculative():
    with pytest.raises(ValueError, match="candidates = 0; got candidates = 8"):
        Sampler(steps=2, candidates=8, speculative=True)
    of = world("dense")

    class Normalised(Residual):
        def draw(self, xt, where, context, u):
            raise AssertionError("never asked")

    with pytest.raises(ValueError, match="verifies a draft, and Normalised cannot"):
        Sampler(steps=1, candidates=0, speculative=True).sample(
            of.canvas(1), Marginals(of), Normalised(of, whole_sequence=False), LogLinear(), torch.arange(1)
        )
