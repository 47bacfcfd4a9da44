"""A generator on a device writes and scores what it does on the CPU, up to the rounding of the device's kernels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edlm.inference.canvas import canvas
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.models.execution import Execution
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from tests.gpu.bundle import ENERGIES, LENGTH
from tests.gpu.rounding import numbers_tolerance
from workflows.benchmarking.pretended_device import NAME

FOUR = Sampler(steps=4)
THREE = replace(FOUR, candidates=3)
EXACT = replace(FOUR, candidates=0)
CASES: dict[str, tuple[str | None, Sampler]] = {
    "plain": (None, FOUR),
    "plain on a fitted grid": (None, Sampler(steps=3, grid=(0.0, 0.2, 0.7, 1.0))),
    **{f"{name}, k = 3": (name, THREE) for name in ENERGIES},
    "step, tau = 0.5": ("step", replace(THREE, energy_temperature=0.5)),
    "bidirectional in a window": ("bidirectional", replace(THREE, window=(0.5, 1.0))),
    "residual, tau = 2": ("residual", replace(THREE, energy_temperature=2.0)),
    **{f"{name}, exact": (name, EXACT) for name in ("conditional", "coar")},
    **{f"{name}, speculative": (name, replace(EXACT, speculative=True)) for name in ("conditional", "coar")},
}
OTHER_RULES: dict[str, tuple[str | None, Sampler]] = {
    f"{name}, {unmasking.kind}": (name, replace(FOUR if name is None else THREE, unmasking=unmasking))
    for name in (None, "step")
    for unmasking in (MostCertain(), Remasking(share=0.5))
}
PROMPT = (3, 1, 4)
TEXTS = {NAME: 2, "cuda": 64}
# Kernels add up in another order, and where a uniform falls between two roundings of the same probability a text takes
# another turn. Those of the pretended device are the processor's, put together otherwise.
LEAST_EQUAL = {NAME: 1.0, "cuda": 0.9}
NATS = {NAME: 2e-5, "cuda": 1e-3}  # the largest difference between log-probabilities or energies in float32


def equal_share(actual: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> float:
    return sum(tokens == other for tokens, other in zip(actual, expected, strict=True)) / len(expected)


@pytest.mark.parametrize("case", CASES)
def test_texts_are_those_of_the_cpu(device, on_cpu, on_device, report, case):
    energy, sampler = CASES[case]
    seeds, tokens = range(TEXTS[device]), 2 * LENGTH if case == "plain" else LENGTH - len(PROMPT)
    actual, expected = (
        [text.tokens for text in generator.write(PROMPT, tokens, seeds, sampler, energy)]
        for generator in (on_device, on_cpu)
    )
    share = equal_share(actual, expected)
    report(texts=len(seeds), equal_share=share)
    assert share >= LEAST_EQUAL[device]


@pytest.mark.parametrize("case", OTHER_RULES)
def test_canvases_filled_by_another_rule_are_those_of_the_cpu(device, on_cpu, on_device, report, case):
    name, sampler = OTHER_RULES[case]
    found, expected = (filled(generator, sampler, name, TEXTS[device]) for generator in (on_device, on_cpu))
    share = equal_share(found, expected)
    report(texts=len(found), equal_share=share)
    assert share >= LEAST_EQUAL[device]


def test_infilled_texts_are_those_of_the_cpu(device, on_cpu, on_device, report):
    holes, seeds = (5, None, None, 2, None, None, None, 9), range(TEXTS[device])
    actual, expected = (
        [text.tokens for text in generator.infill(holes, seeds, THREE, "conditional")]
        for generator in (on_device, on_cpu)
    )
    share = equal_share(actual, expected)
    report(texts=len(seeds), equal_share=share)
    assert share >= LEAST_EQUAL[device]


def test_texts_at_another_token_temperature_are_those_of_the_cpu(device, folder, report):
    actual = []
    for place in (device, "cpu"):
        generator = open_bundle(folder, place)
        with torch.no_grad():  # as the evaluation tempers, which divides the logits
            for parameter in generator.denoiser.network.readout.parameters():
                parameter.div_(0.7)
        actual.append([text.tokens for text in generator.write(PROMPT, 8, range(TEXTS[device]), THREE, "step")])
    share = equal_share(*actual)
    report(texts=TEXTS[device], equal_share=share)
    assert share >= LEAST_EQUAL[device]


def test_autoregressive_texts_are_those_of_the_cpu(device, on_cpu, on_device, report):
    keys = torch.arange(TEXTS[device])
    actual, expected = (
        generator.energies["coar"].model.draw(keys.to(generator.device), LENGTH).tolist()
        for generator in (on_device, on_cpu)
    )
    share = equal_share(actual, expected)
    report(texts=len(keys), equal_share=share)
    assert share >= LEAST_EQUAL[device]


@pytest.mark.parametrize("name", [None, "step", "conditional", "coar"])
def test_scores_are_those_of_the_cpu(device, on_cpu, on_device, report, name):
    sampler = FOUR if name is None else THREE
    actual, expected = (
        generator.score((3, 1, 4, 1, 5, 9, 2), 7, 2, sampler, name) for generator in (on_device, on_cpu)
    )
    nats = max(
        _difference(actual.nelbo.values, expected.nelbo.values),
        _difference(actual.bound.values, expected.bound.values),
        *(_difference(actual.energies[each].values, expected.energies[each].values) for each in ENERGIES),
    )
    report(largest_difference_nats=nats)
    assert nats <= 10 * NATS[device]  # sums over the positions of a text


@pytest.mark.parametrize("name", ["denoiser", *ENERGIES])
def test_numbers_are_those_of_the_cpu(device, on_cpu, on_device, report, name):
    actual, expected = (numbers(generator, name) for generator in (on_device, on_cpu))
    nats = _difference(actual, expected)
    report(largest_difference_nats=nats, of=expected.abs().max().item())
    assert nats <= NATS[device]


def test_numbers_in_bfloat16_are_near_those_in_float32(device, folder, on_cpu, report):
    rounded = open_bundle(folder, device, Execution(precision="bfloat16"))
    for name in ("denoiser", *ENERGIES):
        actual, expected = numbers(rounded, name), numbers(on_cpu, name)
        relative = ((actual - expected).norm() / expected.norm()).item()
        report(of=name, relative_error=relative)
        assert relative <= numbers_tolerance(name), name


def test_all_of_a_generator_lies_on_its_device(device, on_device):
    for network in (on_device.denoiser.network, *on_device.energies.values()):
        assert {tensor.device.type for tensor in _tensors(network)} == {device}


@pytest.mark.gpu
def test_compiled_networks_write_the_texts_of_the_others(cuda, folder, report):
    plain, quick = (open_bundle(folder, cuda, Execution(compiled=each)) for each in (False, True))
    actual, expected = (
        [text.tokens for text in generator.write(PROMPT, 8, range(64), THREE, "step")] for generator in (quick, plain)
    )
    share = equal_share(actual, expected)
    report(texts=64, equal_share=share)
    assert share >= LEAST_EQUAL[cuda]


def filled(generator: TextGenerator, sampler: Sampler, name: str | None, count: int) -> list[tuple[int, ...]]:
    xt = canvas(PROMPT, LENGTH, generator.mask).repeat(count, 1).to(generator.device)
    keys, energy = torch.arange(count, device=generator.device), generator.energy_for(sampler, name)
    x = sampler.sample(xt, generator.denoiser.network, energy, generator.denoiser.schedule, keys)
    return [tuple(row) for row in x.tolist()]


@torch.no_grad()
def numbers(generator: TextGenerator, name: str) -> Tensor:
    """log p of every token where five canvases are masked, or the energies of three candidates each; on the CPU."""
    network, device = generator.denoiser.network, generator.device
    x = (torch.arange(5 * 3 * LENGTH) * 7 % network.vocabulary).view(5, 3, LENGTH)
    masked = torch.arange(5 * LENGTH).view(5, LENGTH) % 3 > 0
    xt = torch.where(masked, network.mask, x[:, 0])
    x = torch.where(masked[:, None], x, xt[:, None]).to(device)
    xt, masked, t = xt.to(device), masked.to(device), torch.linspace(0.1, 1.0, 5, dtype=torch.float64).to(device)
    context = network.read(xt, t)
    if name == "denoiser":
        return network.log_p(context, masked).float().cpu()
    energy = generator.energies[name]
    log_p = torch.zeros(5, 3, 1 if energy.block is None else -(-LENGTH // energy.block), device=device)
    return energy(x, xt, t, log_p, context).float().cpu()


def _difference(actual: Tensor, expected: Tensor) -> float:
    return (actual.cpu() - expected.cpu()).abs().max().item()


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
