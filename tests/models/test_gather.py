import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.equations import group_count, sum_by_group
from edlm.models.gather import gather_positions, most_positions
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.networks import denoiser, stirred


@st.composite
def selections(draw):
    b, length = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    bits = draw(st.lists(st.booleans(), min_size=b * length, max_size=b * length))
    return torch.tensor(bits).view(b, length), draw(st.one_of(st.none(), st.integers(1, 9)))


@given(selections(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_new_position_is_gathered_once_in_its_group_in_reading_order(selection, every_size):
    new, block = selection
    actual = []
    for gathered in gather_positions(new, block, every_size):
        for row, group, at, valid in zip(
            gathered.rows, gathered.groups, gathered.positions, gathered.valid, strict=True
        ):
            positions = at[valid].tolist()
            assert positions == sorted(positions)
            assert all(p // (block or new.shape[1]) == group for p in positions)
            actual += [(int(row), p) for p in positions]
    assert sorted(actual) == [tuple(pair) for pair in torch.nonzero(new).tolist()]


@given(selections())
@settings(max_examples=100, deadline=None)
def test_no_selection_takes_more_positions_than_the_most_and_one_of_everything_takes_them(selection):
    new, block = selection
    per_row, more = most_positions(new.shape[1], block)
    for chosen, reached in ((new, False), (torch.ones_like(new), block is None)):
        taken = sum(gathered.positions.numel() for gathered in gather_positions(chosen, block, every_size=True))
        assert taken <= len(new) * per_row + more
        assert taken == len(new) * per_row + more or not reached


@given(selections())
@settings(max_examples=100, deadline=None)
def test_what_is_gathered_of_a_row_does_not_depend_on_its_batch(selection):
    new, block = selection
    together = {
        (int(r), int(g)): (at.tolist(), valid.tolist())
        for gathered in gather_positions(new, block)
        for r, g, at, valid in zip(gathered.rows, gathered.groups, gathered.positions, gathered.valid, strict=True)
    }
    for row in range(len(new)):
        for gathered in gather_positions(new[row : row + 1], block):
            for group, at, valid in zip(gathered.groups, gathered.positions, gathered.valid, strict=True):
                assert together[row, int(group)] == (at.tolist(), valid.tolist())


def test_every_size_is_one_call_whatever_is_new():
    shares = (0.0, 0.1, 0.5, 1.0)
    sizes = [
        [gathered.positions.shape[1] for gathered in gather_positions(torch.rand(3, 40) < share, None, every_size=True)]
        for share in shares
    ]
    assert sizes == [[4, 8, 16, 32, 40]] * len(shares)


@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("block", [None, 8])
def test_a_whole_text_costs_a_head_at_most_k_tokens_per_position_in_any_number_of_steps(block, steps):
    """Only what a step unmasks enters, so that T steps cost one pass over k drafts; single tokens are not scored."""
    candidates, length, entered = 4, 48, 0
    net = denoiser(vocabulary=60)
    energy = stirred(StepEnergyConfig(block=block, width=16, layers=1, heads=2).build(net))

    def count(_module, _arguments, named):
        nonlocal entered
        entered += int(named["valid"].sum())

    energy.layers[0].register_forward_pre_hook(count, with_kwargs=True)
    canvas, joint = torch.full((2, length), net.mask), []
    Sampler(steps=steps, candidates=candidates).sample(
        canvas, net, energy, LogLinear(), torch.arange(2),
        on_step=lambda step: joint.append(sum_by_group(step.unmasked.long(), block)),
    )  # fmt: skip
    expected = candidates * sum(int(groups[groups > 1].sum()) for groups in joint)
    assert expected <= candidates * 2 * length
    assert 0.9 * expected <= entered <= expected  # of equal candidates one is scored
    assert expected > 0 or steps == 64


@pytest.mark.parametrize(
    ("kind", "block", "length"), [("step", 2, 9), ("step", 3, 10), ("step", None, 3), ("conditional", None, 2)]
)
def test_energies_of_the_smallest_groups_do_not_depend_on_the_batch(kind, block, length):
    net = denoiser(vocabulary=60)
    config = (
        ConditionalEnergyConfig(width=32, heads=2)
        if kind == "conditional"
        else StepEnergyConfig(block=block, width=32, layers=2, heads=2)
    )
    energy = stirred(config.build(net), seed=4)
    of = torch.Generator().manual_seed(0)
    for rows in range(2, 9):
        xt = torch.where(torch.rand(rows, length, generator=of) < 0.7, net.mask, torch.randint(60, (rows, length)))
        x = torch.where(xt[:, None] == net.mask, torch.randint(60, (rows, 3, length), generator=of), xt[:, None])
        t, context = torch.full((rows,), 0.5), net.read(xt, torch.full((rows,), 0.5))
        log_p = torch.zeros(rows, 3, group_count(length, block))
        together = energy(x, xt, t, log_p, context)
        for i in range(rows):
            alone = slice(i, i + 1)
            assert torch.equal(energy(x[alone], xt[alone], t[alone], log_p[alone], context[alone])[0], together[i])
