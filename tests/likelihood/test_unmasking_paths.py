"""Along a path each token is unmasked in its turn, masked until then, by numbers of its row, place and path."""

import itertools

import pytest
import torch

from edlm.interfaces import Model
from edlm.likelihood.unmasking_paths import trajectory, unmask_steps
from edlm.rng import Purpose, seeds, uniforms
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from tests.worlds import Marginals, world

DENSE = world("dense", length=4, seed=1)
M, L = DENSE.mask, DENSE.length
READER = Marginals(DENSE, mix=0.1, drift=0.3)
X0 = DENSE.texts
WAYS = {
    "at random": Sampler(steps=5),
    "another grid": Sampler(steps=3, grid=(0.0, 0.1, 0.8, 1.0)),
    "most certain": Sampler(steps=5, unmasking=MostCertain()),
    "remasking": Sampler(steps=5, unmasking=Remasking(share=0.8)),
}
ways = pytest.mark.parametrize("name", WAYS)
schedules = pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])


def path(name: str, schedule=LogLinear(), x0=X0, seed=3, draw=1, first_row=0):  # noqa: B008 - it is frozen
    return list(trajectory(x0, Model(READER, None, schedule), WAYS[name], seed, draw, first_row))


@schedules
@ways
def test_a_path_begins_blank_ends_whole_and_unmasks_what_is_masked(name, schedule):
    stops = path(name, schedule)
    assert [i for i, _, _ in stops] == list(range(WAYS[name].steps, 0, -1))
    assert bool((stops[0][1] == M).all())
    for (_, xt, new), (_, after, _) in itertools.pairwise(stops):
        assert bool(((xt == M) | (xt == X0)).all())
        assert not bool((new & (xt != M)).any())
        reported = torch.where(new, X0, xt)
        if name == "remasking":
            assert bool(((after == reported) | (after == M)).all())
            assert not bool((new & (after == M)).any())
        else:
            assert torch.equal(after, reported)
    _, xt, new = stops[-1]
    assert torch.equal(torch.where(new, X0, xt), X0)
    times = sum(new.long() for _, _, new in stops)
    assert (times.max() > 1) == (name == "remasking")


@schedules
@pytest.mark.parametrize("name", ["at random", "another grid"])
def test_a_position_is_masked_at_a_time_if_its_number_is_above_alpha(name, schedule):
    sampler, row = WAYS[name], 20 + torch.arange(len(X0))
    u = uniforms(3, 1, row, Purpose.UNMASK, (L,))
    for i, xt, _ in path(name, schedule, first_row=20):
        dark = 1 - schedule.alpha(sampler.times())[i]
        assert torch.equal(xt == M, u <= dark)
    at = unmask_steps(X0, schedule, sampler.times(), 3, 1, 20)
    assert (at.min(), at.max()) == (1, sampler.steps)


def test_a_walked_path_takes_its_numbers_by_row_path_step_and_purpose():
    sampler, schedule = WAYS["remasking"], Cosine()
    keys = seeds(3, 1, 20 + torch.arange(len(X0)), Purpose.UNMASK)
    masked = torch.ones_like(X0, dtype=torch.bool)
    for i, xt, new in path("remasking", schedule, first_row=20):
        t, s = sampler.times()[i], sampler.times()[i - 1]
        share, again = sampler.unmasking.shares(t[None], s[None], schedule)
        u = [uniforms(keys, i, 0, purpose, (L,)) for purpose in (Purpose.UNMASK, Purpose.REMASK)]
        assert torch.equal(xt == M, masked)
        assert torch.equal(new, masked & (u[0] < share))
        masked = torch.where(masked, ~new, u[1] < again)


def test_the_most_certain_are_looked_for_at_the_time_of_the_step():
    class WatchedMarginals(Marginals):
        def read(self, xt, t):
            seen.append(t)
            return super().read(xt, t)

    seen, sampler = [], WAYS["most certain"]
    list(trajectory(X0, Model(WatchedMarginals(DENSE), None, LogLinear()), sampler, 3, 1))
    assert [t.unique().tolist() for t in seen] == [[time] for time in sampler.times()[1:].flip(0).tolist()]


@ways
def test_seeds_paths_and_rows_have_paths_of_their_own_and_rows_of_a_longer_list_keep_theirs(name):
    def reported(**changes):
        return torch.stack([xt for _, xt, _ in path(name, **changes)])

    first = reported()
    assert torch.equal(first, reported())
    for other in (reported(seed=4), reported(draw=2), reported(first_row=1)):
        assert not torch.equal(first, other)
    torch.testing.assert_close(reported(x0=X0[30:], first_row=30), first[:, 30:])
