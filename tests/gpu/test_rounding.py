"""The tolerances of these tests are narrower than what a fault in a kernel or a cast would do."""

import pytest
import torch
from torch import Tensor, nn

from edlm.inference.generator import open_bundle
from edlm.training.local_engine import LocalEngine
from tests.cluster.training.zero_objectives import objectives, science_rows
from tests.cluster.training.zero_worker import curve
from tests.gpu.bundle import ENERGIES
from tests.gpu.rounding import DRAWING, numbers_tolerance, training_tolerance
from tests.gpu.test_generation import NATS, numbers
from tests.gpu.test_training import PRECISIONS, largest_difference, training
from workflows.benchmarking.pretended_device import NAME


def wrong_sign(network: nn.Module) -> None:
    parameter(network, "down.weight").neg_()


def missing_bias(network: nn.Module) -> None:
    parameter(network, "up.bias").zero_()


def off_by_one(network: nn.Module) -> None:
    weight = parameter(network, "qkv.weight")
    weight.copy_(weight.roll(1, 0))


def parameter(network: nn.Module, ending: str) -> Tensor:
    """The first of that name, of the first layer."""
    return next(value for name, value in network.named_parameters() if name.endswith(ending))


FAULTS = [wrong_sign, missing_bias, off_by_one]


def steps(name: str, precision: str, fault=None) -> list[list[float]]:
    objective = objectives()[name]()
    if fault is not None:
        with torch.no_grad():
            fault(objective.trained)
    settings = training(precision, steps=2)
    return curve(LocalEngine(objective, settings), settings, science_rows)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(objectives()))
def test_a_fault_changes_the_steps_of_training_by_more_than_the_tolerance(name, precision):
    right, tolerance = steps(name, precision), training_tolerance(name, NAME, precision)
    # Where other negatives may be drawn in bfloat16, the smaller faults are left to float32.
    faults = [wrong_sign] if name in DRAWING and precision == "bfloat16" else FAULTS
    for fault in faults:
        assert largest_difference(steps(name, precision, fault), right) > 1.25 * tolerance, fault.__name__


@pytest.mark.parametrize("name", list(objectives()))
def test_training_in_bfloat16_takes_the_steps_of_float32_up_to_its_rounding(name):
    difference = largest_difference(steps(name, "bfloat16"), steps(name, "float32"))
    assert difference <= training_tolerance(name, NAME, "bfloat16")


@pytest.mark.parametrize("name", ["denoiser", *ENERGIES])
def test_a_fault_changes_a_networks_numbers_by_more_than_the_tolerance(folder, on_cpu, name):
    right = numbers(on_cpu, name)
    for fault in FAULTS:
        wrong = open_bundle(folder)
        with torch.no_grad():
            fault(wrong.denoiser.network if name == "denoiser" else wrong.energies[name])
        difference = numbers(wrong, name) - right
        assert difference.abs().max() > 10 * max(NATS.values()), fault.__name__
        if (name, fault) != ("conditional", missing_bias):  # of 1 %: less than 8 bits can tell
            relative = (difference.norm() / right.norm()).item()
            assert relative > 1.25 * numbers_tolerance(name), fault.__name__
