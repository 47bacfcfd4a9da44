"""Every equation beside a slow one that follows its text, and at the edges where a comparison decides."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edlm import equations

F64 = torch.float64
blocks = st.sampled_from([None, 1, 2, 3, 5, 9])
seeds = st.integers(0, 9999)


def some(seed: int, *shape: int) -> Tensor:
    """Numbers of the order of one, of both signs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def members(length: int, block: int | None) -> list[list[int]]:
    """The positions of each group."""
    size = block or length
    return [list(range(start, min(start + size, length))) for start in range(0, length, size)]


# ---------------------------------------------------------------- forward process and denoiser


def test_a_token_is_kept_where_its_number_lies_below_alpha():
    x0, u = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0.1, 0.5, 0.9]] * 2, dtype=F64)
    assert equations.noise(x0, torch.tensor([0.5, 0.95]), u, 7).tolist() == [[0, 7, 7], [0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_log_probabilities_are_normalised_and_float32_whatever_the_logits_are(dtype):
    logits = (10 * some(1, 4, 50)).to(dtype)
    log_p = equations.substitute(logits)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, logits.float() - logits.float().logsumexp(-1, keepdim=True))
    torch.testing.assert_close(log_p.exp().sum(dim=-1), torch.ones(4))


def test_what_is_selected_changes_and_nothing_else():
    xt, x, where = torch.tensor([[9, 9, 3]]), torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, False]])
    assert equations.carry_over(xt, x, where).tolist() == [[0, 9, 3]]


@settings(deadline=None)
@given(seed=seeds, vocabulary=st.integers(1, 6), k=st.integers(1, 3))
def test_a_token_is_the_first_whose_cumulative_probability_exceeds_its_number(seed, vocabulary, k):
    log_p, u = some(seed, 5, vocabulary).log_softmax(-1), uniform(seed + 1, 5, k)
    kept = log_p.clone()
    tokens, reported = equations.draw(log_p, u)
    assert torch.equal(log_p, kept)
    for row in range(5):
        for j in range(k):
            total, expected = 0.0, 0
            for token in range(vocabulary):
                total += math.exp(log_p[row, token])
                if u[row, j] < total:
                    expected = token
                    break
            assert tokens[row, j] == expected
            assert reported[row, j] == pytest.approx(log_p[row, expected].item(), abs=1e-12)


def test_a_rare_token_behind_common_ones_keeps_its_probability():
    """A sum in float32 would swallow the tail."""
    log_p = torch.tensor([[1 - 1e-9, 1e-9]], dtype=F64).log()
    u = torch.tensor([[1 - 2e-9, 1 - 0.5e-9]], dtype=F64)
    assert equations.draw(log_p, u)[0].tolist() == [[0, 1]]
    assert equations.draw(log_p.float(), u)[0].tolist() == [[0, 1]]
    close = torch.tensor([[0.5 + 1e-9, 0.5 - 1e-9]], dtype=F64).log()  # and a distribution in float64 keeps its digits
    assert equations.draw(close, torch.tensor([[0.5 + 0.5e-9, 0.5 + 2e-9]], dtype=F64))[0].tolist() == [[0, 1]]


# ---------------------------------------------------------------- what is integrated over time


def test_an_integrand_is_weighted_once():
    nll, w = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([2.0, 0.5])
    assert equations.nelbo_integrand(nll, w).tolist() == [6.0, 4.0]
    assert equations.paper_integrand(nll[:, 0], nll[:, 1], torch.tensor([7.0, 11.0]), w).tolist() == [16.0, 6.5]


# ---------------------------------------------------------------- groups of positions


@settings(deadline=None)
@given(seed=seeds, length=st.integers(1, 7), block=blocks)
def test_groups_are_neighbours_and_the_last_may_be_short(seed, length, block):
    values, groups = some(seed, 2, 3, length), members(length, block)
    assert equations.group_count(length, block) == len(groups)
    expected = torch.stack([values[..., at].sum(dim=-1) for at in groups], dim=-1)
    torch.testing.assert_close(equations.sum_by_group(values, block), expected)
    spread = equations.spread_groups(expected, length, block)
    assert spread.shape == values.shape
    for g, at in enumerate(groups):
        for position in at:
            assert torch.equal(spread[..., position], expected[..., g])


# ---------------------------------------------------------------- the energy and its training


def test_a_low_energy_has_a_large_weight_and_a_high_temperature_evens_out():
    assert equations.log_weight(torch.tensor([2.0, -3.0])).tolist() == [-2.0, 3.0]
    assert equations.log_weight(torch.tensor([2.0, -3.0]), 4.0).tolist() == [-0.5, 0.75]


@settings(deadline=None)
@given(seed=seeds, k=st.integers(1, 4))
def test_the_losses_of_nce_are_their_formulas(seed, k):
    data, negatives = some(seed, 3, 2), some(seed + 1, 3, k, 2)
    binary = -torch.sigmoid(-data).log() - torch.sigmoid(negatives).log().mean(dim=1)
    torch.testing.assert_close(equations.nce_binary(data, negatives), binary)
    weight = (-data).exp()
    ranking = -(weight / (weight + (-negatives).exp().sum(dim=1))).log()
    torch.testing.assert_close(equations.nce_ranking(data, negatives), ranking)


def test_of_what_is_carried_over_nothing_counts():
    log_p, masked = torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[True, False, True]])
    assert equations.carry_over_log_p(log_p, masked).tolist() == [-5.0]


# ---------------------------------------------------------------- the k-candidate sampler


def test_a_masked_position_is_unmasked_where_its_number_lies_below_the_share():
    masked, u = torch.tensor([[True, True, True, False]] * 2), torch.tensor([[0.1, 0.5, 0.9, 0.1]] * 2, dtype=F64)
    actual = equations.unmask(masked, torch.tensor([0.5, 1.0], dtype=F64), u)
    assert actual.tolist() == [[True, False, False, False], [True, True, True, False]]


@settings(deadline=None)
@given(seed=seeds, length=st.integers(1, 6))
def test_a_distribution_in_reading_order_fills_what_is_masked_up_to_the_last_that_is_unmasked(seed, length):
    masked = uniform(seed, 4, length) < 0.7
    unmasked = masked & (uniform(seed + 1, 4, length) < 0.4)
    actual = equations.up_to_last(masked, unmasked)
    for row in range(4):
        last = max((at for at in range(length) if unmasked[row, at]), default=-1)
        assert actual[row].tolist() == [bool(masked[row, at]) and at <= last for at in range(length)]


@settings(deadline=None)
@given(seed=seeds, k=st.integers(1, 5))
def test_the_candidate_that_is_kept_is_the_first_whose_cumulative_share_exceeds_the_number(seed, k):
    log_v, u = 3 * some(seed, 4, k, 2), uniform(seed + 1, 4, 2)
    picked, ess = equations.pick(log_v, u), equations.effective_sample_size(log_v)
    for row in range(4):
        for group in range(2):
            share = log_v[row, :, group].exp() / log_v[row, :, group].exp().sum()
            assert picked[row, group] == int((u[row, group] >= share.cumsum(0)[:-1]).sum())
            assert ess[row, group].item() == pytest.approx(1 / (share**2).sum().item())
            assert 1 - 1e-9 <= ess[row, group] <= k + 1e-9


def test_a_candidate_without_weight_is_never_kept_and_where_none_has_any_all_are_alike():
    none = -math.inf
    log_v = torch.tensor([[none, 0.0, none, 0.0, none]], dtype=F64)[..., None].expand(4, -1, -1)
    u = torch.tensor([[1e-300], [0.25], [0.5], [1 - 1e-16]], dtype=F64)
    assert equations.pick(log_v, u).flatten().tolist() == [1, 1, 3, 3]
    assert equations.effective_sample_size(log_v).flatten().tolist() == pytest.approx([2.0] * 4)
    nothing = torch.full((4, 4, 1), none, dtype=F64)
    assert equations.pick(nothing, torch.tensor([[0.1], [0.3], [0.6], [0.9]], dtype=F64)).flatten().tolist() == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert equations.effective_sample_size(nothing).flatten().tolist() == pytest.approx([4.0] * 4)


def test_shares_are_computed_in_float64_whatever_the_energies_are():
    rare = torch.tensor([0.0, math.log(1e-9)]).view(1, 2, 1)
    assert equations.effective_sample_size(rare).dtype == F64
    assert equations.pick(rare, torch.tensor([[1 - 0.5e-9]], dtype=F64)).item() == 1
    assert equations.pick(rare, torch.tensor([[1 - 2e-9]], dtype=F64)).item() == 0


@pytest.mark.parametrize("ask", [equations.effective_sample_size, lambda v: equations.resampled_nll(v[:, 0], v[None])])
def test_a_weight_that_is_no_number_is_an_error(ask):
    log_v = torch.zeros(2, 3, 1)
    log_v[1, 2, 0] = math.nan
    with pytest.raises(FloatingPointError, match="an energy is not a number"):
        ask(log_v)


# ---------------------------------------------------------------- remasking


def test_no_more_is_masked_again_than_leaves_room_for_what_is_clean():
    t = torch.tensor([0.0, 0.2, 0.5, 0.5, 0.9, 0.9], dtype=F64)
    s = torch.tensor([0.3, 0.3, 0.6, 0.8, 0.95, 1.0], dtype=F64)
    expected = torch.tensor([0.0, 1.0, 0.8, 0.4, 0.05 / 0.9, 0.0], dtype=F64)
    torch.testing.assert_close(equations.most_remasked(t, s), expected)
    share = equations.unmask_probability(t, s, 0.5 * expected)
    clean = (1 - 0.5 * expected) * t + share * (1 - t)  # stays, or is unmasked
    torch.testing.assert_close(clean, s)
    assert bool(((share >= 0) & (share <= 1)).all())


# ---------------------------------------------------------------- likelihood


@settings(deadline=None)
@given(seed=seeds, repeats=st.integers(1, 3), k=st.integers(1, 4))
def test_the_resampled_bound_averages_whole_ratios_over_the_repeats(seed, repeats, k):
    log_p, log_v = -some(seed, 3, 2).exp(), some(seed + 1, repeats, 3, k, 2)
    v = log_v.exp()
    ratio = (k * v[:, :, 0] / v.sum(dim=2)).mean(dim=0)
    torch.testing.assert_close(equations.resampled_nll(log_p, log_v), -log_p - ratio.log())
    single = equations.resampled_nll(log_p.float(), log_v.float())
    torch.testing.assert_close(single.double(), -log_p - ratio.log(), atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(seed=seeds, n=st.integers(2, 6))
def test_both_ends_of_log_z_are_their_formulas(seed, n):
    log_v = 3 * some(seed, n, 2, 3)
    low, high = equations.log_partition(log_v)
    torch.testing.assert_close(low, log_v.exp().mean(dim=0).log())
    without = [log_v[[j for j in range(n) if j != out]].exp().mean(dim=0).log() for out in range(n)]
    torch.testing.assert_close(high, (2 * n - 1) * low - 2 * (n - 1) * sum(without) / n)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
def test_a_token_temperature_is_a_power_of_the_probabilities(temperature):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    powers = logits.double().softmax(dim=-1) ** (1 / temperature)
    actual = equations.tempered(logits, temperature).double().softmax(dim=-1)
    torch.testing.assert_close(actual, powers / powers.sum(dim=-1, keepdim=True), atol=1e-6, rtol=0)


def test_at_temperature_0_the_first_of_the_likeliest_tokens_has_all_of_the_probability():
    logits = torch.tensor([[0.0, 2.0, 2.0, -1.0], [-3.0, -4.0, -torch.inf, -5.0], [0.0, torch.nan, 1.0, 0.0]])
    actual = equations.tempered(logits, 0).softmax(dim=-1)
    assert actual[:2].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert actual[2].isnan().any()
