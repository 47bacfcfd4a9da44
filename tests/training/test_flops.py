"""The FLOP formula counts what torch counts in a step, less what is computed for padding."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import Model
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import Cosine, LogLinear
from edlm.training import flops
from edlm.training.energy_objectives import LARGEST_GRID, draw_step, energy_objective
from edlm.training.objectives import Denoising, NextToken
from tests.networks import autoregressive

TRANSFORMER = TransformerConfig(width=64, layers=3, heads=2)
VOCABULARY, LENGTH, ROWS, NEGATIVES = 200, 128, 8, 3
PADDING = 0.02  # positions that are padded to whole multiples of rows


def product_flop(_, a, b, **__) -> int:
    return 2 * a[0] * a[1] * b[1]


IN_PLACE = {torch.ops.aten.addmm_: product_flop}  # which torch does not count


def rows() -> Rows:
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return Rows(tokens, 3, torch.arange(ROWS), ROWS)


def counted(objective) -> int:
    """FLOP of a step by torch, which does not know the CPU's fused attention."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(rows())[0].backward()
    return counter.get_total_flops()


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(TRANSFORMER, VOCABULARY)


def energy_of(config, largest_grid: int = LARGEST_GRID):
    net = denoiser()
    base = ConditionalEnergyConfig(width=16, layers=1).build(net) if isinstance(config, ResidualEnergyConfig) else None
    return energy_objective(
        Model(net, config.build(net, base), LogLinear()), NEGATIVES, "binary", seed=0, largest_grid=largest_grid
    )


def masked(objective) -> int:
    """Positions that the objective masks in these rows."""
    from edlm.schedule import draw_times
    from edlm.training.objectives import noised

    t = draw_times(0, 3, torch.arange(ROWS), ROWS)
    return int((noised(0, rows(), objective.schedule.alpha(t), VOCABULARY) == VOCABULARY).sum())


def test_an_autoregressive_step_takes_exactly_this():
    model = autoregressive(VOCABULARY)
    biases = 2 * ROWS * LENGTH * VOCABULARY  # whose gradient is a weighted sum
    assert counted(NextToken(model)) == flops.next_token_flop(model, ROWS, LENGTH) + biases


def test_a_denoising_step_takes_this():
    objective = Denoising(denoiser(), LogLinear(), seed=0)
    expected = flops.denoising_flop(objective.trained, ROWS, LENGTH, masked(objective))
    assert counted(objective) == pytest.approx(expected, rel=PADDING)


def test_a_step_of_whole_sequences_takes_this():
    objective = energy_of(BidirectionalEnergyConfig())
    expected = flops.whole_sequence_flop(objective.denoiser, ROWS, LENGTH, masked(objective), NEGATIVES)
    assert counted(objective) == pytest.approx(expected, rel=PADDING)


@pytest.mark.parametrize(
    ("config", "padding"),
    [
        (StepEnergyConfig(block=8, width=16), 0.02),
        (ConditionalEnergyConfig(width=16, layers=1), 0.05),  # a group of each smaller size is computed besides
        (ResidualEnergyConfig(width=16), 0.2),  # and drawn token by token
    ],
)
def test_steps_of_light_heads_take_this_beside_the_pass_of_the_denoiser(config, padding):
    """Every position is new, so that no group is padded."""
    objective = energy_of(config, largest_grid=1)
    positions, tokens = ROWS * LENGTH, VOCABULARY + 1
    recurring = 6 * TRANSFORMER.width**2 * (positions - tokens)  # which the first layer does not project again
    frozen = flops.transformer_flop(TRANSFORMER, positions, LENGTH) - recurring
    expected = flops.expected_flop(objective, ROWS, LENGTH) - frozen
    assert expected <= counted(objective) - frozen <= (1 + padding) * expected


@pytest.mark.parametrize("largest", [1, 2, 64])
def test_the_share_of_new_positions_is_that_of_the_steps_that_are_drawn(largest):
    many = Rows(torch.zeros(20_000, 1, dtype=torch.long), 0, torch.arange(20_000), 20_000)
    t, s = draw_step(0, many, largest)
    assert flops.new_share(largest) == pytest.approx((t - s).mean().item(), rel=0.02)


def test_the_share_of_masked_positions_is_the_mean_of_the_schedule():
    assert flops.masked_share(LogLinear()) == pytest.approx(0.5)
    assert flops.masked_share(Cosine()) == pytest.approx(2 / torch.pi, rel=1e-3)


def test_the_expected_flop_of_a_step_are_those_of_its_mean_noise_and_unknown_for_other_networks():
    objective = Denoising(denoiser(), LogLinear(), seed=0)
    half = ROWS * LENGTH // 2
    assert flops.expected_flop(objective, ROWS, LENGTH) == flops.denoising_flop(objective.trained, ROWS, LENGTH, half)
    assert flops.expected_flop(torch.nn.Linear(2, 2), ROWS, LENGTH) is None
