"""Training on a device takes the steps that it takes on the CPU, and a checkpoint of either goes on on the other."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.checkpoints.training_state import newest_snapshot, open_snapshot, save_snapshot
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Characters
from edlm.schedule import LogLinear
from edlm.training.local_engine import LocalEngine
from edlm.training.settings import Training
from tests.cluster.training.zero_objectives import objectives, science_rows
from tests.cluster.training.zero_worker import curve
from tests.gpu.rounding import training_tolerance
from tests.networks import TRANSFORMER, denoiser

PRECISIONS = ("float32", "bfloat16")


def training(precision: str = "float32", steps: int = 4) -> Training:
    return Training(
        steps=steps, batch=8, accumulation=2, learning_rate=1e-3, ema=0.9, precision=precision, checkpoint_every=2
    )


def engine(name: str, device: str, settings: Training) -> LocalEngine:
    objective = objectives()[name]()
    assert isinstance(objective, nn.Module)
    return LocalEngine(objective.to(device), settings)


def largest_difference(actual: list[list[float]], expected: list[list[float]]) -> float:
    """Relative, of every loss and gradient norm; as many steps of both."""
    assert len(actual) == len(expected) > 0
    return max(
        abs(value - other) / abs(other)
        for step, same in zip(actual, expected, strict=True)
        for value, other in zip(step, same, strict=True)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(objectives()))
def test_every_objective_takes_the_steps_that_it_takes_on_the_cpu(device, report, name, precision):
    settings = training(precision, steps=2)
    on_device, on_cpu = (curve(engine(name, place, settings), settings, science_rows) for place in (device, "cpu"))
    difference = largest_difference(on_device, on_cpu)
    report(largest_relative_difference=difference)
    assert difference <= training_tolerance(name, device, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("back", [False, True])
def test_a_training_goes_on_on_another_device(device, report, tmp_path, precision, back):
    settings = training(precision)
    first, then = (device, "cpu") if back else ("cpu", device)
    begun = engine("conditional", first, settings)
    curve(begun, settings, science_rows, halt=True)
    save_snapshot(str(tmp_path), begun.state(), begun.step)
    resumed = engine("conditional", then, settings)
    uri, step = newest_snapshot(str(tmp_path))
    resumed.load(open_snapshot(uri), step)
    rest = curve(resumed, settings, science_rows)
    whole = curve(engine("conditional", "cpu", settings), settings, science_rows)
    difference = largest_difference(rest, whole[2:])
    report(largest_relative_difference=difference)
    assert difference <= training_tolerance("conditional", device, precision)


def test_a_state_is_the_same_on_whatever_device_it_was_loaded(device):
    settings = training()
    begun = engine("denoising", "cpu", settings)
    curve(begun, settings, science_rows, halt=True)
    on_device = engine("denoising", device, settings)
    on_device.load(begun.state(), begun.step)
    assert on_device.state().keys() == begun.state().keys()
    for name, tensor in begun.state().items():
        assert torch.equal(on_device.state()[name].cpu(), tensor), name


def test_a_model_that_was_trained_on_a_device_opens_on_the_cpu_and_there(device, tmp_path: Path):
    settings, tokenizer = training(), Characters().build([])
    tokenizer.save(tmp_path)
    objective = objectives()["denoising"]()
    objective.trained = denoiser(tokenizer.size)
    trained = LocalEngine(objective.to(device), settings)
    curve(trained, settings, science_rows)
    weights = trained.export()
    save_denoiser(tmp_path / "model", weights, TRANSFORMER, LogLinear(), 12, tmp_path / FILE, {})
    for place in ("cpu", device):
        network = open_denoiser(tmp_path / "model").network.to(place)
        for name, parameter in network.named_parameters():
            assert parameter.device.type == place
            assert torch.equal(parameter.cpu(), weights[name].cpu()), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(objectives()))
def test_attention_ends_in_a_fused_kernel(cuda, name, precision):
    settings = training(precision, steps=1)
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel(fused):  # where none of them can compute it, torch raises
        curve(engine(name, cuda, settings), settings, science_rows)
