"""The engine on a device: it writes what the generator writes, takes over another model, and bears lack of memory."""

import time

import pytest
import torch

from cluster.http.warmup import warming
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Limits, OutOfMemory, Request
from edlm.models.execution import Execution
from edlm.sampling.sampler import Sampler
from tests.engines import PATIENT, SECONDS, alone, new_request, watched
from tests.gpu.bundle import LENGTH
from tests.gpu.test_generation import LEAST_EQUAL, TEXTS, equal_share

WAYS: list[dict] = [
    {"candidates": 1},
    {"candidates": 3, "energy": "step"},
    {"candidates": 3, "energy": "bidirectional", "window": (0.5, 1.0)},
    {"candidates": 0, "energy": "conditional"},
    {"candidates": 0, "energy": "conditional", "speculative": True},
]
TOO_MUCH = 2**50  # numbers; no allocator has them


def requests(device: str) -> list[Request]:
    """Some of every way, a few of them longer than a canvas."""
    each = max(1, TEXTS[device] // len(WAYS))
    return [
        new_request((3, 1), 2 * LENGTH if way["candidates"] == 1 else 6, seed, steps=3, **way)
        for way in WAYS
        for seed in range(each)
    ]


def check(engine: InferenceEngine, generator: TextGenerator, asked: list[Request], device: str) -> float:
    """The share of texts that are those of the generator alone, of all that the engine is asked for."""
    futures = engine.submit(asked)
    actual = [future.result(SECONDS).tokens for future in futures]
    share = equal_share(actual, [alone(generator, request).tokens for request in asked])
    assert share >= LEAST_EQUAL[device]
    return share


def test_texts_in_company_are_those_of_the_generator(device, on_device, report):
    with InferenceEngine(on_device, "1", PATIENT) as engine:
        report(equal_share=check(engine, on_device, requests(device), device))


def test_a_score_is_worked_out_beside_texts(on_cpu, on_device):
    asked = ((3, 1, 4, 1, 5), 7, 2, Sampler(steps=2, candidates=2), "step")
    with InferenceEngine(on_device, "1", PATIENT) as engine:
        engine.submit([new_request((), 6, 1)])
        actual = engine.run(4.0, on_device.stepwise_score(*asked), "a", time.monotonic() + SECONDS).result(SECONDS)
    assert actual.bound.mean == pytest.approx(on_cpu.score(*asked).bound.mean, abs=0.01)


def test_another_model_takes_over_on_the_device(device, folder, on_device):
    """As a replica swaps: opened on the CPU, moved and warmed in the engine's thread, between the old model's texts."""
    changed = open_bundle(folder)
    with torch.no_grad():
        changed.denoiser.network.readout.weight.mul_(-1)
    with InferenceEngine(on_device, "1", PATIENT) as engine:
        (old,) = engine.submit([new_request((), 3 * LENGTH, 1)])
        loaded = engine.run(8.0, warming(changed, device), "warming", time.monotonic() + SECONDS).result(SECONDS)
        assert isinstance(loaded, TextGenerator)
        assert loaded.device.type == device
        engine.swap(loaded, "2")
        (new,) = engine.submit([new_request((), LENGTH, 1)])
        assert (old.version, new.version) == ("1", "2")
        assert new.result(SECONDS).tokens == alone(loaded, new_request((), LENGTH, 1)).tokens
        assert new.result(SECONDS).tokens != alone(on_device, new_request((), LENGTH, 1)).tokens
        assert old.result(SECONDS).tokens == alone(on_device, new_request((), 3 * LENGTH, 1)).tokens


@pytest.mark.parametrize("fits", [2, 0])
def test_where_the_devices_memory_ends_texts_go_on_in_smaller_batches_or_end_alone(device, folder, on_device, fits):
    room = [fits]

    def allocate(xt: torch.Tensor) -> None:
        if len(xt) > room[0]:
            torch.empty(TOO_MUCH, device=xt.device)

    crowded = watched(open_bundle(folder, device), before=allocate)
    asked = [new_request((), 6, seed, steps=2, candidates=2, energy="step") for seed in range(4)]
    with InferenceEngine(crowded, "1", Limits(slots=4, step_seconds=100.0)) as engine:
        for future in engine.submit(asked):
            if fits:
                assert len(future.result(SECONDS).tokens) == 6
            else:
                with pytest.raises(OutOfMemory):
                    future.result(SECONDS)
        room[0] = 100
        check(engine, on_device, asked, device)
        assert engine.alive
        expected = {"length": 8} if fits else {"out of memory": 4, "length": 4}
        assert engine.statistics().finished == expected


@pytest.mark.gpu
def test_compiled_networks_run_in_the_engines_thread(cuda, folder, on, report):
    """Graphs are captured in the engine's thread, which is not the one that opened the model."""
    quick = open_bundle(folder, cuda, Execution(compiled=True))
    with InferenceEngine(quick, "1", PATIENT) as engine:
        report(equal_share=check(engine, on(cuda), requests(cuda), cuda))


@pytest.mark.gpu
def test_memory_that_was_lacking_is_given_back(cuda, folder, on):
    """A batch that fills the device releases all of its memory."""
    generator = watched(open_bundle(folder, cuda), before=lambda xt: fill(len(xt)))
    free = torch.cuda.mem_get_info()[0]

    def fill(rows: int) -> None:
        held = [torch.empty(free // 3, dtype=torch.uint8, device=cuda) for _ in range(rows)]
        del held

    with InferenceEngine(generator, "1", Limits(slots=8, step_seconds=100.0)) as engine:
        asked = [new_request((), 6, seed, steps=2) for seed in range(8)]
        share = equal_share(
            [future.result(SECONDS).tokens for future in engine.submit(asked)],
            [alone(on(cuda), request).tokens for request in asked],
        )
    assert share >= LEAST_EQUAL[cuda]
    assert torch.cuda.mem_get_info()[0] >= free // 2
